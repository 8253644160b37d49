"""Simpler things that could do a learned optimizer's job. Each takes the place of a part of a trained method."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from metalstm.console import track
from metalstm.episodes import Episode, Support
from metalstm.learners import Wrapped
from metalstm.methods import Adapted, GradientMethod, Method
from metalstm.optimizers import InnerOptimizer
from metalstm.optimizers.rules import StepState

GateTable = Float[Tensor, "n_steps 2 n_params"]  # f and the rate i of each coordinate at each inner step


class GivenGates(InnerOptimizer[StepState]):
    """theta <- f * theta - i * grad, with gates from a table instead of an LSTM.

    Args:
        gates: f and i at each step; the last step's serve all later ones.
    """

    label = "given gates"

    def __init__(self, gates: GateTable):
        super().__init__()
        self.table = gates

    def init(self, theta: Float[Tensor, "*tasks n_params"]) -> StepState:
        """No steps done."""
        return StepState(theta.new_zeros(*theta.shape[:-1], 1))

    def update(self, theta: Tensor, grad: Tensor, loss: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        """One step; arguments as in `InnerOptimizer.update`."""
        row = state.t[..., 0].long().clamp(max=len(self.table) - 1)
        f, i = self.table[row].unbind(-2)
        return f * theta - i * grad, StepState(state.t + 1)


class Unforgetting(InnerOptimizer[Any]):
    """A learned optimizer with f = 1: it forgets nothing, and its rates are as they were.

    Args:
        optimizer: One with gates.
    """

    label = "f = 1"

    def __init__(self, optimizer: InnerOptimizer):
        super().__init__()
        self.optimizer = optimizer

    def init(self, theta: Float[Tensor, "*tasks n_params"]) -> Any:
        """As the learned optimizer."""
        return self.optimizer.init(theta)

    def update(self, theta: Tensor, grad: Tensor, loss: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step; arguments as in `InnerOptimizer.update`."""
        _, state = self.optimizer.update(theta, grad, loss, state)
        gates = self.optimizer.gates(state)
        assert gates is not None
        return theta - gates[1] * grad, state

    def gates(self, state: Any) -> Float[Tensor, "2 *tasks n_params"] | None:
        """1, and the learned rate."""
        gates = self.optimizer.gates(state)
        return None if gates is None else torch.stack([torch.ones_like(gates[1]), gates[1]])


class BodyFixed(Wrapped):
    """A learner whose body gets no gradient, so that gradient rules train the head alone.

    Unlike `HeadOnly` it keeps the layout of theta, and works with every policy of normalization.
    """

    @torch.no_grad()
    def features(
        self, theta: Tensor, x: Float[Tensor, "..."], moments: Tensor | None = None, train: bool = False
    ) -> tuple[Float[Tensor, "*tasks n n_features"], Float[Tensor, "*tasks n_moments"]]:
        """As the learner's, as constants."""
        return self.learner.features(theta, x, moments, train)


class ClassMeans(Method):
    """No inner step at all: the nearest class mean, by the cosine of the features at theta_0.

    Args:
        method: Gives theta_0 and the moments that normalize.
    """

    label = "no step, nearest class mean"

    def __init__(self, method: GradientMethod):
        super().__init__()
        self.method = method

    @classmethod
    def recipe(cls, name: str, traits: Any, n_shot: int) -> Any:
        """It has none."""
        raise NotImplementedError("ClassMeans is made of a trained method, not of a recipe")

    @classmethod
    def build(cls, config: Any, learner: Any, optimizer: Any, generator: Any) -> Any:
        """It has no configuration."""
        raise NotImplementedError("ClassMeans is made of a trained method, not of a configuration")

    @torch.no_grad()
    def adapt(self, support: Support) -> Adapted:
        """theta_0 with a head whose rows are the means of the support features, all of length 1."""
        method, learner = self.method, self.method.learner
        adapted = method.finish(method.start(support), support)
        theta, x = adapted["theta"], learner.fixed(support.x)
        features = F.normalize(learner.features(theta, x, adapted.get("moments"))[0], dim=-1)
        members = F.one_hot(support.y, support.n_way).to(features)  # (*tasks, n_support, n_way)
        means = F.normalize(members.mT @ features, dim=-1)
        head = F.pad(means, (0, 1)).flatten(-2)  # biases of 0
        return {**adapted, "theta": torch.cat([theta[..., : learner.n_body], head], -1)}

    def logits(self, adapted: Adapted, query_x: Tensor) -> Tensor:
        """As the method's."""
        return self.method.logits(adapted, query_x)

    def forward(self, batch: Any) -> Any:
        """Nothing is trained."""
        raise NotImplementedError("ClassMeans is not meta-trained")


@torch.no_grad()
def mean_gates(method: GradientMethod, episodes: Iterable[Episode], description: str = "mean gates") -> GateTable:
    """The gates of a learned optimizer, means over tasks for each coordinate and step.

    Args:
        method: Its optimizer has gates.
        episodes: Of meta-train, all with the same number of classes and of shots.
        description: What a progress bar says.
    """
    total, n_tasks = torch.zeros(()), 0
    for episode in track(list(episodes), description):
        gates = [method.optimizer.gates(step.state) for step in method.trajectory(episode.support)]
        tasks = torch.stack([each for each in gates if each is not None])  # (n_steps, 2, n_tasks, n_params)
        total = total.to(tasks.device) + tasks.double().sum(2)
        n_tasks += tasks.shape[2]
    return (total / n_tasks).to(method.body_0.dtype)


def of_layers(gates: GateTable, layers: Iterable[slice]) -> GateTable:
    """A table with one f and one rate for each layer and step: means over the layer's coordinates."""
    parts = [gates[..., place].mean(-1, keepdim=True).expand_as(gates[..., place]) for place in layers]
    return torch.cat(parts, -1)


def of_all_steps(gates: GateTable) -> Float[Tensor, "1 2 n_params"]:
    """A table with the same gates at every step: means over the steps."""
    return gates.mean(0, keepdim=True)


def one_rate(gates: GateTable, seen: slice, moved: slice) -> Float[Tensor, "1 2 n_params"]:
    """A table with f = 1 and one rate for all steps and all coordinates of `moved`; the others stay as they are.

    Args:
        gates: Gives the rate: the mean over all steps and the coordinates of `seen`.
        seen: Coordinates.
        moved: Coordinates.
    """
    table = torch.zeros_like(gates[:1])
    table[:, 0] = 1
    table[:, 1, moved] = gates[:, 1, seen].mean()
    return table


def simpler(method: GradientMethod, episodes: Iterable[Episode], n_way: int) -> dict[str, Method]:
    """A trained method with its learned optimizer replaced by ever simpler things; nothing is tuned.

    Args:
        method: Its optimizer has gates.
        episodes: Of meta-train; the gates' means are taken there.
        n_way: Classes of these episodes, and of those that the results are to be used on.

    Returns:
        Each variant by what stands in for the LSTM.
    """
    gates = mean_gates(method, episodes)
    layers = method.learner.layers(n_way)
    everything, head = slice(None), slice(method.learner.n_body, None)
    by_layer = of_layers(gates, layers.values())
    tables = {
        "mean gates of each coordinate and step": gates,
        "mean gates of each layer and step": by_layer,
        "mean gates of each layer": of_all_steps(by_layer),
        "one rate for the head, body fixed": one_rate(gates, head, head),
        "the same rate for head and body": one_rate(gates, head, everything),
        "one rate: the mean over all coordinates": one_rate(gates, everything, everything),
    }
    variants = {name: method.with_inner_loop(optimizer=GivenGates(table)) for name, table in tables.items()}
    stay = torch.zeros_like(gates[:1])
    stay[:, 0] = 1
    return {
        **variants,
        ClassMeans.label: ClassMeans(method),
        "no step": method.with_inner_loop(optimizer=GivenGates(stay)),
    }
