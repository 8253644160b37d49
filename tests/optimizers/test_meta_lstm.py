"""The learned optimizer against slow versions of the paper's equations, central differences and SGD, in float64."""

import math
from collections.abc import Callable
from dataclasses import astuple
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from metalstm.optimizers import SGD, InnerOptimizer, MetaLSTM
from metalstm.optimizers.meta_lstm import MetaLSTMState, preprocess
from reference import meta_lstm_autograd, meta_lstm_numpy
from tiny import assert_near, busy, gradient_descent, random, weights_of

STEPS = 12
HIDDEN = 2
THRESHOLD = math.exp(-10)

Loss = Callable[[Tensor], Tensor]


def make(hidden_size: int = HIDDEN, **settings: Any) -> MetaLSTM:
    return busy(MetaLSTM(MetaLSTM.Settings(hidden_size=hidden_size, **settings)))


def recorded_steps(n_params: int, tasks: tuple[int, ...] = (), seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Gradients and losses of all sizes, some of either below the threshold of the preprocessing."""
    steps = []
    for t in range(STEPS):
        size = torch.exp(3 * random(*tasks, n_params, seed=seed + 3 * t) - 4)
        loss = torch.exp(4 * random(*tasks, seed=seed + 3 * t + 1) - 7)
        steps.append((size * random(*tasks, n_params, seed=seed + 3 * t + 2).sign(), loss))
    return steps


def replay(meta: MetaLSTM, theta: Tensor, recorded: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, MetaLSTMState]]:
    state, trajectory = meta.init(theta), []
    for grad, loss in recorded:
        theta, state = meta.update(theta, grad, loss, state)
        trajectory.append((theta, state))
    return trajectory


def adapt(optimizer: InnerOptimizer, theta: Tensor, losses: list[Loss], order: int) -> list[Tensor]:
    """theta after every step, where gradients and losses are computed on the way."""
    state, trajectory = optimizer.init(theta), []
    for inner_loss in losses:
        point = theta if order == 2 else theta.detach().requires_grad_()
        loss = inner_loss(point)
        (grad,) = torch.autograd.grad(loss, point, create_graph=order == 2)
        theta, state = optimizer.update(theta, grad, loss if order == 2 else loss.detach(), state)
        trajectory.append(theta)
    return trajectory


def central_differences(value: Callable[[], Tensor], tensor: Tensor, eps: float = 1e-5) -> Tensor:
    """d value / d tensor, coordinate by coordinate; the tensor is changed and put back."""
    flat, result = tensor.detach().view(-1), torch.empty(tensor.numel(), dtype=torch.float64)
    for k in range(len(flat)):
        before = flat[k].item()
        flat[k] = before + eps
        above = value().item()
        flat[k] = before - eps
        result[k] = (above - value().item()) / (2 * eps)
        flat[k] = before
    return result.view(tensor.shape)


# The inner problems: thirteen losses, twelve to adapt on and the last for the query.


def tanh_network() -> tuple[Tensor, list[Loss]]:
    """A classifier with a hidden layer of three tanh units: twelve coordinates, smooth."""

    def loss_on(x: Tensor, y: Tensor) -> Loss:
        def loss(theta: Tensor) -> Tensor:
            hidden = torch.tanh(x @ theta[:6].view(2, 3) + theta[6:9])
            return F.binary_cross_entropy_with_logits(hidden @ theta[9:12], y)

        return loss

    x = random(STEPS + 1, 5, 2, seed=50)
    return random(12, seed=51), [loss_on(batch, (batch.sum(1) + batch[:, 0].sin() > 0.3).double()) for batch in x]


def steep_and_flat() -> tuple[Tensor, list[Loss]]:
    """Quartic bowls whose gradients lie on both sides of the preprocessing's threshold."""
    curvature = torch.logspace(-7, 0, 12, dtype=torch.float64)

    def loss_towards(target: Tensor) -> Loss:
        return lambda theta: (curvature * ((theta - target) ** 2 / 2 + (theta - target) ** 4 / 50)).sum()

    start = random(12, seed=60)
    # Targets on the far side, so that no gradient passes zero.
    targets = -start.sign() * (3 + random(STEPS + 1, 12, seed=61).abs())
    return start, [loss_towards(target) for target in targets]


PROBLEMS = {"tanh network": tanh_network, "steep and flat": steep_and_flat}


@pytest.fixture(params=PROBLEMS)
def problem(request) -> tuple[Tensor, list[Loss]]:
    return PROBLEMS[request.param]()


# Forward


@pytest.mark.parametrize("hidden_size", [HIDDEN, 20])
def test_forward_equals_numpy(hidden_size):
    n_params, meta = 7, make(hidden_size)
    recorded = recorded_steps(n_params)
    grads = torch.stack([grad for grad, _ in recorded]).abs()
    losses = torch.stack([loss for _, loss in recorded])
    assert (grads < THRESHOLD).any()
    assert (losses < THRESHOLD).any()
    start = random(n_params, seed=9)
    weights = {name: value.detach().numpy() for name, value in meta.named_parameters()}
    theta, state = start.numpy(), meta_lstm_numpy.State.zeros(n_params, hidden_size)
    for (grad, loss), (actual, actual_state) in zip(recorded, replay(meta, start, recorded), strict=True):
        theta, state = meta_lstm_numpy.step(weights, theta, grad.numpy(), loss.item(), state)
        np.testing.assert_allclose(actual.detach(), theta, rtol=0, atol=1e-10)
        h, c, f, i = astuple(state)
        for part, expected in zip(actual_state, (h.T, c.T, f, i), strict=True):
            np.testing.assert_allclose(part.detach(), expected, rtol=0, atol=1e-10)


TERMS = [
    *[("weight_x", (slice(None), k)) for k in range(4)],
    *[("weight_x", slice(HIDDEN * gate, HIDDEN * (gate + 1))) for gate in range(4)],
    *[("weight_h", slice(HIDDEN * gate, HIDDEN * (gate + 1))) for gate in range(4)],
    *[("bias", slice(HIDDEN * gate, HIDDEN * (gate + 1))) for gate in range(4)],
    *[(f"weight_{gate}", part) for gate in "fi" for part in (slice(HIDDEN), HIDDEN, HIDDEN + 1)],
    *[(f"bias_{gate}", ...) for gate in "fi"],
]


@pytest.mark.parametrize(("name", "part"), TERMS)
def test_every_term_matters(name, part):
    """The tests of the whole would see any single term of the equations missing."""
    meta, start, recorded = make(), random(7, seed=9), recorded_steps(7)
    before = replay(meta, start, recorded)[-1][0]
    with torch.no_grad():
        meta.get_parameter(name)[part] = 0
    after = replay(meta, start, recorded)[-1][0]
    assert (after - before).abs().max() > 1e-5


def test_lstm_equals_torch():
    hidden_size, n_params = 5, 6
    meta, recorded = make(hidden_size), recorded_steps(n_params)
    lstm = nn.LSTM(4, hidden_size).double()
    lstm.load_state_dict(
        {
            "weight_ih_l0": meta.weight_x.detach(),
            "weight_hh_l0": meta.weight_h.detach(),
            "bias_ih_l0": meta.bias.detach(),
            "bias_hh_l0": torch.zeros_like(meta.bias),
        }
    )
    grads, losses = (torch.stack(values) for values in zip(*recorded, strict=True))
    features = [meta_lstm_autograd.preprocess(x.flatten()).view(STEPS, -1, 2) for x in (grads, losses)]
    output, (_, cell) = lstm(torch.cat([features[0], features[1].expand(-1, n_params, -1)], 2))
    trajectory = replay(meta, random(n_params, seed=9), recorded)
    torch.testing.assert_close(torch.stack([state.h.mT for _, state in trajectory]), output, rtol=0, atol=1e-12)
    torch.testing.assert_close(trajectory[-1][1].c.mT, cell[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("tasks", [(), (3,), (2, 3)])
def test_batch_of_tasks_equals_loop(tasks):
    meta, n_params = make(4), 6
    start, recorded = random(*tasks, n_params, seed=9), recorded_steps(n_params, tasks)
    trajectory = replay(meta, start, recorded)
    for index in product(*map(range, tasks)):
        alone = replay(meta, start[index], [(grad[index], loss[index]) for grad, loss in recorded])
        for (theta, state), (one_theta, one_state) in zip(trajectory, alone, strict=True):
            torch.testing.assert_close(theta[index], one_theta, rtol=0, atol=1e-12)
            for part, one_part in zip(state, one_state, strict=True):
                torch.testing.assert_close(part[index], one_part, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tasks", [(), (3,), (2, 3)])
def test_init_is_zeros(tasks):
    theta = random(*tasks, 7, seed=0).float()
    state = MetaLSTM(MetaLSTM.Settings(hidden_size=5)).init(theta)
    assert [part.shape for part in state] == [(*tasks, 5, 7), (*tasks, 5, 7), (*tasks, 7), (*tasks, 7)]
    assert all(part.dtype == theta.dtype and not part.any() for part in state)


def test_weights_start_as_in_the_authors_code():
    meta = MetaLSTM(generator=torch.Generator().manual_seed(0))
    parameters = dict(meta.named_parameters())
    assert sum(value.numel() for value in parameters.values()) == 4 * 20 * (4 + 20 + 1) + 2 * (20 + 2 + 1)
    assert 4 <= parameters.pop("bias_f") <= 5
    assert -5 <= parameters.pop("bias_i") <= -4
    for value in parameters.values():
        assert 0.007 < value.abs().max() <= 0.01
        assert value.min() < 0 < value.max()
    again = MetaLSTM(generator=torch.Generator().manual_seed(0))
    biases = MetaLSTM.Settings(forget_bias=(9.0, 9.5), input_bias=(-2.5, -2.5))
    other = MetaLSTM(biases, generator=torch.Generator().manual_seed(1))
    assert all(map(torch.equal, meta.parameters(), again.parameters()))
    assert not torch.equal(meta.weight_x, other.weight_x)
    assert 9 <= other.bias_f <= 9.5
    assert other.bias_i == -2.5


# Preprocessing

EDGES = [
    (0.0, (-1.0, 0.0)),
    (-0.0, (-1.0, 0.0)),
    (THRESHOLD, (-1.0, 1.0)),
    (-THRESHOLD, (-1.0, -1.0)),
    (math.nextafter(THRESHOLD, 1), (-1.0, 1.0)),
    (math.nextafter(-THRESHOLD, 0), (-1.0, -1.0)),
    (THRESHOLD / 2, (-1.0, 0.5)),
    (-THRESHOLD / 4, (-1.0, -0.25)),
    (2 * THRESHOLD, (math.log(2) / 10 - 1, 1.0)),
    (-math.exp(-3), (-0.3, -1.0)),
    (1.0, (0.0, 1.0)),
    (-math.exp(4), (0.4, -1.0)),
    (1e300, (30 * math.log(10), 1.0)),
    (-1e300, (30 * math.log(10), -1.0)),
    (5e-324, (-1.0, 0.0)),
]


@pytest.mark.parametrize(("x", "expected"), EDGES)
def test_preprocess_at_the_edges(x, expected):
    features = torch.stack(preprocess(torch.tensor(x, dtype=torch.float64)))
    torch.testing.assert_close(features, torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=1e-13)
    assert meta_lstm_numpy.preprocess(x) == pytest.approx(expected, rel=1e-13, abs=1e-13)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.floats(-1e-4, 1e-4), min_size=1))
@example([THRESHOLD, -THRESHOLD])
def test_preprocess_equals_formula(values):
    actual = torch.stack(preprocess(torch.tensor(values, dtype=torch.float64)), 1)
    expected = torch.tensor([meta_lstm_numpy.preprocess(x) for x in values], dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_preprocess_slopes(dtype):
    """1 / (p x) and 0 above the threshold, 0 and e^p below; finite everywhere."""
    values = [0.0, 1e-30, THRESHOLD / 3, -THRESHOLD / 3, 3 * THRESHOLD, -0.5, 40.0, 3e38]
    x = torch.tensor(values, dtype=dtype, requires_grad=True)
    slopes = torch.stack([torch.autograd.grad(feature.sum(), x)[0] for feature in preprocess(x)], 1)
    formula = [(1 / (10 * v), 0.0) if abs(v) >= THRESHOLD else (0.0, math.exp(10)) for v in values]
    torch.testing.assert_close(slopes, torch.tensor(formula, dtype=dtype), rtol=1e-5, atol=0)


# Meta-gradients


def test_problems_keep_away_from_kinks(problem):
    """Central differences need gradients and losses that cross neither zero nor the threshold within a step of 1e-5."""
    start, losses = problem
    _, recorded = meta_lstm_autograd.adapt(weights_of(make()), start.clone().requires_grad_(), losses[:-1], order=1)
    values = torch.cat([torch.cat([grad, loss[None]]) for grad, loss in recorded]).abs()
    below, above = values[values < THRESHOLD], values[values >= THRESHOLD]
    assert above.min() > 1.05 * THRESHOLD
    assert len(below) == 0 or below.max() < 0.95 * THRESHOLD


def test_problems_lie_on_both_sides_of_the_threshold():
    start, losses = steep_and_flat()
    _, recorded = meta_lstm_autograd.adapt(weights_of(make()), start.requires_grad_(), losses[:-1], order=1)
    share = torch.stack([grad.abs() < THRESHOLD for grad, _ in recorded]).double().mean()
    assert 0.1 < share < 0.9


def expected_gradient(meta: MetaLSTM, start: Tensor, losses: list[Loss], order: int):
    """The reference's meta-gradient by name, `theta_0` among them, and the inner steps."""
    weights, theta_0 = weights_of(meta), start.clone().requires_grad_()
    theta, recorded = meta_lstm_autograd.adapt(weights, theta_0, losses[:-1], order=order)
    leaves = weights | {"theta_0": theta_0}
    grads = torch.autograd.grad(losses[-1](theta), list(leaves.values()))
    return dict(zip(leaves, grads, strict=True)), [(grad.detach(), loss.detach()) for grad, loss in recorded]


def test_meta_gradient_of_recorded_steps(problem):
    """Gradient independence: gradients and losses of the learner are constants."""
    start, losses = problem
    meta = make()
    expected, recorded = expected_gradient(meta, start, losses, order=1)
    theta_0 = start.clone().requires_grad_()
    leaves = dict(meta.named_parameters()) | {"theta_0": theta_0}

    def query_loss() -> Tensor:
        return losses[-1](replay(meta, theta_0, recorded)[-1][0])

    held = torch.autograd.grad(query_loss(), list(leaves.values()))
    recomputed = torch.autograd.grad(losses[-1](adapt(meta, theta_0, losses[:-1], order=1)[-1]), list(leaves.values()))
    for (name, leaf), grad, again in zip(leaves.items(), held, recomputed, strict=True):
        assert_near(grad, expected[name], 1e-10, name)
        assert_near(again, expected[name], 1e-10, name)
        assert_near(grad, central_differences(query_loss, leaf), 1e-6, name)


def test_meta_gradient_through_the_inner_gradients(problem):
    start, losses = problem
    meta = make()
    expected, _ = expected_gradient(meta, start, losses, order=2)
    first_order, _ = expected_gradient(meta, start, losses, order=1)
    theta_0 = start.clone().requires_grad_()
    leaves = dict(meta.named_parameters()) | {"theta_0": theta_0}

    def query_loss() -> Tensor:
        return losses[-1](adapt(meta, theta_0, losses[:-1], order=2)[-1])

    grads = torch.autograd.grad(query_loss(), list(leaves.values()))
    for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
        assert_near(grad, expected[name], 1e-10, name)
        assert_near(grad, central_differences(query_loss, leaf), 1e-6, name)
    change = max((expected[name] - first_order[name]).norm() / expected[name].norm() for name in expected)
    assert change > 0.01


# Gradient descent as a special case


def test_zero_weights_are_gradient_descent(problem):
    start, losses = problem
    sgd, meta, decaying = (
        torch.stack(adapt(optimizer, start, losses[:STEPS], order=1))
        for optimizer in (SGD(0.1), gradient_descent(0.1), gradient_descent(0.1, forget_bias=5.0))
    )
    torch.testing.assert_close(meta, sgd, rtol=0, atol=1e-12)
    assert (sgd[-1] - start).abs().max() > 0.1
    assert (decaying - sgd).abs().max() > 0.01


# A factor for each layer


def test_each_layer_has_a_factor_of_its_gradient():
    """The gates see the gradient times the factor, as theta does; the head is what the lengths leave over."""
    lengths, start = (2, 3), random(9, seed=9)
    plain, layered = make(), MetaLSTM(MetaLSTM.Settings(hidden_size=HIDDEN, layer_rates=True), lengths).double()
    layered.load_state_dict(plain.state_dict() | {"log_factors": torch.tensor([0.5, -1.0, 2.0]).double()})
    factors = torch.tensor([0.5] * 2 + [-1.0] * 3 + [2.0] * 4, dtype=torch.float64).exp()
    recorded = recorded_steps(9)
    scaled = [(factors * grad, loss) for grad, loss in recorded]
    for (theta, state), (expected, other) in zip(
        replay(layered, start, recorded), replay(plain, start, scaled), strict=True
    ):
        torch.testing.assert_close(theta, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(layered.gates(state)[0], plain.gates(other)[0])
        torch.testing.assert_close(layered.gates(state)[1], factors * plain.gates(other)[1])
    loss = replay(layered, start, recorded)[-1][0].square().sum()
    (grad,) = torch.autograd.grad(loss, layered.log_factors)
    expected_grad = central_differences(
        lambda: replay(layered, start, recorded)[-1][0].square().sum(), layered.log_factors
    )
    assert_near(grad, expected_grad, 1e-6)


def test_factors_start_at_one_but_for_those_of_the_body():
    settings = MetaLSTM.Settings(layer_rates=True, body_factor=0.01)
    factors = MetaLSTM(settings, (2, 3)).factors(9)
    torch.testing.assert_close(factors, torch.tensor([0.01] * 5 + [1.0] * 4))
    assert torch.equal(MetaLSTM().factors(4), torch.ones(4))
    assert "log_factors" not in MetaLSTM().state_dict()


def test_gates_are_those_of_the_last_update():
    meta, start, recorded = make(), random(7, seed=9), recorded_steps(7)
    for (grad, _), (before, _), (after, state) in zip(
        recorded[1:], replay(meta, start, recorded), replay(meta, start, recorded)[1:], strict=False
    ):
        forget, rate = meta.gates(state)
        assert ((forget > 0) & (forget <= 1) & (rate > 0) & (rate <= 1)).all()
        torch.testing.assert_close(after, forget * before - rate * grad)
