"""What stands in for a learned optimizer is what it is called."""

import pytest
import torch
import torch.nn.functional as F

from metalstm import recipes
from metalstm.ablation import means, variants
from metalstm.ablation.means import of_all_steps, of_layers, one_rate
from metalstm.ablation.parts import BodyFixed, ClassMeans, GivenGates, Unforgetting
from metalstm.episodes import Episode, Query, Support
from metalstm.methods import METHODS, GradientMethod
from metalstm.optimizers import RULES, MetaLSTM
from metalstm.settings import Traits

SHAPE, N_WAY, N_SHOT = (1, 16, 16), 3, 2


def episode(number: int) -> Episode:
    generator = torch.Generator().manual_seed(number)
    y = torch.arange(N_WAY).repeat(4)[None]
    x = torch.rand(1, 12, *SHAPE, generator=generator) + 0.4 * y[..., None, None, None]
    return Episode(Support(x[:, :6], y[:, :6], N_WAY), Query(x[:, 6:], y[:, 6:]))


def learned(keep_moments: bool = True, **changes) -> GradientMethod:
    """A Meta-LSTM that moves the body visibly."""
    recipe = recipes.named("meta-lstm", "best", Traits(), 5)
    names = {"method": "meta-lstm", "image_shape": SHAPE, "n_way": N_WAY}
    small = {"filters": 4, "hidden_size": 3, "epochs": 3, "moves": "all", "forget_bias": (4.0, 4.0)}
    config = recipes.with_changes(
        recipes.RunConfig(**vars(recipe) | names), small | {"keep_moments": keep_moments} | changes
    )
    method = recipes.build(config)
    assert isinstance(method, GradientMethod)
    return method.eval()


def gates(method: GradientMethod, support: Support) -> torch.Tensor:
    steps = [method.optimizer.gates(step.state) for step in method.trajectory(support)]
    return torch.stack([each for each in steps if each is not None])  # (n_steps, 2, 1, n_params)


def mean_gates(method: GradientMethod, n_tasks: int) -> torch.Tensor:
    table = means(method, map(episode, range(n_tasks))).gates
    assert table is not None
    return table


@torch.no_grad()
def test_the_gates_of_one_task_given_back_take_the_same_steps():
    method, support = learned(), episode(0).support
    given = method.with_inner_loop(optimizer=GivenGates(gates(method, support)[:, :, 0]))
    for step, other in zip(method.trajectory(support), given.trajectory(support), strict=True):
        torch.testing.assert_close(other.theta, step.theta)


@torch.no_grad()
def test_given_gates_serve_a_batch_of_tasks_and_more_steps():
    method, both = learned(), [episode(number).support for number in (0, 1)]
    batch = Support(torch.cat([each.x for each in both]), torch.cat([each.y for each in both]), N_WAY)
    table = mean_gates(method, 2)
    given = method.with_inner_loop(optimizer=GivenGates(table), epochs=5)
    together = list(given.trajectory(batch))
    assert len(together) == 5
    for task, support in enumerate(both):
        for step, alone in zip(together, given.trajectory(support), strict=True):
            torch.testing.assert_close(step.theta[task], alone.theta[0])
    last = GivenGates(table[-1:])
    onward = last.update(together[3].theta, torch.ones_like(together[3].theta), together[3].loss, together[0].state)
    torch.testing.assert_close(onward[0], table[-1, 0] * together[3].theta - table[-1, 1])


@torch.no_grad()
def test_means_of_gates():
    method = learned()
    table = mean_gates(method, 3)
    expected = torch.stack([gates(method, episode(number).support)[:, :, 0] for number in range(3)]).mean(0)
    torch.testing.assert_close(table, expected)
    layers = method.learner.layers(N_WAY)
    by_layer = of_layers(table, layers.values())
    assert by_layer.shape == table.shape
    for place in layers.values():
        torch.testing.assert_close(by_layer[..., place], table[..., place].mean(-1, True).expand_as(table[..., place]))
    torch.testing.assert_close(of_all_steps(by_layer)[0], by_layer.mean(0))
    head = slice(method.learner.n_body, None)
    one = one_rate(table, head, head)
    assert (one[0, 0] == 1).all()
    assert not one[0, 1, : head.start].any()
    torch.testing.assert_close(one[0, 1, head], table[:, 1, head].mean().expand_as(one[0, 1, head]))


@torch.no_grad()
def test_without_forgetting_theta_follows_the_gradient_alone():
    method, support = learned(), episode(0).support
    assert (gates(method, support)[:, 0] < 1).all()
    unforgetting = method.with_inner_loop(optimizer=Unforgetting(method.optimizer))
    kept = gates(unforgetting, support)
    assert len(kept) == 3
    assert (kept[:, 0] == 1).all()
    # As the Meta-LSTM with a bias that is large enough to let its sigmoid be 1.
    other = learned()
    assert isinstance(other.optimizer, MetaLSTM)
    other.load_state_dict(method.state_dict())
    other.optimizer.weight_f.zero_()
    other.optimizer.bias_f.fill_(1e4)
    for step, expected in zip(unforgetting.trajectory(support), other.trajectory(support), strict=True):
        torch.testing.assert_close(step.theta, expected.theta)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("keep_moments", [True, False])
@torch.no_grad()
def test_a_fixed_body_does_not_move(rule, keep_moments):
    method, support = learned(keep_moments), episode(0).support
    fixed = method.with_inner_loop(optimizer=RULES[rule](0.1), learner=BodyFixed(method.learner))
    n_body = method.learner.n_body
    start = method.start(support).theta
    steps = list(fixed.trajectory(support))
    for step in steps:
        assert torch.equal(step.theta[..., :n_body], start[..., :n_body])
    assert not torch.equal(steps[-1].theta[..., n_body:], start[..., n_body:])


@torch.no_grad()
def test_the_first_step_of_a_head_alone_is_that_of_the_whole():
    method, support = learned(), episode(0).support
    whole = method.with_inner_loop(optimizer=RULES["sgd"](0.1))
    head = whole.with_inner_loop(learner=BodyFixed(method.learner))
    first, alone = next(whole.trajectory(support)), next(head.trajectory(support))
    n_body = method.learner.n_body
    torch.testing.assert_close(alone.theta[..., n_body:], first.theta[..., n_body:])


@pytest.mark.parametrize("keep_moments", [True, False])
@torch.no_grad()
def test_class_means(keep_moments):
    """The class whose mean feature of length 1 has the highest cosine, at theta_0."""
    query_norm = "running" if keep_moments else "support"
    method, one = learned(keep_moments, query_norm=query_norm), episode(0)
    nearest = ClassMeans(method)
    scores = nearest.logits(nearest.adapt(one.support), one.query.x)
    moments = method.finish(method.start(one.support), one.support)["moments"]
    theta = method.theta_0(N_WAY)[None]
    support, query = (
        F.normalize(method.learner.features(theta, x, moments)[0][0], dim=-1) for x in (one.support.x, one.query.x)
    )
    centers = torch.stack([F.normalize(support[one.support.y[0] == k].mean(0), dim=0) for k in range(N_WAY)])
    assert torch.equal(scores[0].argmax(-1), (query @ centers.T).argmax(-1))


@torch.no_grad()
def test_simpler_things_are_methods_that_leave_the_method_as_it_was():
    method = learned()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    parts = variants(method, map(episode, range(2)), N_WAY)
    one = episode(5)
    for variant in parts.values():
        logits = variant.logits(variant.adapt(one.support), one.query.x)
        assert logits.shape == (1, 6, N_WAY)
    assert (
        not parts["no step"]
        .adapt(one.support)["theta"][0, method.learner.n_body :]
        .ne(method.theta_0(N_WAY)[method.learner.n_body :])
        .any()
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
    assert type(method.optimizer).label == "Meta-LSTM"
    assert type(method) is METHODS["meta-lstm"]
