"""What every learner must keep to: those of LEARNERS, and those that wrap another network."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from math import prod

import pytest
import torch
from torch import Tensor, nn

from metalstm import settings
from metalstm.learners import (
    LEARNERS,
    Conv4,
    FixedOnce,
    FromModule,
    HeadOnly,
    Learner,
    LearnerSettings,
    Wrapped,
    set_precision,
)
from tiny import SHAPE, random

N_WAY, N = 3, 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def from_table(name: str) -> Learner:
    own = LEARNERS[name].Settings()
    if "filters" in {field.name for field in fields(own)}:
        own = replace(own, filters=4)
    return LEARNERS[name].build(own, SHAPE, generator())


def head_only() -> Learner:
    learner = from_table("conv4")
    return HeadOnly(learner, learner.init_body(generator()), learner.initial_moments())


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, stride=4), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.5), nn.Flatten())


MAKE: dict[str, Callable[[], Learner]] = {
    **{name: lambda name=name: from_table(name) for name in LEARNERS},
    "conv4, mirror": lambda: Conv4(SHAPE, Conv4.Settings(filters=4, mirror=True, unit_features=True, conv_bias=False)),
    "conv4, average": lambda: Conv4(SHAPE, Conv4.Settings(filters=4, pooling="average")),
    "head only": head_only,
    "wrapped": lambda: Wrapped(from_table("conv4")),
    "fixed once": lambda: FixedOnce(head_only()),
    "module": lambda: FromModule(module(), SHAPE),
    "frozen module": lambda: FromModule(module(), SHAPE, frozen=True),
}


@pytest.fixture(params=MAKE)
def learner(request) -> Learner:
    return MAKE[request.param]().double()


def theta_for(learner: Learner, *tasks: int) -> Tensor:
    start = learner.init(N_WAY, generator()).double()
    return start + 0.1 * random(*tasks, len(start), seed=1)


def images(*tasks: int) -> Tensor:
    return random(*tasks, N, *SHAPE, seed=2).sigmoid()


@pytest.mark.parametrize("name", LEARNERS)
def test_settings_are_allowed_and_survive_json(name):
    kind = LEARNERS[name]
    own = kind.Settings()
    assert isinstance(own, LearnerSettings)
    for each in (own, kind.for_pretraining(own)):
        settings.check(each)
        assert settings.from_dict(kind.Settings, json.loads(json.dumps(settings.to_dict(each)))) == each
    tag = kind.tag(own)
    assert tag
    assert tag.replace("-", "").replace("_", "").isalnum(), "part of the name of a folder"


def test_theta_is_body_then_head(learner):
    layout = learner.layout(N_WAY)
    end = 0
    for place, shape in layout.values():
        assert (place.start, place.stop - place.start, place.step) == (end, prod(shape), None)
        end = place.stop
    assert list(layout) == [*learner.shapes, "head"]
    assert layout["head"] == (slice(learner.n_body, end), (N_WAY, learner.n_features + 1))
    assert learner.lengths == [prod(shape) for shape in learner.shapes.values()]
    theta = learner.init(N_WAY, generator())
    assert theta.shape == (end,)
    assert learner.n_way(theta) == N_WAY
    assert len(learner.init_body(generator())) == learner.n_body == sum(learner.lengths)


def test_layers_tile_theta(learner):
    layers = learner.layers(N_WAY)
    stops = [0, *(place.stop for place in layers.values())]
    assert [place.start for place in layers.values()] == stops[:-1]
    assert list(layers)[-1] == "head"
    assert stops[-1] == len(learner.init(N_WAY, generator()))


def test_init_is_seeded(learner):
    first, again, other = (learner.init(N_WAY, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.isfinite().all()
    head = first[learner.n_body :]
    assert head.abs().max() <= learner.n_features**-0.5
    assert torch.equal(first, torch.cat([learner.init_body(g := generator(5)), learner.init_head(N_WAY, g)]))


@pytest.mark.parametrize("tasks", [(), (2,), (2, 1)])
def test_a_batch_of_tasks_equals_a_loop(learner, tasks):
    theta, x = theta_for(learner, *tasks), images(*tasks)
    fixed = learner.fixed(x)
    moments = learner.initial_moments().double().expand(*tasks, -1)
    assert moments.shape == (*tasks, learner.n_moments)
    for given in (None, moments):
        logits, used = learner(theta, fixed, given)
        features, also_used = learner.features(theta, fixed, given)
        assert logits.shape == (*tasks, N, N_WAY)
        assert features.shape == (*tasks, N, learner.n_features)
        assert used.shape == (*tasks, learner.n_moments)
        assert torch.equal(used, also_used)
        for index in torch.cartesian_prod(*map(torch.arange, tasks)).view(-1, len(tasks)) if tasks else []:
            here = tuple(index.tolist())
            one = learner(theta[here], learner.fixed(x[here]), None if given is None else given[here])
            torch.testing.assert_close(logits[here], one[0], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(used[here], one[1], rtol=1e-12, atol=1e-12)


def test_the_head_is_linear_and_needs_no_more_than_the_features(learner):
    theta, x = theta_for(learner), learner.fixed(images())
    features, _ = learner.features(theta, x)
    rows = theta[learner.n_body :].view(N_WAY, -1)
    torch.testing.assert_close(learner(theta, x)[0], features @ rows[:, :-1].T + rows[:, -1], rtol=1e-12, atol=1e-12)
    assert torch.equal(learner.features(theta[: learner.n_body], x)[0], features)


def test_own_moments_change_nothing(learner):
    theta, x = theta_for(learner), learner.fixed(images())
    logits, moments = learner(theta, x)
    torch.testing.assert_close(learner(theta, x, moments)[0], logits, rtol=1e-12, atol=1e-12)


def test_with_given_moments_images_do_not_matter_to_each_other(learner):
    theta, x = theta_for(learner), images()
    moments = learner.initial_moments().double()
    whole = learner(theta, learner.fixed(x), moments)[0]
    part = learner(theta, learner.fixed(x[:2]), moments)[0]
    torch.testing.assert_close(whole[:2], part, rtol=1e-12, atol=1e-12)


def test_unbiased_moments_keep_their_shape_and_the_means(learner):
    for tasks in ((), (2,)):
        theta, x = theta_for(learner, *tasks), learner.fixed(images(*tasks))
        moments = learner(theta, x)[1]
        unbiased = learner.unbiased(moments, N)
        assert unbiased.shape == moments.shape
        assert (unbiased.abs() >= moments.abs()).all()
        torch.testing.assert_close(learner.unbiased(moments, 10**6), moments, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("train", [False, True])
def test_nothing_depends_on_the_mode(learner, train):
    theta, x = theta_for(learner), images()
    results = []
    for mode in (True, False):
        learner.train(mode)
        torch.manual_seed(0)
        results.append((fixed := learner.fixed(x, train), *learner(theta, fixed, train=train)))
    assert all(map(torch.equal, *results))


def test_the_gradient_is_that_of_central_differences(learner):
    """Along random directions, for theta and for what it computes."""
    theta, x = theta_for(learner), learner.fixed(images())
    weights = random(N, N_WAY, seed=3)

    def value(at: Tensor) -> Tensor:
        return (learner(at, x)[0] * weights).sum()

    leaf = theta.clone().requires_grad_()
    (grad,) = torch.autograd.grad(value(leaf), leaf)
    for seed in range(3):
        direction = nn.functional.normalize(random(len(theta), seed=seed), dim=0)
        slope = (value(theta + 1e-7 * direction) - value(theta - 1e-7 * direction)) / 2e-7
        assert (grad @ direction).item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-6)


def test_theta_is_all_that_an_inner_loop_changes(learner):
    """A pass changes nothing in the module, and leaves no gradient there."""
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    theta = theta_for(learner).requires_grad_()
    learner(theta, learner.fixed(images()), train=True)[0].sum().backward()
    assert theta.grad is not None
    assert theta.grad[learner.n_body :].any()
    assert all(torch.equal(before[name], now) for name, now in learner.state_dict().items())
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_precision_is_set_on_all_learners_in_a_module(learner):
    theta, x = theta_for(learner).float(), images().float()
    learner.float()
    for bf16 in (True, False):
        set_precision(nn.ModuleList([learner]), bf16)
        assert learner.bf16 is bf16
        logits, moments = learner(theta, learner.fixed(x))
        assert logits.dtype == moments.dtype == torch.float32


def test_it_works_where_tensors_have_no_values(learner):
    """No pass waits for a value, as it would on a GPU."""
    if isinstance(learner, FixedOnce):
        pytest.skip("compares images with those that it has seen")
    theta, x = theta_for(learner, 2).to("meta"), images(2).to("meta")
    learner.to("meta")
    logits, moments = learner(theta, learner.fixed(x))
    assert logits.shape == (2, N, N_WAY)
    assert learner.unbiased(moments, N).device.type == "meta"
