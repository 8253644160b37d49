"""What every method must hold to, whatever it does inside."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from metalstm import checkpoint, recipes
from metalstm.episodes import Episode, Query, Support
from metalstm.learners import Conv4
from metalstm.methods import GradientMethod, HeadOnly, Method, PixelNearestNeighbor, Pretrained, build
from metalstm.optimizers import RULES, SGD, MetaLSTM

SHAPE = (1, 16, 16)
N_WAY, N_SHOT, N_QUERY = 3, 2, 4


def config(recipe: str, **changes) -> recipes.RunConfig:
    settings, training = recipes.named("meta-lstm", recipe, "glyphs", N_SHOT)
    settings = replace(settings, filters=4, hidden_size=3, epochs=2, batch_size=4, **changes)
    return recipes.RunConfig(image_shape=SHAPE, n_way=N_WAY, settings=settings, training=training)


def descent(**changes) -> GradientMethod:
    generator = torch.Generator().manual_seed(0)
    return GradientMethod(Conv4(SHAPE, 4), SGD(0.1), N_WAY, 2, 4, generator=generator, **changes)


def run_config(method: str, **settings) -> recipes.RunConfig:
    """A small run of any method."""
    start, training = recipes.named(method, "best", "glyphs", N_SHOT)
    settings = {"filters": 4, "conv_bias": True, **settings}
    shape = {"image_shape": SHAPE, "n_classes": N_WAY, "n_way": N_WAY, "n_shot": N_SHOT}
    return recipes.RunConfig(replace(start, **settings), training, method, **shape)


def matching_net(method: str = "matching-net", **settings) -> Method:
    """With moments as if it had been trained for a while."""
    built = build(run_config(method, **settings))
    for seed in range(30):
        built(episode(seed=seed))
    return built


def finetuned(rule: str, head_only: bool = False) -> Method:
    settings = recipes.FinetuneSettings(rule, 0.01, steps=4, head_only=head_only, filters=4, mirror=True)
    return build(replace(run_config("pretrained"), method="finetune", settings=settings))


METHODS: dict[str, Callable[[], Method]] = {
    "paper": lambda: build(config("paper")),
    "best": lambda: build(config("best")),
    "first order, support moments": lambda: build(config("best", order=1)),
    "gradient descent": descent,
    "gradient descent, second order": lambda: descent(order=2, query_norm="support", train_query_norm="support"),
    "kept moments, layer rates, mirror": lambda: build(
        config("best", keep_moments=True, layer_rates=True, body_factor=0.05, query_scale=2.0, mirror=True)
    ),
    "pixels": PixelNearestNeighbor,
    "pretrained": lambda: build(run_config("pretrained")),
    "matching net, sum": lambda: matching_net(class_score="sum"),
    "matching net, attention": lambda: matching_net(mirror=True),
    "matching net, FCE": lambda: matching_net("matching-net-fce"),
    **{f"fine-tuning, {rule}": lambda rule=rule: finetuned(rule) for rule in RULES},
    "fine-tuning, head only": lambda: finetuned("adam", head_only=True),
}
# The head starts all classes alike, or there is no head: what a class is called does not matter.
SYMMETRIC = (
    "best",
    "first order, support moments",
    "kept moments, layer rates, mirror",
    "pixels",
    "pretrained",
    "matching net, sum",
    "matching net, attention",
    "matching net, FCE",
)


UNTRAINED = (Pretrained, HeadOnly)  # by episodes


@pytest.fixture(params=METHODS)
def method(request) -> Method:
    return METHODS[request.param]().double().eval()


def episode(n_tasks: int = 2, seed: int = 0) -> Episode:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n_tasks, N_WAY * (N_SHOT + N_QUERY), *SHAPE, generator=generator, dtype=torch.double)
    y = torch.arange(N_WAY).repeat(N_SHOT + N_QUERY).expand(n_tasks, -1)
    x += 0.5 * y[..., None, None, None]  # so that there is something to learn
    n = N_WAY * N_SHOT
    return Episode(Support(x[:, :n], y[:, :n], N_WAY), Query(x[:, n:], y[:, n:]))


def logits(method: Method, episode: Episode) -> torch.Tensor:
    with torch.no_grad():
        return method.logits(method.adapt(episode.support), episode.query.x)


def task(episode: Episode, index: int) -> Episode:
    support = replace(episode.support, x=episode.support.x[index], y=episode.support.y[index])
    return Episode(support, Query(episode.query.x[index], episode.query.y[index]))


def test_logits_have_a_score_for_each_class(method):
    assert logits(method, episode()).shape == (2, N_WAY * N_QUERY, N_WAY)


def test_a_batch_of_tasks_equals_a_loop(method):
    both = episode()
    batch = logits(method, both)
    for index in range(2):
        torch.testing.assert_close(batch[index], logits(method, task(both, index)), rtol=1e-9, atol=1e-9)
    if isinstance(method, Pretrained):
        return  # trained on mini-batches of images
    loss, accuracy = method(both)
    singles = [method(task(both, index)) for index in range(2)]
    torch.testing.assert_close(loss, sum(one for one, _ in singles) / 2, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(accuracy, sum(one for _, one in singles) / 2)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_relabelling_classes_permutes_logits(name):
    method = METHODS[name]().double().eval()
    before = episode()
    order = torch.tensor([2, 0, 1])
    after = replace(before, support=replace(before.support, y=order[before.support.y]))
    torch.testing.assert_close(logits(method, after)[..., order], logits(method, before), rtol=1e-8, atol=1e-8)


def test_other_queries_do_not_matter(method):
    whole = episode()
    few = replace(whole, query=Query(whole.query.x[:, :2], whole.query.y[:, :2]))
    torch.testing.assert_close(logits(method, whole)[:, :2], logits(method, few), rtol=1e-9, atol=1e-9)


def test_queries_do_matter_where_a_method_says_transductive():
    method = build(config("paper", query_norm="batch")).double()
    whole = episode()
    few = replace(whole, query=Query(whole.query.x[:, :2], whole.query.y[:, :2]))
    assert not torch.allclose(logits(method, whole)[:, :2], logits(method, few), rtol=1e-3)


def test_adapting_is_deterministic_and_leaves_the_method_as_it_was(method):
    before = copy.deepcopy(method.state_dict())
    adapted, again = method.adapt(episode().support), method.adapt(episode().support)
    assert all(torch.equal(adapted[name], again[name]) for name in adapted)
    assert before.keys() == method.state_dict().keys()
    assert all(torch.equal(before[name], now) for name, now in method.state_dict().items())
    assert all(parameter.grad is None for parameter in method.parameters())


def test_what_was_adapted_can_be_saved_and_loaded_to_the_bit(method, tmp_path):
    adapted = method.adapt(episode().support)
    checkpoint.save(tmp_path / "adapted.safetensors", adapted, {"n_way": N_WAY})
    loaded, meta = checkpoint.load(tmp_path / "adapted.safetensors")
    assert meta == {"n_way": N_WAY}
    query_x = episode().query.x
    assert torch.equal(method.logits(adapted, query_x), method.logits(loaded, query_x))


def test_every_meta_parameter_gets_a_finite_gradient(method):
    parameters = dict(method.named_parameters())
    if not parameters or isinstance(method, UNTRAINED):
        pytest.skip("no meta-parameters, or none that episodes train")
    method(episode())[0].backward()
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_a_few_steps_lower_the_loss(method):
    parameters = list(method.parameters())
    if not parameters or isinstance(method, UNTRAINED):
        pytest.skip("no meta-parameters, or none that episodes train")
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    losses = []
    for _ in range(30):
        loss, _ = method(episode())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < 0.9 * losses[0]


def test_unequal_shots_are_allowed(method):
    one = task(episode(1), 0)
    keep = torch.tensor([0, 1, 2, 3])  # classes 0, 1, 2, 0
    support = replace(one.support, x=one.support.x[keep], y=one.support.y[keep])
    assert logits(method, replace(one, support=support)).isfinite().all()


def test_a_shared_head_serves_any_number_of_classes():
    method = build(config("best")).double()
    assert method.theta_0(7).shape[0] - method.theta_0(5).shape[0] == 2 * (method.learner.n_features + 1)


def test_a_head_of_its_own_serves_one_number_of_classes():
    with pytest.raises(Exception, match="meta-trained for 3 classes and serves no other number: got 4"):
        build(config("paper")).theta_0(4)


def test_the_trajectory_has_a_step_for_each_mini_batch():
    method = descent()  # 2 epochs; 6 support images in mini-batches of 4
    steps = list(method.double().trajectory(episode().support))
    assert len(steps) == 4
    adapted = method.adapt(episode().support)
    assert torch.equal(adapted["theta"], steps[-1].theta)
    assert torch.equal(adapted["moments"], steps[-1].moments)


def test_running_moments_are_those_of_torch():
    """One block of running averages against BatchNorm2d's own, the last updated before the last step."""
    method = descent().double()
    support = task(episode(), 0).support
    x, y = support.x[:4], support.y[:4]
    norm = torch.nn.BatchNorm2d(4, eps=1e-3, momentum=0.95).double()
    learner, theta = method.learner, method.theta_0(N_WAY)
    place, shape = learner.layout(N_WAY)["conv1.weight"]
    bias, _ = learner.layout(N_WAY)["conv1.bias"]
    norm(torch.nn.functional.conv2d(x, theta[place].view(shape).permute(0, 3, 1, 2), theta[bias], padding=1))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    step = next(method.trajectory(Support(x, y, N_WAY)))
    torch.testing.assert_close(step.moments[:4], norm.running_mean)
    torch.testing.assert_close(step.moments[4:8], norm.running_var)


@pytest.mark.parametrize(
    "optimizer", [*(rule(0.1, 0.1) for rule in RULES.values()), MetaLSTM(3)], ids=lambda o: type(o).__name__
)
def test_inner_optimizers_keep_shapes_and_have_tensor_states(optimizer):
    theta = torch.randn(2, 5)
    state = optimizer.init(theta)
    assert all(isinstance(part, torch.Tensor) and not part.any() for part in state)
    new, after = optimizer.update(theta, torch.randn(2, 5), torch.rand(2), state)
    assert new.shape == theta.shape
    assert [part.shape for part in after] == [part.shape for part in state]
