"""Inner optimisers with a fixed rule, the arithmetic of `torch.optim` without its state.

Each has a `decay`: step t, counted from 0, takes the rate lr / (1 + t * decay), as Torch7's optimisers do. Nothing in
them is learned.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalstm.optimizers.base import InnerOptimizer

# The states; every tensor has theta's shape but the number of steps done, which each task has one of.
Steps = Float[Tensor, "*tasks 1"]
Same = Float[Tensor, "*tasks n_params"]


class StepState(NamedTuple):
    """Of a rule without memory."""

    t: Steps


class MomentState(NamedTuple):
    """Of a rule that remembers one number a coordinate."""

    t: Steps
    m: Same


class TwoMomentState(NamedTuple):
    """Of a rule that remembers two."""

    t: Steps
    m: Same
    v: Same


class SGD(InnerOptimizer[StepState]):
    """Plain gradient descent: theta <- theta - lr * grad.

    Args:
        lr: Learning rate.
        decay: How fast it falls.
    """

    def __init__(self, lr: float, decay: float = 0.0):
        super().__init__()
        self.lr, self.decay = lr, decay

    def init(self, theta: Same) -> StepState:
        """No steps done."""
        return StepState(_no_steps(theta))

    def update(self, theta: Same, grad: Same, loss: Tensor, state: StepState) -> tuple[Same, StepState]:
        """One step down the gradient; arguments as in `InnerOptimizer.update`."""
        return theta - _rate(self.lr, self.decay, state.t) * grad, StepState(state.t + 1)


class Momentum(InnerOptimizer[MomentState]):
    """Gradient descent with heavy-ball momentum: m <- momentum * m + grad; theta <- theta - lr * m.

    Args:
        lr: Learning rate.
        decay: How fast it falls.
        momentum: Share of the last direction that is kept.

    References:
        Polyak 1964; without dampening, as in `torch.optim.SGD`.
    """

    def __init__(self, lr: float, decay: float = 0.0, momentum: float = 0.9):
        super().__init__()
        self.lr, self.decay, self.momentum = lr, decay, momentum

    def init(self, theta: Same) -> MomentState:
        """At rest."""
        return MomentState(_no_steps(theta), torch.zeros_like(theta))

    def update(self, theta: Same, grad: Same, loss: Tensor, state: MomentState) -> tuple[Same, MomentState]:
        """One step; arguments as in `InnerOptimizer.update`."""
        m = self.momentum * state.m + grad
        return theta - _rate(self.lr, self.decay, state.t) * m, MomentState(state.t + 1, m)


class Adagrad(InnerOptimizer[MomentState]):
    """Each coordinate's rate falls with all the gradient that it has seen.

    Args:
        lr: Learning rate.
        decay: How fast it falls, beside that.
        eps: Added to the root of the sum of squares.

    References:
        Duchi, Hazan & Singer 2011.
    """

    def __init__(self, lr: float, decay: float = 0.0, eps: float = 1e-10):
        super().__init__()
        self.lr, self.decay, self.eps = lr, decay, eps

    def init(self, theta: Same) -> MomentState:
        """Nothing seen."""
        return MomentState(_no_steps(theta), torch.zeros_like(theta))

    def update(self, theta: Same, grad: Same, loss: Tensor, state: MomentState) -> tuple[Same, MomentState]:
        """One step; arguments as in `InnerOptimizer.update`."""
        m = state.m + grad**2
        step = grad / (m.sqrt() + self.eps)
        return theta - _rate(self.lr, self.decay, state.t) * step, MomentState(state.t + 1, m)


class Adadelta(InnerOptimizer[TwoMomentState]):
    """Steps in theta's own units: their size so far over the gradient's.

    Args:
        lr: Scale of a step; 1 in the paper that made it.
        decay: How fast it falls.
        rho: Weight of the past in both averages.
        eps: Added to both averages; it sets the size of the first steps.

    References:
        Zeiler 2012 (arXiv 1212.5701).
    """

    def __init__(self, lr: float, decay: float = 0.0, rho: float = 0.9, eps: float = 1e-6):
        super().__init__()
        self.lr, self.decay, self.rho, self.eps = lr, decay, rho, eps

    def init(self, theta: Same) -> TwoMomentState:
        """Nothing seen, nothing done."""
        return TwoMomentState(_no_steps(theta), torch.zeros_like(theta), torch.zeros_like(theta))

    def update(self, theta: Same, grad: Same, loss: Tensor, state: TwoMomentState) -> tuple[Same, TwoMomentState]:
        """One step; arguments as in `InnerOptimizer.update`."""
        m = self.rho * state.m + (1 - self.rho) * grad**2
        step = (state.v + self.eps).sqrt() / (m + self.eps).sqrt() * grad
        v = self.rho * state.v + (1 - self.rho) * step**2
        return theta - _rate(self.lr, self.decay, state.t) * step, TwoMomentState(state.t + 1, m, v)


class Adam(InnerOptimizer[TwoMomentState]):
    """The mean of gradients over the root of the mean of their squares, both averages corrected for their start at 0.

    Args:
        lr: Learning rate.
        decay: How fast it falls.
        betas: Weights of the past in the two averages.
        eps: Added to the root.

    References:
        Kingma & Ba 2015, algorithm 1.
    """

    def __init__(self, lr: float, decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        super().__init__()
        self.lr, self.decay, self.betas, self.eps = lr, decay, betas, eps

    def init(self, theta: Same) -> TwoMomentState:
        """Both averages 0."""
        return TwoMomentState(_no_steps(theta), torch.zeros_like(theta), torch.zeros_like(theta))

    def update(self, theta: Same, grad: Same, loss: Tensor, state: TwoMomentState) -> tuple[Same, TwoMomentState]:
        """One step; arguments as in `InnerOptimizer.update`."""
        t = state.t + 1
        beta_m, beta_v = self.betas
        m = beta_m * state.m + (1 - beta_m) * grad
        v = beta_v * state.v + (1 - beta_v) * grad**2
        step = m / (1 - beta_m**t) / ((v / (1 - beta_v**t)).sqrt() + self.eps)
        return theta - _rate(self.lr, self.decay, state.t) * step, TwoMomentState(t, m, v)


RULES = {"sgd": SGD, "momentum": Momentum, "adagrad": Adagrad, "adadelta": Adadelta, "adam": Adam}


def _no_steps(theta: Tensor) -> Tensor:
    return theta.new_zeros(*theta.shape[:-1], 1)


def _rate(lr: float, decay: float, t: Tensor) -> Tensor | float:
    return lr / (1 + decay * t) if decay else lr
