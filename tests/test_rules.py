"""Inner optimisers with a fixed rule: equal to torch.optim in float64."""

import pytest
import torch
from torch import Tensor

from metalstm.optimizers.rules import SGD


def quadratic_gradient(theta: Tensor) -> Tensor:
    curvature = torch.linspace(0.1, 3.0, theta.shape[-1], dtype=theta.dtype)
    return curvature * (theta - 1) + 0.1 * theta.sin()


@pytest.mark.parametrize("lr", [0.3, 0.01, 0.0])
def test_sgd_equals_torch(lr):
    start = torch.randn(37, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.Parameter(start.clone())
    torch_sgd = torch.optim.SGD([expected], lr=lr)
    rule, theta = SGD(lr), start
    state = rule.init(theta)
    for _ in range(10):
        expected.grad = quadratic_gradient(expected.detach())
        torch_sgd.step()
        theta, state = rule.update(theta, quadratic_gradient(theta), theta.new_zeros(()), state)
        assert torch.equal(theta, expected.detach())
    assert torch.equal(theta, start) == (lr == 0.0)


@pytest.mark.parametrize("tasks", [(), (3,), (2, 3)])
def test_sgd_serves_any_number_of_tasks(tasks):
    rule = SGD(0.1)
    theta = torch.randn(*tasks, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    grad, before = quadratic_gradient(theta), theta.clone()
    new, state = rule.update(theta, grad, theta.new_zeros(tasks), rule.init(theta))
    torch.testing.assert_close(new, theta - 0.1 * grad, rtol=0, atol=1e-15)
    assert state == ()
    assert torch.equal(theta, before)


def test_sgd_lets_gradients_through():
    theta = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    rule = SGD(0.1)
    assert torch.autograd.gradcheck(lambda t: rule.update(t, t.sin(), t.sum(), ())[0], theta)


def test_sgd_has_nothing_to_learn():
    assert list(SGD(0.1).parameters()) == []
