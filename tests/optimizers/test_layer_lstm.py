"""The LSTM of layers: against a slow reference and central differences."""

import numpy as np
import torch
from torch import Tensor

from metalstm.learners import Conv4
from metalstm.optimizers import LayerLSTM
from metalstm.optimizers.layer_lstm import FLOOR
from reference import layer_lstm_numpy
from tiny import SHAPE, assert_near, random

LEARNER = Conv4(SHAPE, Conv4.Settings(filters=2))
LENGTHS = [*LEARNER.lengths, 12]
N = sum(LENGTHS)


def make(hidden_size: int = 3) -> LayerLSTM:
    """With weights that all matter, so that rates, shares and mixtures differ between layers, tasks and steps."""
    optimizer = LayerLSTM(LEARNER, hidden_size, 0.05).double()
    with torch.no_grad():
        for k, parameter in enumerate(optimizer.parameters()):
            parameter.copy_(0.5 * random(*parameter.shape, seed=50 + k))
    return optimizer


def gradient(theta: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """Of a bowl that moves, which is steep here and flat there, and its height."""
    steepness = torch.linspace(0.1, 3.0, N, dtype=theta.dtype)
    apart = theta - random(N, seed=t)
    return steepness * apart, (steepness * apart.square()).mean(-1)


def adapt(optimizer: LayerLSTM, theta: Tensor, n_steps: int = 4) -> list[Tensor]:
    state, thetas = optimizer.init(theta), []
    for t in range(n_steps):
        theta, state = optimizer.update(theta, *gradient(theta, t), state)
        thetas.append(theta)
    return thetas


def test_steps_are_those_of_the_reference():
    optimizer, start = make(), random(2, N, seed=9)
    weights = {name: value.detach().numpy() for name, value in optimizer.named_parameters()}
    thetas = adapt(optimizer, start)
    for task in range(2):
        theta = np.split(start[task].numpy(), np.cumsum(LENGTHS)[:-1])
        state = layer_lstm_numpy.start(len(LENGTHS), 3)
        for t, expected in enumerate(thetas):
            grad, loss = gradient(torch.from_numpy(np.concatenate(theta)), t)
            layers = np.split(grad.numpy(), np.cumsum(LENGTHS)[:-1])
            theta, state = layer_lstm_numpy.step(weights, 0.05, theta, layers, loss.item(), state)
            np.testing.assert_allclose(np.concatenate(theta), expected[task].detach().numpy(), rtol=1e-10, atol=1e-12)


def test_the_meta_gradient_equals_central_differences():
    """Through four steps, their gradients included."""
    optimizer, start = make(), random(2, N, seed=9).requires_grad_()
    leaves = dict(optimizer.named_parameters()) | {"theta_0": start}

    def loss() -> Tensor:
        return adapt(optimizer, start)[-1].square().sum()

    grads = torch.autograd.grad(loss(), list(leaves.values()))
    for k, ((name, leaf), grad) in enumerate(zip(leaves.items(), grads, strict=True)):
        direction, before, values = random(*leaf.shape, seed=k), leaf.detach().clone(), []
        for sign in (1, -1):
            with torch.no_grad():
                leaf.copy_(before + sign * 1e-6 * direction)
                values.append(loss().detach())
                leaf.copy_(before)
        numeric = (values[0] - values[1]) / 2e-6
        assert_near((grad * direction).sum(), numeric, 1e-5, name)


def test_before_meta_training_a_step_changes_each_layer_by_the_start_rate():
    """The first direction is the gradient, whatever the mixture; a layer of zeros moves too."""
    optimizer, theta = LayerLSTM(LEARNER, 3, 0.05).double(), random(N, seed=9)
    with torch.no_grad():
        optimizer.weight_out.zero_()
    theta[: LENGTHS[0]] = 0
    grad, loss = gradient(theta, 0)
    new, _ = optimizer.update(theta, grad, loss, optimizer.init(theta))
    for w, g, moved in zip(*(each.split(LENGTHS) for each in (theta, grad, theta - new)), strict=True):
        length = 0.05 * (w.square().mean() + FLOOR**2).sqrt()
        torch.testing.assert_close(moved, length * g / g.square().mean().sqrt(), rtol=1e-6, atol=1e-12)


def test_steps_do_not_depend_on_the_units_of_a_gradient_that_the_gates_do_not_see():
    optimizer, theta = make(), random(N)
    with torch.no_grad():
        optimizer.weight_x[:, 1] = 0  # the norm of the gradient
    grad, loss = gradient(theta, 0)
    one, other = (optimizer.update(theta, scale * grad, loss, optimizer.init(theta))[0] for scale in (1.0, 1000.0))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_one_optimizer_serves_learners_of_any_width():
    wide = Conv4(SHAPE, Conv4.Settings(filters=5))
    other = LayerLSTM(wide, 3).double()
    other.load_state_dict(make().state_dict())
    theta = random(wide.n_body + 15)
    new, _ = other.update(theta, random(*theta.shape, seed=1), theta.square().mean(), other.init(theta))
    assert new.isfinite().all()
