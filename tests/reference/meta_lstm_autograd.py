"""The Meta-Learner LSTM's whole inner loop left to autograd (Ravi & Larochelle 2017, section 3)."""

from collections.abc import Callable, Iterable, Sequence
from math import exp
from typing import NamedTuple

import torch
from torch import Tensor

P = 10.0

Weights = dict[str, Tensor]
Loss = Callable[[Tensor], Tensor]


class State(NamedTuple):
    """What every coordinate carries from step to step; f and i are the gates before the sigmoid."""

    h: Tensor  # (n_params, hidden)
    c: Tensor  # (n_params, hidden)
    f: Tensor  # (n_params,)
    i: Tensor  # (n_params,)


def zeros(theta: Tensor, hidden: int) -> State:
    h = theta.new_zeros(len(theta), hidden)
    return State(h, h, theta.new_zeros(len(theta)), theta.new_zeros(len(theta)))


def preprocess(x: Tensor) -> Tensor:
    """Section 3.2: `(log|x| / p, sign x)` where `|x| >= e^-p`, else `(-1, e^p x)`; one row a value."""
    large = x.abs() >= exp(-P)
    first, second = torch.full_like(x, -1.0), exp(P) * x
    first[large] = x[large].abs().log() / P
    second[large] = x[large].sign()
    return torch.column_stack([first, second])


def step(weights: Weights, theta: Tensor, grad: Tensor, loss: Tensor, state: State) -> tuple[Tensor, State]:
    """`theta_t = f_t theta_{t-1} - i_t grad_t`; the coordinates are the batch of one shared LSTM."""
    n_params = len(theta)
    inputs = torch.cat([preprocess(grad), preprocess(loss.reshape(1)).expand(n_params, 2)], dim=1)
    total = inputs @ weights["weight_x"].T + state.h @ weights["weight_h"].T + weights["bias"]
    i, f, g, o = total.chunk(4, dim=1)
    c = f.sigmoid() * state.c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    gate_f = torch.column_stack([h, theta, state.f]) @ weights["weight_f"] + weights["bias_f"]
    gate_i = torch.column_stack([h, theta, state.i]) @ weights["weight_i"] + weights["bias_i"]
    theta = gate_f.sigmoid() * theta - gate_i.sigmoid() * grad
    return theta, State(h, c, gate_f, gate_i)


def replay(weights: Weights, theta_0: Tensor, recorded: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """theta_T over recorded gradients and losses: the chain of cell states alone."""
    theta, state = theta_0, zeros(theta_0, weights["weight_h"].shape[1])
    for grad, loss in recorded:
        theta, state = step(weights, theta, grad, loss, state)
    return theta


def adapt(
    weights: Weights, theta_0: Tensor, losses: Sequence[Loss], *, order: int, divisors: Sequence[int] | None = None
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """theta_T over a sequence of inner losses, and the gradient and loss of every step.

    Order 1 is the paper's gradient independence (section 3.3): gradients and losses are constants. Order 2
    differentiates them too. The gradient of step t is divided by `divisors[t]`.
    """
    theta, state, recorded = theta_0, zeros(theta_0, weights["weight_h"].shape[1]), []
    for inner_loss, divisor in zip(losses, divisors or [1] * len(losses), strict=True):
        loss = inner_loss(theta)
        (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
        grad = grad / divisor
        if order == 1:
            grad, loss = grad.detach(), loss.detach()
        recorded.append((grad, loss))
        theta, state = step(weights, theta, grad, loss, state)
    return theta, recorded
