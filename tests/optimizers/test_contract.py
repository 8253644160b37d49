"""What every entry of OPTIMIZERS must keep to. The tests iterate over the table itself."""

import json

import pytest
import torch
from torch import Tensor

from metalstm import settings
from metalstm.learners import Conv4
from metalstm.optimizers import OPTIMIZERS, InnerOptimizer
from tiny import SHAPE, random

LEARNER = Conv4(SHAPE, Conv4.Settings(filters=2))
N = LEARNER.n_body + 12


def make(name: str, seed: int = 0) -> InnerOptimizer:
    kind = OPTIMIZERS[name]
    return kind.build(kind.Settings(), LEARNER, torch.Generator().manual_seed(seed)).double()


@pytest.fixture(params=OPTIMIZERS)
def name(request) -> str:
    return request.param


@pytest.fixture
def optimizer(name) -> InnerOptimizer:
    return make(name)


def gradients(theta: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """Of a bowl that moves, and the loss there."""
    target = random(theta.shape[-1], seed=t)
    return 0.3 * (theta - target), 0.15 * (theta - target).square().mean(-1)


def steps(optimizer: InnerOptimizer, theta: Tensor, n: int = 3) -> list[tuple[Tensor, tuple]]:
    state, trajectory = optimizer.init(theta), []
    for t in range(n):
        theta, state = optimizer.update(theta, *gradients(theta, t), state)
        trajectory.append((theta, state))
    return trajectory


def test_settings_are_allowed_and_survive_json(name):
    kind = OPTIMIZERS[name]
    assert kind.label
    settings.check(kind.Settings())
    values = json.loads(json.dumps(settings.to_dict(kind.Settings())))
    assert settings.from_dict(kind.Settings, values) == kind.Settings()


def test_the_seed_decides_the_weights(name):
    one, again, other = (make(name, seed).state_dict() for seed in (0, 0, 1))
    assert one.keys() == again.keys()
    assert all(torch.equal(one[key], again[key]) for key in one)
    # Weights that start at a constant, as learned rates do, depend on no seed.
    drawn = [key for key, weight in one.items() if weight.numel() > 1 and weight.std() > 0]
    assert not drawn or any(not torch.equal(one[key], other[key]) for key in drawn)


@pytest.mark.parametrize("tasks", [(), (3,), (2, 3)])
def test_the_state_is_tensors_that_start_at_zero_and_keep_their_shapes(optimizer, tasks):
    theta = random(*tasks, N, seed=9)
    state = optimizer.init(theta)
    assert isinstance(state, tuple)
    assert all(isinstance(part, Tensor) and not part.any() and part.dtype == theta.dtype for part in state)
    assert all(part.shape[: len(tasks)] == tasks for part in state)
    for new, after in steps(optimizer, theta):
        assert new.shape == theta.shape
        assert new.isfinite().all()
        assert not torch.equal(new, theta)
        assert type(after) is type(state)
        assert [part.shape for part in after] == [part.shape for part in state]


@pytest.mark.parametrize("tasks", [(3,), (2, 3)])
def test_a_batch_of_tasks_equals_a_loop(optimizer, tasks):
    start = random(*tasks, N, seed=9)
    together = steps(optimizer, start)
    for index in torch.cartesian_prod(*map(torch.arange, tasks)).view(-1, len(tasks)).tolist():
        here = tuple(index)
        for (theta, state), (alone, own) in zip(together, steps(optimizer, start[here]), strict=True):
            torch.testing.assert_close(theta[here], alone, rtol=0, atol=1e-12)
            for part, expected in zip(state, own, strict=True):
                torch.testing.assert_close(part[here], expected, rtol=0, atol=1e-12)


def test_an_update_is_deterministic_and_changes_nothing_in_place(optimizer):
    weights = {key: value.clone() for key, value in optimizer.state_dict().items()}
    theta = random(2, N)
    before, state = theta.clone(), optimizer.init(theta)
    inputs = [theta, *gradients(theta, 0), *state]
    copies = [part.clone() for part in inputs]
    one, other = (optimizer.update(theta, *gradients(theta, 0), state) for _ in range(2))
    assert all(map(torch.equal, inputs, copies))
    assert torch.equal(one[0], other[0])
    assert all(map(torch.equal, one[1], other[1]))
    assert torch.equal(theta, before)
    assert all(torch.equal(weights[key], now) for key, now in optimizer.state_dict().items())


def test_nothing_depends_on_the_mode(optimizer):
    one = steps(optimizer.train(), random(N))[-1][0]
    assert torch.equal(steps(optimizer.eval(), random(N))[-1][0], one)


def test_every_weight_gets_a_gradient_and_theta_too(optimizer):
    theta = random(N).requires_grad_()
    steps(optimizer, theta)[-1][0].square().sum().backward()
    assert theta.grad is not None
    assert theta.grad.isfinite().all()
    assert theta.grad.all()
    for key, parameter in optimizer.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("tasks", [(), (2,)])
def test_gates_are_a_share_and_a_rate_for_each_coordinate(optimizer, tasks):
    (before, old), (after, state) = steps(optimizer, random(*tasks, N), 2)
    gates = optimizer.gates(state)
    if gates is None:
        assert optimizer.gates(old) is None
        return
    assert gates.shape == (2, *tasks, N)
    forget, rate = gates
    assert gates.isfinite().all()
    torch.testing.assert_close(after, forget * before - rate * gradients(before, 1)[0])


def test_it_moves_towards_the_minimum(optimizer):
    target, theta = random(N, seed=7), random(N, seed=8)
    state, start = optimizer.init(theta), (theta - target).norm()
    for _ in range(20):
        theta, state = optimizer.update(theta, theta - target, 0.5 * (theta - target).square().sum(), state)
    assert (theta - target).norm() < start


def test_zero_gradients_leave_finite_second_derivatives(optimizer):
    """As of a unit behind a ReLU that no image passes."""
    theta = random(N).requires_grad_()
    grad = theta * (torch.arange(N) % 3 > 0)
    new, _ = optimizer.update(theta, grad, theta.square().sum(), optimizer.init(theta))
    new.sum().backward()
    assert theta.grad is not None
    assert theta.grad.isfinite().all()


def test_the_number_of_classes_is_free(optimizer):
    """One optimizer serves heads of any length."""
    for n_way in (1, 2, 20):
        theta = random(LEARNER.n_body + n_way * (LEARNER.n_features + 1))
        assert steps(optimizer, theta, 1)[0][0].shape == theta.shape


def test_it_works_where_tensors_have_no_values(optimizer):
    """No step waits for a value, as it would on a GPU."""
    theta = random(2, N).to("meta")
    new, state = optimizer.to("meta").update(theta, theta, theta.sum(-1), optimizer.init(theta))
    assert new.device.type == "meta"
    assert all(part.device.type == "meta" for part in state)


def test_what_the_gates_see_gives_the_state_of_the_update(optimizer):
    theta = random(2, N)
    state = optimizer.init(theta)
    for t in range(3):
        loss_grad = gradients(theta, t)
        seen = optimizer.inputs(theta, *loss_grad)
        theta, after = optimizer.update(theta, *loss_grad, state)
        if seen:
            assert all(part.shape[0] == 2 for part in seen.values())
            for part, expected in zip(optimizer.see(seen, state), after, strict=True):
                torch.testing.assert_close(part, expected, rtol=0, atol=1e-9)
        else:
            with pytest.raises(NotImplementedError, match="look at nothing"):
                optimizer.see(seen, state)
        state = after


def test_every_input_matters_to_the_gates(optimizer):
    theta = random(N)
    _, state = steps(optimizer, theta, 1)[0]
    seen = optimizer.inputs(theta, *gradients(theta, 1))
    for name in seen:
        whole, without = (optimizer.see(seen | other, state) for other in ({}, {name: seen[name] + 0.1}))
        assert not torch.equal(optimizer.gates(whole), optimizer.gates(without)), name


def test_a_state_that_forgets_is_as_at_the_start(optimizer):
    theta = random(2, N)
    _, state = steps(optimizer, theta, 2)[-1]
    forgotten = optimizer.forget(state)
    assert forgotten is None or all(map(torch.equal, forgotten, optimizer.init(theta)))
