"""The learned optimizer: an LSTM whose cell state is the learner's parameters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from math import exp, log
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor, nn

from metalstm import kernels
from metalstm.learners import Learner
from metalstm.optimizers.base import InnerOptimizer
from metalstm.settings import Finite, Positive

P = 10.0  # scale of the preprocessing, section 3.2


class MetaLSTMState(NamedTuple):
    """What the meta-learner remembers of each coordinate; coordinates are contiguous, which is faster."""

    h: Float[Tensor, "*tasks hidden n_params"]  # output of the ordinary LSTM
    c: Float[Tensor, "*tasks hidden n_params"]  # its cell
    f: Float[Tensor, "*tasks n_params"]  # forget gate before the sigmoid
    i: Float[Tensor, "*tasks n_params"]  # input gate before the sigmoid


class MetaLSTM(InnerOptimizer[MetaLSTMState]):
    """theta <- f * theta - i * grad, with the gates f and i learned and every coordinate of theta an LSTM cell.

    Gradient and loss are preprocessed and passed through an ordinary LSTM; its output h, theta and the previous gate
    (before its sigmoid, as in the authors' code) make the next gate. All weights are shared across coordinates.

    Args:
        settings: As below; the paper's by default.
        lengths: Of the stretches of theta that get a learned factor each with `layer_rates`; the rest of theta is one
            more.
        generator: Source of the random weights; torch's own by default.

    References:
        Ravi & Larochelle 2017, sections 3.1 and 3.2; initial ranges from the authors' code. A learned rate for each
        layer: Antoniou et al. 2019 (arXiv 1810.09502).
    """

    @dataclass(frozen=True)
    class Settings:
        """The gates."""

        hidden_size: Annotated[int, Meta(ge=1, le=1024)] = 20
        """Hidden size of the meta-learner's LSTM."""
        forget_bias: tuple[Finite, Finite] = (4.0, 5.0)
        """b_F starts uniformly in this range: f is near 1."""
        input_bias: tuple[Finite, Finite] = (-5.0, -4.0)
        """b_I starts uniformly in this range: sigmoid(b_I) is the first learning rate."""
        layer_rates: bool = False
        """Learn a factor of the gradient for each of the learner's parameters, which the gates see with the gradient.
        The gates' weights are shared by all coordinates, so that otherwise no layer has a rate of its own."""
        body_factor: Positive = 1.0
        """Where these factors start, except the head's, which starts at 1."""

    label = "Meta-LSTM"

    def __init__(
        self,
        settings: Settings = Settings(),
        lengths: Sequence[int] = (),
        generator: torch.Generator | None = None,
    ):
        super().__init__()

        def uniform(low: float, high: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(low + (high - low) * torch.rand(shape, generator=generator))

        hidden_size = self.hidden_size = settings.hidden_size
        # The ordinary LSTM: rows are its input, forget, cell and output gates, as in torch.nn.LSTM.
        self.weight_x = uniform(-0.01, 0.01, 4 * hidden_size, 4)
        self.weight_h = uniform(-0.01, 0.01, 4 * hidden_size, hidden_size)
        self.bias = uniform(-0.01, 0.01, 4 * hidden_size)
        # W_F and W_I: h, theta, previous gate.
        self.weight_f = uniform(-0.01, 0.01, hidden_size + 2)
        self.weight_i = uniform(-0.01, 0.01, hidden_size + 2)
        self.bias_f = uniform(*settings.forget_bias)
        self.bias_i = uniform(*settings.input_bias)
        self.layers = list(lengths) if settings.layer_rates else None
        if self.layers is not None:
            factors = [log(settings.body_factor)] * len(self.layers) + [0.0]
            self.log_factors = nn.Parameter(torch.tensor(factors))

    @classmethod
    def build(cls, settings: Settings, learner: Learner, generator: torch.Generator) -> "MetaLSTM":
        """The optimizer of these settings."""
        return cls(settings, learner.lengths, generator)

    def init(self, theta: Float[Tensor, "*tasks n_params"]) -> MetaLSTMState:
        """Zeros."""
        hidden = theta.new_zeros(*theta.shape[:-1], self.hidden_size, theta.shape[-1])
        gate = torch.zeros_like(theta)
        return MetaLSTMState(hidden, hidden, gate, gate)

    def factors(self, n_params: int) -> Float[Tensor, " n_params"]:
        """What each coordinate's gradient is multiplied by: a learned number of its layer, or 1."""
        if self.layers is None:
            return self.bias_i.new_ones(n_params)
        lengths = *self.layers, n_params - sum(self.layers)
        return torch.cat([factor.expand(n) for factor, n in zip(self.log_factors.exp(), lengths, strict=True)])

    def gates(self, state: MetaLSTMState) -> Float[Tensor, "2 *tasks n_params"]:
        """f, and i times the factor of its layer: the rate by which a coordinate follows its gradient."""
        return torch.stack([state.f.sigmoid(), state.i.sigmoid() * self.factors(state.i.shape[-1])])

    def inputs(
        self,
        theta: Float[Tensor, "*tasks n_params"],
        grad: Float[Tensor, "*tasks n_params"],
        loss: Float[Tensor, "*tasks"],
    ) -> dict[str, Float[Tensor, "..."]]:
        """Loss and gradient as preprocessed, (*tasks, 2) and (*tasks, 2, n_params), and theta."""
        grad = grad * self.factors(theta.shape[-1])
        seen = {"loss": torch.stack(preprocess(loss), -1), "gradient": torch.stack(preprocess(grad), -2)}
        return {**seen, "theta": theta}

    def see(self, inputs: dict[str, Float[Tensor, "..."]], state: MetaLSTMState) -> MetaLSTMState:
        """The state after an update with these inputs."""
        return MetaLSTMState(*_gates(*self._weights(), inputs["gradient"], inputs["loss"], inputs["theta"], *state))

    def forget(self, state: MetaLSTMState) -> MetaLSTMState:
        """Zeros: without h, c and the previous gates."""
        return self.init(state.f)

    def update(
        self,
        theta: Float[Tensor, "*tasks n_params"],
        grad: Float[Tensor, "*tasks n_params"],
        loss: Float[Tensor, "*tasks"],
        state: MetaLSTMState,
    ) -> tuple[Float[Tensor, "*tasks n_params"], MetaLSTMState]:
        """One step of the learned optimizer: theta <- f * theta - i * grad.

        Args:
            theta: The learner's parameters; one coordinate is one LSTM cell.
            grad: d loss / d theta; a constant for the meta-gradient in first order.
            loss: Mean cross-entropy of the mini-batch, in nats.
            state: From `init` or the previous `update`.

        Returns:
            The new parameters and state.

        References:
            Ravi & Larochelle 2017, section 3.1, equations for i_t and f_t.
        """
        if self.layers is not None:
            grad = grad * self.factors(theta.shape[-1])
        weights = self._weights()
        if kernels.can_step(*weights, grad, loss, theta, *state):
            step = kernels.step
        else:  # a compilation pays in training only
            pays = theta.is_cuda and torch.is_grad_enabled() and find_spec("triton") is not None
            step = _compiled_step() if pays else _step
        theta, *new_state = step(P, *weights, grad, loss, theta, *state)
        return theta, MetaLSTMState(*new_state)

    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What is the same for all coordinates, in the order of `_step`."""
        return self.weight_x, self.weight_h, self.bias, self.weight_f, self.weight_i, self.bias_f, self.bias_i


def _step(
    p: float,
    weight_x: Tensor,
    weight_h: Tensor,
    bias: Tensor,
    weight_f: Tensor,
    weight_i: Tensor,
    bias_f: Tensor,
    bias_i: Tensor,
    grad: Tensor,
    loss: Tensor,
    theta: Tensor,
    h: Tensor,
    c: Tensor,
    f: Tensor,
    i: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The LSTM on preprocessed gradient and loss, the gates, and theta's update: the new theta, h, c, f, i.

    Shapes as in `MetaLSTM.update`; `p` is that of the preprocessing.
    """
    weights = weight_x, weight_h, bias, weight_f, weight_i, bias_f, bias_i
    seen = torch.stack(preprocess(grad, p), -2), torch.stack(preprocess(loss, p), -1)
    h, c, f, i = _gates(*weights, *seen, theta, h, c, f, i)
    return f.sigmoid() * theta - i.sigmoid() * grad, h, c, f, i


def _gates(
    weight_x: Tensor,
    weight_h: Tensor,
    bias: Tensor,
    weight_f: Tensor,
    weight_i: Tensor,
    bias_f: Tensor,
    bias_i: Tensor,
    grad: Tensor,
    loss: Tensor,
    theta: Tensor,
    h: Tensor,
    c: Tensor,
    f: Tensor,
    i: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The new h, c, f, i; `grad` and `loss` are preprocessed."""
    # The loss is the same for every coordinate: a part of the bias.
    bias = bias + loss @ weight_x[:, 2:].T
    x = torch.cat([grad, h], -2)
    gates = torch.cat([weight_x[:, :2], weight_h], 1) @ x + bias[..., None]
    input_, forget, cell, output = gates.chunk(4, -2)
    c = forget.sigmoid() * c + input_.sigmoid() * cell.tanh()
    h = output.sigmoid() * c.tanh()
    f = weight_f[:-2] @ h + weight_f[-2] * theta + weight_f[-1] * f + bias_f
    i = weight_i[:-2] @ h + weight_i[-2] * theta + weight_i[-1] * i + bias_i
    return h, c, f, i


@cache
def _compiled_step() -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """`_step` in few passes over memory, by torch's own compiler."""
    return torch.compile(_step, dynamic=False)


def preprocess(x: Tensor, p: float = P) -> tuple[Tensor, Tensor]:
    """Split numbers of any size into a logarithm and a sign, both of order one.

    (log|x| / p, sign x) where |x| >= e^-p, else (-1, e^p x), with p = 10.

    References:
        Ravi & Larochelle 2017, section 3.2, after Andrychowicz et al. 2016, appendix A.
    """
    return x.abs().clamp(min=exp(-p)).log() / p, (x * exp(p)).clamp(-1, 1)
