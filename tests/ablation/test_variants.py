"""What every entry of OPTIMIZERS offers to be taken off, and that it is what it is called."""

import pytest
import torch

import tiny
from metalstm.ablation import means, ruled, tune, variants
from metalstm.ablation.parts import Blind, Forgetful, GivenGates, Unforgetting
from metalstm.ablation.variants import HEAD_RULE, RULE, WHOLE
from metalstm.episodes import Episode
from metalstm.methods import GradientMethod, Search
from metalstm.optimizers import OPTIMIZERS

BLIND = {"meta-lstm": {"loss", "gradient", "theta"}, "alfa": {"gradient", "theta"}}
ALWAYS = {WHOLE, "only the head moves", "only the body moves", "no step", "no step, nearest class mean"}


def episodes(n: int) -> list[Episode]:
    return [tiny.episode((1,), seed=seed) for seed in range(n)]


def method_with(optimizer: str, **changes) -> GradientMethod:
    method = tiny.build(tiny.config("maml", optimizer=optimizer, **changes))
    assert isinstance(method, GradientMethod)
    return method.eval()


@pytest.fixture(params=OPTIMIZERS)
def name(request) -> str:
    return request.param


@pytest.fixture
def method(name) -> GradientMethod:
    return method_with(name)


def assert_same_steps(one: GradientMethod, other: GradientMethod, episode: Episode) -> None:
    pairs = zip(one.trajectory(episode.support), other.trajectory(episode.support), strict=True)
    for step, expected in pairs:
        torch.testing.assert_close(step.theta, expected.theta, rtol=0, atol=1e-9)


def test_every_variant_runs_and_leaves_the_method_as_it_was(method):
    before = {key: tensor.clone() for key, tensor in method.state_dict().items()}
    found = variants(method, episodes(2), tiny.N_WAY)
    assert next(iter(found.items())) == (WHOLE, method)
    for each in found.values():
        logits = tiny.logits(each, tiny.episode((2,), seed=7))
        assert logits.shape == (2, tiny.N_WAY * tiny.N_QUERY, tiny.N_WAY)
        assert logits.isfinite().all()
    assert all(torch.equal(tensor, before[key]) for key, tensor in method.state_dict().items())


def test_an_optimizer_is_asked_what_can_be_taken_off(name, method):
    found = variants(method, episodes(2), tiny.N_WAY)
    assert found.keys() >= ALWAYS
    blind = {name for name in found if name.startswith("gates blind to")}
    assert {each.split()[-1] for each in blind} == BLIND.get(name, set())
    assert ("gates remember nothing" in found) == (name == "meta-lstm")
    has_gates = name in ("meta-lstm", "alfa", "learned-rates", "meta-sgd")
    assert ("mean gates of each layer" in found) == has_gates
    assert ("f = 1" in found) == (name in BLIND)  # elsewhere it is 1
    if not has_gates:
        assert found.keys() == ALWAYS


@torch.no_grad()
def test_means_over_one_task_give_the_whole(method):
    (one,) = episodes(1)
    gates, inputs = means(method, [one])
    if gates is not None:
        assert_same_steps(method.with_inner_loop(optimizer=GivenGates(gates)), method, one)
    for each, mean in inputs.items():
        assert_same_steps(method.with_inner_loop(optimizer=Blind(method.optimizer, each, mean)), method, one)


@torch.no_grad()
def test_means_are_taken_over_tasks(method):
    one, other = (means(method, [episode]) for episode in episodes(2))
    gates, inputs = means(method, episodes(2))
    if gates is not None and one.gates is not None and other.gates is not None:
        torch.testing.assert_close(gates, (one.gates + other.gates) / 2)
    for each, mean in inputs.items():
        torch.testing.assert_close(mean, (one.inputs[each] + other.inputs[each]) / 2)
        assert not torch.equal(one.inputs[each], other.inputs[each])


@torch.no_grad()
@pytest.mark.parametrize("each", ["loss", "gradient", "theta"])
def test_gates_that_do_not_see_an_input_differ_from_those_that_do(each):
    method = method_with("meta-lstm")
    tiny.busy(method.optimizer)  # pyright: ignore[reportArgumentType]
    one, other = episodes(2)
    blind = method.with_inner_loop(optimizer=Blind(method.optimizer, each, means(method, [other]).inputs[each]))
    last, expected = (list(m.trajectory(one.support))[-1].theta for m in (blind, method))
    assert not torch.allclose(last, expected, rtol=0, atol=1e-9)


@torch.no_grad()
def test_f_of_1_changes_nothing_where_it_is_1():
    for name in ("learned-rates", "meta-sgd"):
        method, (one,) = method_with(name), episodes(1)
        assert_same_steps(method.with_inner_loop(optimizer=Unforgetting(method.optimizer)), method, one)


@torch.no_grad()
def test_without_memory_every_step_is_a_first_step():
    method, (one,) = method_with("meta-lstm"), episodes(1)
    tiny.busy(method.optimizer)  # pyright: ignore[reportArgumentType]
    forgetful = method.with_inner_loop(optimizer=Forgetful(method.optimizer))
    (first, second), (_, other) = (list(each.trajectory(one.support))[:2] for each in (forgetful, method))
    assert not torch.allclose(second.theta, other.theta, rtol=0, atol=1e-9)
    x, y = one.support.x[:, 4:], one.support.y[:, 4:]  # the second mini-batch
    _, grad, _ = method._gradient(first.theta, x, y, first.moments, False)
    optimizer = method.optimizer
    theta, _ = optimizer.update(first.theta, grad, second.loss, optimizer.init(first.theta))
    torch.testing.assert_close(second.theta, theta)


def test_a_method_that_moves_the_head_alone_has_no_parts_that_move():
    for moves, keep_moments in (("head", True), ("head", False), ("body", False)):
        norm = "running" if keep_moments else "support"
        method = method_with("meta-lstm", moves=moves, keep_moments=keep_moments, query_norm=norm)
        found = variants(method, episodes(1), tiny.N_WAY)
        assert not any("moves" in each for each in found)
        assert tiny.logits(found["f = 1"], tiny.episode((1,), seed=3)).isfinite().all()


@torch.no_grad()
def test_tuned_rules_take_the_optimizers_place_on_the_same_layers():
    search = Search(few=1, many=2, read_at=(2,))  # a head of zeros passes no gradient at first
    method = method_with("meta-lstm")
    choices = tune(method, lambda k: tiny.episode((1,), seed=k), search, "")
    assert choices.keys() == {RULE, HEAD_RULE}
    for name, each in ruled(method, choices).items():
        (one,) = episodes(1)
        assert isinstance(each, GradientMethod)
        steps = list(each.trajectory(one.support))
        assert len(steps) == choices[name].steps
        n_body, start = method.learner.n_body, method.start(one.support).theta
        assert torch.equal(steps[-1].theta[..., :n_body], start[..., :n_body]) == (name == HEAD_RULE)
    head = method_with("meta-lstm", moves="head")
    assert tune(head, lambda k: tiny.episode((1,), seed=k), search, "").keys() == {RULE}
