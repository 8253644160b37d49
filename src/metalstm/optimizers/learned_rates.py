"""A learned table of rates: one for each layer and step."""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor, nn

from metalstm.learners import Learner
from metalstm.optimizers.base import InnerOptimizer
from metalstm.optimizers.rules import Same, Steps, StepState, no_steps
from metalstm.settings import Positive


class LearnedRates(InnerOptimizer[StepState]):
    """Gradient descent with a learned rate for each parameter of the learner and each inner step (LSLR).

    Steps beyond the table take its last rates.

    Args:
        learner: Whose parameters, in theta, have rates of their own; the head is one.
        steps: Rows of the table.
        start_rate: Where all rates start.

    References:
        Antoniou, Edwards & Storkey 2019 (arXiv 1810.09502), section 4.
    """

    @dataclass(frozen=True)
    class Settings:
        """The table."""

        steps: Annotated[int, Meta(ge=1, le=1000)] = 5
        """Inner steps that have rates of their own; those beyond take the last ones."""
        start_rate: Positive = 0.1
        """Where all learned rates start."""

    label = "learned rates"

    def __init__(self, learner: Learner, steps: int = 5, start_rate: float = 0.1):
        super().__init__()
        self.lengths = learner.lengths
        self.rates = nn.Parameter(torch.full((steps, len(learner.lengths) + 1), start_rate))

    @classmethod
    def build(cls, settings: Settings, learner: Learner, generator: torch.Generator) -> "LearnedRates":
        """A table for a learner."""
        return cls(learner, settings.steps, settings.start_rate)

    def init(self, theta: Same) -> StepState:
        """No steps done."""
        return StepState(no_steps(theta))

    def update(
        self, theta: Same, grad: Same, loss: Float[Tensor, "*tasks"], state: StepState
    ) -> tuple[Same, StepState]:
        """One step down the gradient; arguments as in `InnerOptimizer.update`."""
        rates = spread(at_step(self.rates, state.t), self.lengths, theta)
        return theta - rates * grad, StepState(state.t + 1)


def at_step(table: Float[Tensor, "n_steps n_layers"], t: Steps) -> Float[Tensor, "*tasks n_layers"]:
    """The row of each task's step; beyond the table, its last one."""
    return table[t.squeeze(-1).long().clamp(max=len(table) - 1)]


def spread(values: Float[Tensor, "*tasks n_layers"], lengths: list[int], theta: Same) -> Same:
    """One value for each stretch of theta, repeated for all its coordinates; the last is for what lies behind."""
    n_each = [*lengths, theta.shape[-1] - sum(lengths)]
    return torch.cat([values[..., k : k + 1].expand(*theta.shape[:-1], n) for k, n in enumerate(n_each)], -1)
