"""What the gates of a learned optimizer are, and what they see: means over tasks, and tables that are simpler."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalstm.ablation.parts import GateTable
from metalstm.console import track
from metalstm.episodes import Episode
from metalstm.methods import GradientMethod
from metalstm.optimizers import InnerOptimizer


class Means(NamedTuple):
    """Of a learned optimizer, over tasks, at each inner step."""

    gates: GateTable | None  # None for a rule without gates
    inputs: dict[str, Float[Tensor, "n_steps ..."]]  # what the gates see


class _Seen(InnerOptimizer[tuple[Any, dict[str, Tensor]]]):
    """Another optimizer, whose state also shows what the gates of the last step saw."""

    def __init__(self, optimizer: InnerOptimizer):
        super().__init__()
        self.optimizer = optimizer

    def init(self, theta: Tensor) -> tuple[Any, dict[str, Tensor]]:
        return self.optimizer.init(theta), {}

    def update(
        self, theta: Tensor, grad: Tensor, loss: Tensor, state: tuple[Any, dict[str, Tensor]]
    ) -> tuple[Tensor, tuple[Any, dict[str, Tensor]]]:
        seen = self.optimizer.inputs(theta, grad, loss)
        theta, own = self.optimizer.update(theta, grad, loss, state[0])
        return theta, (own, seen)


@torch.no_grad()
def means(method: GradientMethod, episodes: Iterable[Episode], description: str = "means over meta-train") -> Means:
    """Means of gates and of their inputs over tasks, for each inner step.

    Args:
        method: Any.
        episodes: Of meta-train, batches with one dimension of tasks, all with the same number of classes and shots.
        description: What a progress bar says.
    """
    watched = method.with_inner_loop(optimizer=_Seen(method.optimizer))
    totals: list[dict[str, Tensor]] = []
    n_tasks = 0
    for episode in track(list(episodes), description):
        steps = []
        for step in watched.trajectory(episode.support):
            own, seen = step.state
            gates = method.optimizer.gates(own)
            values = seen if gates is None else {**seen, "gates": gates.movedim(0, -2)}
            steps.append({name: value.double().sum(0) for name, value in values.items()})
        pairs = zip(totals, steps, strict=True)
        totals = [{name: one[name] + other[name] for name in other} for one, other in pairs] if totals else steps
        n_tasks += len(episode.support.y)
    found = {name: torch.stack([total[name] for total in totals]) / n_tasks for name in totals[0]}
    found = {name: value.to(method.body_0.dtype) for name, value in found.items()}
    return Means(found.pop("gates", None), found)


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


def simpler(gates: GateTable, layers: dict[str, slice], n_body: int) -> dict[str, Float[Tensor, "n_steps 2 n_params"]]:
    """Ever simpler tables of gates, by what they are.

    Args:
        gates: Means over tasks.
        layers: Where each layer lies in theta.
        n_body: Length of theta without the head.
    """
    by_layer = of_layers(gates, layers.values())
    everything, head = slice(None), slice(n_body, None)
    tables = {
        "mean gates of each coordinate and step": gates,
        "mean gates of each layer and step": by_layer,
        "mean gates of each layer": of_all_steps(by_layer),
        "one f and one rate for all": of_all_steps(of_layers(gates, [everything])),
    }
    if n_body:
        tables["one rate for the head, body fixed"] = one_rate(gates, head, head)
        tables["the same rate for head and body"] = one_rate(gates, head, everything)
    return tables
