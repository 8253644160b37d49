"""Inner optimizers with a fixed rule, the arithmetic of `torch.optim` without its state.

Step t, counted from 0, takes the rate `rate / (1 + t * decay)`, as Torch7's optimizers do. Nothing in them is learned.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalstm.optimizers.base import InnerOptimizer, State
from metalstm.settings import NotNegative

# The states; every tensor has theta's shape but the number of steps done, which each task has one of.
Steps = Float[Tensor, "*tasks 1"]
Same = Float[Tensor, "*tasks n_params"]


class StepState(NamedTuple):
    """Of a rule without memory."""

    t: Steps


class GateState(NamedTuple):
    """Of an optimizer whose gates depend on the step: steps done, and the gates of the last one, to be looked at."""

    t: Steps
    f: Same
    i: Same


class MomentState(NamedTuple):
    """Of a rule that remembers one number a coordinate."""

    t: Steps
    m: Same


class TwoMomentState(NamedTuple):
    """Of a rule that remembers two."""

    t: Steps
    m: Same
    v: Same


class Rule(InnerOptimizer[State]):
    """A fixed rule.

    Args:
        rate: Learning rate of the first step.
        decay: How fast it falls.
    """

    @dataclass(frozen=True)
    class Settings:
        """A learning rate and how fast it falls."""

        rate: NotNegative = 0.01
        """Learning rate of the first inner step."""
        decay: NotNegative = 0.0
        """Inner step t takes rate / (1 + t * decay)."""

    half_decades: ClassVar[range]  # learning rates 10^(k/2) with which a search starts

    def __init__(self, rate: float, decay: float = 0.0):
        super().__init__()
        self.rate, self.decay = rate, decay

    def rate_at(self, t: Tensor) -> Tensor | float:
        """The learning rate after t steps."""
        return self.rate / (1 + self.decay * t) if self.decay else self.rate


class SGD(Rule[StepState]):
    """Plain gradient descent: theta <- theta - rate * grad.

    Args:
        rate: Learning rate.
        decay: How fast it falls.
    """

    label = "SGD"
    half_decades = range(-6, 1)

    def init(self, theta: Same) -> StepState:
        """No steps done."""
        return StepState(no_steps(theta))

    def update(self, theta: Same, grad: Same, loss: Tensor, state: StepState) -> tuple[Same, StepState]:
        """One step down the gradient; arguments as in `InnerOptimizer.update`."""
        return theta - self.rate_at(state.t) * grad, StepState(state.t + 1)


class Momentum(Rule[MomentState]):
    """Gradient descent with heavy-ball momentum: m <- momentum * m + grad; theta <- theta - rate * m.

    Args:
        rate: Learning rate.
        decay: How fast it falls.
        momentum: Share of the last direction that is kept.

    References:
        Polyak 1964; without dampening, as in `torch.optim.SGD`.
    """

    label = "momentum"
    half_decades = range(-7, 0)

    def __init__(self, rate: float, decay: float = 0.0, momentum: float = 0.9):
        super().__init__(rate, decay)
        self.momentum = momentum

    def init(self, theta: Same) -> MomentState:
        """At rest."""
        return MomentState(no_steps(theta), torch.zeros_like(theta))

    def update(self, theta: Same, grad: Same, loss: Tensor, state: MomentState) -> tuple[Same, MomentState]:
        """One step; arguments as in `InnerOptimizer.update`."""
        m = self.momentum * state.m + grad
        return theta - self.rate_at(state.t) * m, MomentState(state.t + 1, m)


class Adagrad(Rule[MomentState]):
    """Each coordinate's rate falls with all the gradient that it has seen.

    Args:
        rate: Learning rate.
        decay: How fast it falls, beside that.
        eps: Added to the root of the sum of squares.

    References:
        Duchi, Hazan & Singer 2011.
    """

    label = "Adagrad"
    half_decades = range(-7, 0)

    def __init__(self, rate: float, decay: float = 0.0, eps: float = 1e-10):
        super().__init__(rate, decay)
        self.eps = eps

    def init(self, theta: Same) -> MomentState:
        """Nothing seen."""
        return MomentState(no_steps(theta), torch.zeros_like(theta))

    def update(self, theta: Same, grad: Same, loss: Tensor, state: MomentState) -> tuple[Same, MomentState]:
        """One step; arguments as in `InnerOptimizer.update`."""
        m = state.m + grad**2
        step = grad / (_root(m) + self.eps)
        return theta - self.rate_at(state.t) * step, MomentState(state.t + 1, m)


class Adadelta(Rule[TwoMomentState]):
    """Steps in theta's own units: their size so far over the gradient's.

    Args:
        rate: Scale of a step; 1 in the paper that made it.
        decay: How fast it falls.
        rho: Weight of the past in both averages.
        eps: Added to both averages; it sets the size of the first steps.

    References:
        Zeiler 2012 (arXiv 1212.5701).
    """

    label = "Adadelta"
    half_decades = range(-4, 3)

    def __init__(self, rate: float, decay: float = 0.0, rho: float = 0.9, eps: float = 1e-6):
        super().__init__(rate, decay)
        self.rho, self.eps = rho, eps

    def init(self, theta: Same) -> TwoMomentState:
        """Nothing seen, nothing done."""
        return TwoMomentState(no_steps(theta), torch.zeros_like(theta), torch.zeros_like(theta))

    def update(self, theta: Same, grad: Same, loss: Tensor, state: TwoMomentState) -> tuple[Same, TwoMomentState]:
        """One step; arguments as in `InnerOptimizer.update`."""
        m = self.rho * state.m + (1 - self.rho) * grad**2
        step = (state.v + self.eps).sqrt() / (m + self.eps).sqrt() * grad
        v = self.rho * state.v + (1 - self.rho) * step**2
        return theta - self.rate_at(state.t) * step, TwoMomentState(state.t + 1, m, v)


class Adam(Rule[TwoMomentState]):
    """The mean of gradients over the root of the mean of their squares, both averages corrected for their start at 0.

    Args:
        rate: Learning rate.
        decay: How fast it falls.
        betas: Weights of the past in the two averages.
        eps: Added to the root.

    References:
        Kingma & Ba 2015, algorithm 1.
    """

    label = "Adam"
    half_decades = range(-9, -2)

    def __init__(self, rate: float, decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        super().__init__(rate, decay)
        self.betas, self.eps = betas, eps

    def init(self, theta: Same) -> TwoMomentState:
        """Both averages 0."""
        return TwoMomentState(no_steps(theta), torch.zeros_like(theta), torch.zeros_like(theta))

    def update(self, theta: Same, grad: Same, loss: Tensor, state: TwoMomentState) -> tuple[Same, TwoMomentState]:
        """One step; arguments as in `InnerOptimizer.update`."""
        t = state.t + 1
        beta_m, beta_v = self.betas
        m = beta_m * state.m + (1 - beta_m) * grad
        v = beta_v * state.v + (1 - beta_v) * grad**2
        step = m / (1 - beta_m**t) / (_root(v / (1 - beta_v**t)) + self.eps)
        return theta - self.rate_at(state.t) * step, TwoMomentState(t, m, v)


def _root(squares: Tensor) -> Tensor:
    """The root, with a slope of 0 at 0: where a gradient is 0, second derivatives would be NaN otherwise."""
    return squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()


def no_steps(theta: Same) -> Steps:
    """A count of steps for each task, at 0."""
    return theta.new_zeros(*theta.shape[:-1], 1)
