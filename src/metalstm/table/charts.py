"""The pictures that a table's page opens with: rows as dots, accuracy against minutes, paired differences."""

from collections.abc import Mapping
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from metalstm.episodes import Task
from metalstm.table import terms
from metalstm.table.contents import LABELS, Result, Results, by_block, differences, inductive, published

COLORS = dict(zip(terms.BLOCKS, ("C0", "C1", "0.45", "C4", "0.45"), strict=True))
FARTHEST = 10.0  # points: larger differences have the same color


def dots(columns: Results, data: str) -> Figure:
    """Every row with its 95 % interval, a panel for each column; crosses are published figures for the data set.

    Args:
        columns: The panels, side by side.
        data: Name of the data set.
    """
    blocks = by_block(columns)
    leading = list(columns.values())[-1]
    lines: list[str] = []  # names of rows and titles of blocks, from the top
    for title, names in blocks.items():
        lines += [title, *sorted(names, key=lambda name: -leading.get(name, {"accuracy": 0.0})["accuracy"])]
    figure = Figure(figsize=(10, 1 + 0.24 * len(lines)), layout="constrained")
    grid = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, (task, results) in zip(grid, columns.items(), strict=True):
        left = _low_end(results)
        for title, names in blocks.items():
            for name in names:
                if name in results:
                    _dot(axes, results[name], lines.index(name), left, COLORS[title])
        crosses = [
            (each.figures[str(task)][0], lines.index(name)) for name in results for each in published(name, data, task)
        ]
        for x, y in crosses:
            axes.plot(x, y, "x", markersize=5, color="black", zorder=3)
        axes.set(title=task.words, xlabel="accuracy (%)")
        axes.set_xlim(left=left)
        axes.grid(axis="x", alpha=0.3)
    grid[0].set_yticks(range(len(lines)), [LABELS.get(line, line) for line in lines], fontsize=9)
    grid[0].set_ylim(len(lines) - 0.5, -0.7)
    for label, line in zip(grid[0].get_yticklabels(), lines, strict=True):
        if line in blocks:
            label.set(fontweight="bold", color=COLORS[line])
    return figure


def against_minutes(columns: Results) -> Figure:
    """Accuracy against all minutes of training and tuning, a panel for each column.

    Rows that no other row beats in both are joined by a line and named; transductive rows are left out.

    Args:
        columns: The panels, side by side.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, (task, results) in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns.items(), strict=True):
        took = {name: terms.minutes(result, with_start=True) for name, result in inductive(results).items()}
        bottom = _low_end({name: results[name] for name, x in took.items() if x})
        points = {
            name: (x, results[name]["accuracy"]) for name, x in took.items() if x and results[name]["accuracy"] > bottom
        }
        for name, point in points.items():
            axes.plot(*point, "o", markersize=5, color=COLORS[terms.block(results[name])], alpha=0.8)
        front = _front(points)
        axes.plot(*zip(*(points[name] for name in front), strict=True), color="0.6", linewidth=1, zorder=1)
        axes.set(title=task.words, xlabel="minutes of training and tuning", ylabel="accuracy (%)", xscale="log")
        axes.set_ylim(bottom=bottom)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        _name(axes, points, front)
    return figure


def heat(task: Task, results: Mapping[str, Result]) -> Figure:
    """Paired differences of all rows, the best row first; a dot where the 95 % interval has 0 in it."""
    names = sorted(results, key=lambda name: -results[name]["accuracy"])
    gaps = differences(results)
    means = np.array([[gaps[one][other][0] if one != other else np.nan for other in names] for one in names])
    side = 0.21 * len(names)
    figure = Figure(figsize=(side + 3.6, side + 2.4), layout="constrained")
    axes = figure.subplots()
    most = min(FARTHEST, float(np.nanmax(abs(means))) or 1.0)
    mesh = axes.pcolormesh(means, cmap="RdBu", vmin=-most, vmax=most, edgecolors="white", linewidth=0.5)
    unsure = [
        (x + 0.5, y + 0.5)
        for y, one in enumerate(names)
        for x, other in enumerate(names)
        if one != other and abs(gaps[one][other][0]) <= gaps[one][other][1]
    ]
    if unsure:
        axes.scatter(*zip(*unsure, strict=True), s=6, color="0.3")
    places, labels = np.arange(len(names)) + 0.5, [LABELS[name] for name in names]
    axes.set_yticks(places, labels, fontsize=8)
    axes.set_xticks(places, labels, fontsize=8, rotation=90)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.set_title(task.words)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(mesh, label="row minus column, points", extend="both", shrink=0.6)
    return figure


def _dot(axes: Axes, result: Result, y: int, left: float, color: str) -> None:
    """A row's mean and interval; far to the left, an arrow and the figure."""
    if result["accuracy"] < left:
        axes.annotate(
            f"◂ {result['accuracy']:.1f}", (0.01, y), xycoords=("axes fraction", "data"), va="center", color=color
        )
        return
    axes.errorbar(result["accuracy"], y, xerr=result["ci95"], fmt="o", markersize=4, color=color, elinewidth=1.2)


def _low_end(results: Mapping[str, Result]) -> float:
    """Where an axis of accuracies starts: few rows are so far behind that they would squeeze all others together."""
    accuracies = [result["accuracy"] for result in results.values()]
    if not accuracies:
        return 0.0
    span = max(5 * (max(accuracies) - median(accuracies)), 6 * max(result["ci95"] for result in results.values()), 1.0)
    within = [accuracy for accuracy in accuracies if accuracy >= max(accuracies) - span]
    return max(
        0.0, min(within) - 0.06 * (max(within) - min(within)) - max(result["ci95"] for result in results.values())
    )


def _front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The points that no other one beats in both, being quicker and better; from the quickest on."""
    front: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not front or points[name][1] > points[front[-1]][1]:
            front.append(name)
    return front


def _name(axes: Axes, points: Mapping[str, tuple[float, float]], front: list[str]) -> None:
    """Number some points, and list their names in the corner of slow and bad rows."""
    for number, name in enumerate(front, 1):
        axes.annotate(str(number), points[name], xytext=(0, 5), textcoords="offset points", ha="center", fontsize=8)
        axes.plot([], [], " ", label=f"{number}  {LABELS[name]}")
    if front:
        axes.legend(loc="lower right", handlelength=0, handletextpad=0, fontsize=8, framealpha=0.5)
