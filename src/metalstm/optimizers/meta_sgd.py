"""Meta-SGD: a learned rate for each coordinate."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalstm.learners import Learner
from metalstm.optimizers.base import InnerOptimizer
from metalstm.settings import Positive


class RateState(NamedTuple):
    """The rates of the last step, to be looked at."""

    i: Float[Tensor, "*tasks n_params"]


class MetaSGD(InnerOptimizer[RateState]):
    """theta <- theta - rate * grad, with a learned rate for each coordinate; all head rows share theirs.

    Args:
        learner: Whose coordinates have rates.
        start_rate: Where all rates start.

    References:
        Li et al. 2017 (arXiv 1707.09835), equation 2.
    """

    @dataclass(frozen=True)
    class Settings:
        """The rates."""

        start_rate: Positive = 0.1
        """Where all learned rates start."""

    label = "Meta-SGD"

    def __init__(self, learner: Learner, start_rate: float = 0.1):
        super().__init__()
        self.body_rates = nn.Parameter(torch.full((learner.n_body,), start_rate))
        self.head_rates = nn.Parameter(torch.full((learner.n_features + 1,), start_rate))

    @classmethod
    def build(cls, settings: Settings, learner: Learner, generator: torch.Generator) -> "MetaSGD":
        """Rates for a learner."""
        return cls(learner, settings.start_rate)

    def init(self, theta: Float[Tensor, "*tasks n_params"]) -> RateState:
        """No step yet."""
        return RateState(torch.zeros_like(theta))

    def gates(self, state: RateState) -> Float[Tensor, "2 *tasks n_params"]:
        """1, and the rates."""
        return torch.stack([torch.ones_like(state.i), state.i])

    def update(
        self,
        theta: Float[Tensor, "*tasks n_params"],
        grad: Float[Tensor, "*tasks n_params"],
        loss: Float[Tensor, "*tasks"],
        state: RateState,
    ) -> tuple[Float[Tensor, "*tasks n_params"], RateState]:
        """One step; arguments as in `InnerOptimizer.update`."""
        n_way = (theta.shape[-1] - len(self.body_rates)) // len(self.head_rates)
        i = torch.cat([self.body_rates, self.head_rates.repeat(n_way)]).expand_as(theta)
        return theta - i * grad, RateState(i)
