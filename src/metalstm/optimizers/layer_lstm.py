"""One small LSTM for all layers: it reads how each layer does, and sets how far and in which direction it moves."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor, nn

from metalstm.learners import Learner
from metalstm.optimizers.base import InnerOptimizer
from metalstm.optimizers.learned_rates import layer_means, spread
from metalstm.optimizers.rules import Same, Steps, no_steps
from metalstm.settings import Positive

KEPT = 0.5, 0.9  # of the past, in the two running means of the gradient
LIMIT = 4.0  # a rate stays between exp(-LIMIT) and exp(LIMIT) times start_rate
FLOOR = 0.02  # root mean square of a layer that starts at 0, for its step; about that of small convolution weights
TINY = 1e-16  # added to mean squares, so that roots have a slope everywhere
N_SEEN = 8  # numbers that the LSTM sees of a layer

Layers = Float[Tensor, "*tasks n_layers"]


class LayerLSTMState(NamedTuple):
    """What is remembered of a task, of its layers and of its coordinates."""

    t: Steps  # steps done
    log_loss: Steps  # of the last step
    fast: Same  # running means of the gradient
    slow: Same
    h: Float[Tensor, "*tasks n_layers hidden"]  # output of the LSTM
    c: Float[Tensor, "*tasks n_layers hidden"]  # its cell
    said: Float[Tensor, "*tasks n_layers 5"]  # what it last said, to be looked at: see `LayerLSTM.say`


class LayerLSTM(InnerOptimizer[LayerLSTMState]):
    """theta <- f * theta - i * direction, with f, i and the direction of each layer set by an LSTM.

    The LSTM has a cell for each parameter of the learner (a layer, below), not for each coordinate, and shared weights;
    only biases are a layer's own. It sees norms of weights and gradient, the angles between gradient, its running means
    and the weights, the loss, its change and the number of the step. It says a rate, a share to forget, and a mixture
    of three directions: the gradient and its running means over about 2 and 10 steps, each divided by its root mean
    square over the layer. i is the rate times the layer's root mean square weight, so that a rate of 0.01 changes
    weights by about one percent, whatever the network. f is 1 - rate * share.

    Args:
        learner: Whose parameters, in theta, are the layers; the head is one.
        hidden_size: Of the LSTM.
        start_rate: About the rate before meta-training.
        generator: Source of the LSTM's weights.

    References:
        A cell for each layer above those of coordinates: Wichrowska et al. 2017 (arXiv 1703.04813). Steps in proportion
        to the norm of a layer's weights: You, Gitman & Ginsburg 2017 (arXiv 1708.03888).
    """

    @dataclass(frozen=True)
    class Settings:
        """The LSTM."""

        hidden_size: Annotated[int, Meta(ge=1, le=1024)] = 16
        """Hidden size of the LSTM."""
        start_rate: Positive = 0.03
        """About the share of a layer's weights by which a step changes them before meta-training."""

    label = "LSTM of layers"

    def __init__(
        self,
        learner: Learner,
        hidden_size: int = 16,
        start_rate: float = 0.03,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.lengths, self.hidden_size, self.start_rate = learner.lengths, hidden_size, start_rate
        n_layers = len(learner.lengths) + 1

        def uniform(bound: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(bound * (2 * torch.rand(shape, generator=generator) - 1))

        # Rows are its input, forget, cell and output gates, as in torch.nn.LSTM.
        self.weight_x = uniform(N_SEEN**-0.5, 4 * hidden_size, N_SEEN)
        self.weight_h = uniform(hidden_size**-0.5, 4 * hidden_size, hidden_size)
        self.bias = uniform(0.1, n_layers, 4 * hidden_size)
        self.weight_out = uniform(0.1 * hidden_size**-0.5, 5, hidden_size)
        self.bias_out = nn.Parameter(torch.zeros(n_layers, 5))

    @classmethod
    def build(cls, settings: Settings, learner: Learner, generator: torch.Generator) -> "LayerLSTM":
        """The optimizer of a learner."""
        return cls(learner, settings.hidden_size, settings.start_rate, generator)

    def init(self, theta: Same) -> LayerLSTMState:
        """Zeros."""
        zeros, once = torch.zeros_like(theta), no_steps(theta)
        each = theta.new_zeros(*theta.shape[:-1], len(self.bias), self.hidden_size)
        return LayerLSTMState(once, once, zeros, zeros, each, each, each.new_zeros(*each.shape[:-1], 5))

    def update(
        self, theta: Same, grad: Same, loss: Float[Tensor, "*tasks"], state: LayerLSTMState
    ) -> tuple[Same, LayerLSTMState]:
        """One step; arguments as in `InnerOptimizer.update`."""
        fast, slow = (
            kept * mean + (1 - kept) * grad for kept, mean in zip(KEPT, (state.fast, state.slow), strict=True)
        )
        products = (theta * theta, grad * grad, fast * fast, slow * slow, grad * fast, grad * slow, grad * theta)
        means = layer_means(torch.stack(products), self.lengths)
        sizes = (means[:4] + TINY).sqrt()
        weights, *lengths = sizes.unbind()
        log_loss = (loss + 1e-6).log().unsqueeze(-1)
        change = torch.where(state.t > 0, log_loss - state.log_loss, 0)
        of_task = (each.expand_as(weights) for each in (log_loss / 4, change, (state.t + 1).log() / 2))
        cosines = means[4:] / (sizes[1] * torch.stack([*lengths[1:], weights]))
        seen = torch.stack([weights.log() / 4, lengths[0].log() / 4, *cosines, *of_task], -1)
        said, h, c = self.say(seen, state)
        f, *by_direction = self.coefficients(said, weights)
        new = spread(f, self.lengths, theta) * theta
        for direction, size, by in zip((grad, fast, slow), lengths, by_direction, strict=True):
            new = new - spread(by / size, self.lengths, theta) * direction
        return new, LayerLSTMState(state.t + 1, log_loss, fast, slow, h, c, said)

    def say(
        self, seen: Float[Tensor, "*tasks n_layers seen"], state: LayerLSTMState
    ) -> tuple[Float[Tensor, "*tasks n_layers 5"], Tensor, Tensor]:
        """What the LSTM says of each layer, and its new h and c.

        Said are: the logarithm of the rate over start_rate, before it is limited; the share to forget; the mixture of
        gradient, fast and slow mean, before the softmax.
        """
        gates = seen @ self.weight_x.T + state.h @ self.weight_h.T + self.bias
        i, f, g, o = gates.chunk(4, -1)
        c = (f + 1).sigmoid() * state.c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h @ self.weight_out.T + self.bias_out, h, c

    def coefficients(
        self, said: Float[Tensor, "*tasks n_layers 5"], weights: Layers
    ) -> tuple[Layers, Layers, Layers, Layers]:
        """f, and the length of the step in each direction, of layers with some root mean square weights."""
        rate = self.start_rate * (LIMIT * (said[..., 0] / LIMIT).tanh()).exp()
        i = rate * (weights.square() + FLOOR**2).sqrt()
        by_gradient, by_fast, by_slow = (i.unsqueeze(-1) * said[..., 2:].softmax(-1)).unbind(-1)
        return 1 - rate * said[..., 1], by_gradient, by_fast, by_slow
