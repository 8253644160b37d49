"""Pictures of an ablation: differences from the whole, and the gates of many tasks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from metalstm.ablation.variants import WHOLE
from metalstm.evaluation import gap

TICKS = (-30, -10, -3, -1, -0.5, 0, 0.5, 1, 3, 10, 30)  # of differences, in points
GATES = {"rate": "rate i", "f": "1 - f"}  # f is often so near 1 that its own numbers would be nines


def differences(columns: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Each variant minus the whole, in points, with its 95 % interval; a panel for each task.

    Args:
        columns: Task, in words -> variant, `whole` among them -> result.
    """
    names = [name for name in dict.fromkeys(name for column in columns.values() for name in column) if name != WHOLE]
    figure = Figure(figsize=(4.2 + 3.4 * len(columns), 1.1 + 0.28 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, (task, column) in zip(panels, columns.items(), strict=True):
        axes.axvline(0, color="0.5", linewidth=1)
        for y, name in enumerate(names):
            if name in column:
                mean, ci95 = gap(column[name], column[WHOLE])
                color = "0.45" if abs(mean) <= ci95 else "C0" if mean > 0 else "C3"
                axes.errorbar(mean, y, xerr=ci95, fmt="o", markersize=5, color=color, elinewidth=1.4)
        # Linear within a point, logarithmic beyond: most parts are worth little, and some nearly everything.
        axes.set_xscale("symlog", linthresh=1, linscale=1.2)
        low, high = axes.get_xlim()
        low, high = min(low, -1.1), max(high, 1.1)
        axes.set_xlim(low, high)
        axes.xaxis.set_major_locator(FixedLocator([tick for tick in TICKS if low <= tick <= high]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:+g}" if x else "0"))
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.set(title=task, xlabel="minus the whole (points)")
    panels[0].set_yticks(range(len(names)), names, fontsize=9)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    return figure


def gates_by_name(records: Mapping[str, Mapping[str, Any]], names: Mapping[str, Sequence[str]]) -> Figure:
    """The gates of each layer over the inner steps, a line for each task; colors are names.

    Args:
        records: Kind of task, in words -> what `ablate` has of its gates.
        names: Kind of task -> the name of each task, that of the kind or of the group that its classes are from.
    """
    known = list(dict.fromkeys(name for of_kind in names.values() for name in of_kind))
    palette = colormaps["tab10" if len(known) <= 10 else "tab20"]
    colors = {name: palette(number % palette.N) for number, name in enumerate(known)}
    figure = _gates(records, lambda kind, task: colors[names[kind][task]])
    handles = [figure.axes[0].plot([], [], color=color, label=name)[0] for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), fontsize=9)
    return figure


def gates_by_loss(records: Mapping[str, Mapping[str, Any]]) -> Figure:
    """As `gates_by_name`; colors are support losses, at the first step before which those of a kind differ."""
    step = first_different_loss(records)
    losses = {kind: [task[min(step, len(task) - 1)] for task in record["loss"]] for kind, record in records.items()}
    every = [loss for of_kind in losses.values() for loss in of_kind]
    scale = ScalarMappable(Normalize(min(every), max(every)), colormaps["viridis"])
    figure = _gates(records, lambda kind, task: scale.to_rgba(losses[kind][task]))
    label = f"support loss before step {step + 1} (nats)"
    figure.colorbar(scale, ax=figure.axes, label=label, shrink=0.7, aspect=30)
    return figure


def first_different_loss(records: Mapping[str, Mapping[str, Any]]) -> int:
    """The first inner step before which tasks of one kind have different losses.

    With one head row for all classes, the first loss of every task is log(n_way).
    """
    spreads = [np.ptp(np.array(record["loss"]), axis=0) for record in records.values()]
    differ = [int(np.argmax(spread > 1e-4)) for spread in spreads if (spread > 1e-4).any()]
    return min(differ, default=0)


def _gates(records: Mapping[str, Mapping[str, Any]], color: Callable[[str, int], Any]) -> Figure:
    """A row for the rate and one for f, a column for each layer; `color` takes kind and number of a task."""
    layers = list(next(iter(records.values()))["layers"])
    figure = Figure(figsize=(1.75 * len(layers) + 1.6, 4.8), layout="constrained")
    grid = figure.subplots(len(GATES), len(layers), sharex=True, squeeze=False)
    for column, layer in enumerate(layers):
        for row, (name, label) in enumerate(GATES.items()):
            axes = grid[row][column]
            for kind, record in records.items():
                for task, values in enumerate(record["layers"][layer][name]):
                    values = values if name == "rate" else [1 - f for f in values]
                    axes.plot(range(1, len(values) + 1), values, color=color(kind, task), alpha=0.5, linewidth=0.8)
            _plain_numbers(axes)
            if column == 0:
                axes.set_ylabel(label)
        grid[0][column].set_title(layer)
        grid[-1][column].set_xlabel("inner step")
    return figure


def _plain_numbers(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.4g}"))
    axes.tick_params(labelsize=8)
