"""ALFA: rates and decay of each layer, generated from the layer's weights and gradients."""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor, nn

from metalstm.learners import Learner
from metalstm.optimizers.base import InnerOptimizer
from metalstm.optimizers.learned_rates import at_step, layer_means, spread
from metalstm.optimizers.rules import GateState, Same, no_steps
from metalstm.settings import Positive


class Alfa(InnerOptimizer[GateState]):
    """theta <- f * theta - i * grad, with f and i of each layer by a network that sees its mean weight and gradient.

    The network's output multiplies learned tables of one rate and one decay for each layer and step. Its last weights
    start small, so that the factors are about 1. With factors of 1 and f = 1, this is `LearnedRates`.

    Args:
        learner: Whose layers have rates and decay.
        steps: Rows of the tables; steps beyond take the last row.
        start_rate: Where all rates start.
        generator: Source of the network's weights.

    References:
        Baik et al. 2020 (arXiv 2011.00209), equations 4 to 6.
    """

    @dataclass(frozen=True)
    class Settings:
        """Tables and network."""

        steps: Annotated[int, Meta(ge=1, le=1000)] = 5
        """Inner steps that have rates of their own; those beyond take the last ones."""
        start_rate: Positive = 0.1
        """Where all learned rates start."""

    label = "ALFA"

    def __init__(
        self, learner: Learner, steps: int = 5, start_rate: float = 0.1, generator: torch.Generator | None = None
    ):
        super().__init__()
        self.lengths = learner.lengths
        n_layers = len(learner.lengths) + 1
        self.rates = nn.Parameter(torch.full((steps, n_layers), start_rate))
        self.keeps = nn.Parameter(torch.ones(steps, n_layers))
        n_inputs = 2 * n_layers
        hidden, output = (2 * torch.rand(2, n_inputs, n_inputs, generator=generator) - 1) * n_inputs**-0.5
        self.hidden_weight = nn.Parameter(hidden)
        self.hidden_bias = nn.Parameter(torch.zeros(n_inputs))
        self.output_weight = nn.Parameter(0.01 * output)  # with weights of 0, the hidden layer has no gradient
        self.output_bias = nn.Parameter(torch.zeros(n_inputs))

    @classmethod
    def build(cls, settings: Settings, learner: Learner, generator: torch.Generator) -> "Alfa":
        """ALFA for a learner."""
        return cls(learner, settings.steps, settings.start_rate, generator)

    def init(self, theta: Same) -> GateState:
        """No steps done."""
        return GateState(no_steps(theta), torch.zeros_like(theta), torch.zeros_like(theta))

    def gates(self, state: GateState) -> Float[Tensor, "2 *tasks n_params"]:
        """The share f of theta that the last step kept, and its rate i."""
        return torch.stack([state.f, state.i])

    def inputs(self, theta: Same, grad: Same, loss: Float[Tensor, "*tasks"]) -> dict[str, Float[Tensor, "..."]]:
        """The means of each layer, (*tasks, n_layers)."""
        return {"gradient": layer_means(grad, self.lengths), "theta": layer_means(theta, self.lengths)}

    def see(self, inputs: dict[str, Float[Tensor, "..."]], state: GateState) -> GateState:
        """The gates that the network gives for these means."""
        seen = torch.cat([inputs["gradient"], inputs["theta"]], -1)
        hidden = torch.relu(seen @ self.hidden_weight.T + self.hidden_bias)
        by_rate, by_keep = (1 + hidden @ self.output_weight.T + self.output_bias).chunk(2, -1)
        i = spread(by_rate * at_step(self.rates, state.t), self.lengths, state.i)
        f = spread(by_keep * at_step(self.keeps, state.t), self.lengths, state.f)
        return GateState(state.t + 1, f, i)

    def update(
        self, theta: Same, grad: Same, loss: Float[Tensor, "*tasks"], state: GateState
    ) -> tuple[Same, GateState]:
        """One step; arguments as in `InnerOptimizer.update`."""
        state = self.see(self.inputs(theta, grad, loss), state)
        return state.f * theta - state.i * grad, state
