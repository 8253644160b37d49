"""Inner optimizers with a fixed rule: equal to torch.optim in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metalstm.learners import Linear
from metalstm.optimizers import RULES, SGD, Adadelta, Adagrad, Adam, InnerOptimizer, Momentum
from tiny import random

TORCH: dict[str, Callable[[list[Tensor], float], torch.optim.Optimizer]] = {
    "sgd": lambda theta, lr: torch.optim.SGD(theta, lr),
    "momentum": lambda theta, lr: torch.optim.SGD(theta, lr, momentum=0.9),
    "adagrad": lambda theta, lr: torch.optim.Adagrad(theta, lr),
    "adadelta": lambda theta, lr: torch.optim.Adadelta(theta, lr),
    "adam": lambda theta, lr: torch.optim.Adam(theta, lr),
}


def quadratic_gradient(theta: Tensor) -> Tensor:
    curvature = torch.linspace(0.1, 3.0, theta.shape[-1], dtype=theta.dtype)
    return curvature * (theta - 1) + 0.1 * theta.sin()


def ten_steps(rule: InnerOptimizer, theta: Tensor) -> list[Tensor]:
    state, thetas = rule.init(theta), []
    for _ in range(10):
        theta, state = rule.update(theta, quadratic_gradient(theta), theta.new_zeros(theta.shape[:-1]), state)
        thetas.append(theta)
    return thetas


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("lr", [0.3, 0.01, 0.0])
def test_ten_steps_equal_those_of_torch(name, lr, decay):
    start = random(37)
    start[5] = 1.0  # where the gradient is next to nothing
    expected = torch.nn.Parameter(start.clone())
    optimizer = TORCH[name]([expected], lr)
    for t, theta in enumerate(ten_steps(RULES[name](lr, decay), start)):
        optimizer.param_groups[0]["lr"] = lr / (1 + t * decay)
        expected.grad = quadratic_gradient(expected.detach())
        optimizer.step()
        torch.testing.assert_close(theta, expected.detach(), rtol=1e-12, atol=1e-14)
        assert torch.equal(theta, start) == (lr == 0.0)


def test_decay_is_that_of_torchs_adagrad():
    start = random(5)
    expected = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adagrad([expected], 0.1, lr_decay=0.5)
    for theta in ten_steps(Adagrad(0.1, 0.5), start):
        expected.grad = quadratic_gradient(expected.detach())
        optimizer.step()
        torch.testing.assert_close(theta, expected.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        (Momentum(0.1, momentum=0.5), lambda theta: torch.optim.SGD(theta, 0.1, momentum=0.5)),
        (Adagrad(0.1, eps=0.1), lambda theta: torch.optim.Adagrad(theta, 0.1, eps=0.1)),
        (Adadelta(2.0, rho=0.5, eps=1e-2), lambda theta: torch.optim.Adadelta(theta, 2.0, rho=0.5, eps=1e-2)),
        (Adam(0.1, betas=(0.5, 0.6), eps=0.1), lambda theta: torch.optim.Adam(theta, 0.1, (0.5, 0.6), eps=0.1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_constants_mean_what_they_do_in_torch(rule, optimizer):
    start = random(5)
    expected = torch.nn.Parameter(start.clone())
    stepped = optimizer([expected])
    for theta in ten_steps(rule, start):
        expected.grad = quadratic_gradient(expected.detach())
        stepped.step()
        torch.testing.assert_close(theta, expected.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("tasks", [(3,), (2, 3)])
def test_tasks_do_not_mix(name, tasks):
    """A batch of tasks goes where each of them goes alone."""
    rule, theta = RULES[name](0.1, 0.3), random(*tasks, 5, seed=1)
    before = theta.clone()
    together = ten_steps(rule, theta)[-1]
    alone = torch.stack([ten_steps(rule, one)[-1] for one in theta.reshape(-1, 5)]).view(theta.shape)
    torch.testing.assert_close(together, alone, rtol=1e-14, atol=1e-15)
    assert torch.equal(theta, before)


def test_sgd_lets_gradients_through():
    theta = random(5, seed=2).requires_grad_()
    rule = SGD(0.1)
    assert torch.autograd.gradcheck(lambda t: rule.update(t, t.sin(), t.sum(), rule.init(t))[0], theta)


@pytest.mark.parametrize("name", RULES)
def test_second_derivatives_are_those_of_central_differences_and_finite_where_a_gradient_is_zero(name):
    """Three steps, differentiated through the gradients; the gradient of the last coordinate is always 0."""
    rule, start = RULES[name](0.1, 0.3), random(5, seed=2)
    mask = torch.tensor([1.0, 1, 1, 1, 0], dtype=torch.float64)

    def after(theta: Tensor) -> Tensor:
        state = rule.init(theta)
        for _ in range(3):
            theta, state = rule.update(theta, mask * quadratic_gradient(theta), theta.sum(), state)
        return theta

    assert torch.autograd.gradcheck(after, start.requires_grad_(), atol=1e-6, rtol=1e-5)
    (grad,) = torch.autograd.grad(after(start).sum(), start)
    assert grad.isfinite().all()
    assert grad[-1] == 1


@pytest.mark.parametrize("name", RULES)
def test_settings_are_a_rate_and_its_decay(name):
    rule = RULES[name].build(RULES[name].Settings(rate=0.3, decay=0.5), Linear((1, 1, 2)), torch.Generator())
    assert isinstance(rule, RULES[name])
    assert (rule.rate, rule.decay) == (0.3, 0.5)
    assert rule.rate_at(torch.tensor(2.0)) == pytest.approx(0.3 / 2)
    assert rule.gates(rule.init(random(3))) is None


@pytest.mark.parametrize("name", RULES)
def test_fixed_rules_have_nothing_to_learn(name):
    assert list(RULES[name](0.1).parameters()) == []
