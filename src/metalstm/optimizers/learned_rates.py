"""A learned table of rates: one for each layer and step."""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor, nn

from metalstm.learners import Learner
from metalstm.optimizers.base import InnerOptimizer
from metalstm.optimizers.rules import GateState, Same, Steps, no_steps
from metalstm.settings import Positive


class LearnedRates(InnerOptimizer[GateState]):
    """theta <- f * theta - i * grad, with a learned i for each parameter of the learner and each inner step (LSLR).

    f is 1, or learned just so. Steps beyond the table take its last row.

    Args:
        learner: Whose parameters, in theta, have rates of their own; the head is one.
        steps: Rows of the table.
        start_rate: Where all rates start.
        forget_gate: Whether f is learned too; it starts at 1.

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
        forget_gate: bool = False
        """Learn the share f of theta that a step keeps as well, for each of the learner's parameters and each step:
        all that the Meta-LSTM can do without looking at the task. f starts at 1."""

    label = "learned rates"

    def __init__(self, learner: Learner, steps: int = 5, start_rate: float = 0.1, forget_gate: bool = False):
        super().__init__()
        self.lengths = learner.lengths
        shape = steps, len(learner.lengths) + 1
        self.rates = nn.Parameter(torch.full(shape, start_rate))
        self.keeps = nn.Parameter(torch.ones(shape)) if forget_gate else None

    @classmethod
    def build(cls, settings: Settings, learner: Learner, generator: torch.Generator) -> "LearnedRates":
        """A table for a learner."""
        return cls(learner, settings.steps, settings.start_rate, settings.forget_gate)

    def init(self, theta: Same) -> GateState:
        """No steps done."""
        return GateState(no_steps(theta), torch.zeros_like(theta), torch.zeros_like(theta))

    def gates(self, state: GateState) -> Float[Tensor, "2 *tasks n_params"]:
        """The share f and the rate i of the last step."""
        return torch.stack([state.f, state.i])

    def update(
        self, theta: Same, grad: Same, loss: Float[Tensor, "*tasks"], state: GateState
    ) -> tuple[Same, GateState]:
        """One step; arguments as in `InnerOptimizer.update`."""
        i = spread(at_step(self.rates, state.t), self.lengths, theta)
        if self.keeps is None:
            return theta - i * grad, GateState(state.t + 1, torch.ones_like(theta), i)
        f = spread(at_step(self.keeps, state.t), self.lengths, theta)
        return f * theta - i * grad, GateState(state.t + 1, f, i)


def at_step(table: Float[Tensor, "n_steps *row"], t: Steps) -> Float[Tensor, "..."]:
    """The row of each task's step, (*tasks, *row); beyond the table, its last one."""
    return table[t.squeeze(-1).long().clamp(max=len(table) - 1)]


def layer_means(values: Float[Tensor, "*tasks n_params"], lengths: list[int]) -> Float[Tensor, "*tasks n_layers"]:
    """The mean of each stretch of theta; the last is of what lies behind."""
    parts = values.split([*lengths, values.shape[-1] - sum(lengths)], -1)
    return torch.stack([part.mean(-1) for part in parts], -1)


def spread(values: Float[Tensor, "*tasks n_layers"], lengths: list[int], theta: Same) -> Same:
    """One value for each stretch of theta, repeated for all its coordinates; the last is for what lies behind."""
    n_each = [*lengths, theta.shape[-1] - sum(lengths)]
    return torch.cat([values[..., k : k + 1].expand(*theta.shape[:-1], n) for k, n in enumerate(n_each)], -1)
