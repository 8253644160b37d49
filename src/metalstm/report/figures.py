"""Figures of training and of what was learned: learning curves, gates, confusions, an episode."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from metalstm import files
from metalstm.console import track
from metalstm.episodes import Episode, Support
from metalstm.methods import Method
from metalstm.report.metrics import read_metrics

MAX_CLASSES = 40  # in a confusion matrix with a row for each class
SUPPORT_SHOWN, QUERIES_SHOWN = 5, 8  # images of a class in the picture of an episode


def learning_curve(metrics: Path) -> Figure:
    """Loss, accuracy and meta-val accuracy of one run against episodes.

    Args:
        metrics: The run's `metrics.jsonl`.
    """
    lines = read_metrics(metrics)
    figure, (left, right) = _side_by_side()
    trained = [line for line in lines if "loss" in line]
    episodes = [line["episode"] for line in trained]
    for axes, key, label in ((left, "loss", "query loss (nats)"), (right, "accuracy", "query accuracy (%)")):
        values = np.array([line[key] for line in trained])
        window = max(1, len(values) // 25)
        axes.plot(episodes, values, color="0.8", linewidth=0.8)
        smooth = np.convolve(values, np.ones(window) / window, "valid")
        axes.plot(episodes[window - 1 :], smooth, label=f"meta-train, mean of {window}" if window > 1 else "meta-train")
        axes.set(xlabel="meta-train episodes", ylabel=label)
    measured = [(line["episode"], line["meta_val"]) for line in lines if "meta_val" in line]
    if measured:
        right.plot(*zip(*measured, strict=True), "o-", markersize=3, label="meta-val")
        best = max(measured, key=lambda point: point[1])
        right.plot(*best, "*", markersize=13, color="C3", label=f"chosen: {best[1]:.1f} % at {best[0]:,}")
    right.legend(loc="lower right")
    return figure


def meta_val_curves(runs: Mapping[str, Path]) -> Figure:
    """Meta-val accuracy of several runs, against minutes and against episodes.

    Args:
        runs: Label -> run folder.
    """
    figure, (by_time, by_episode) = _side_by_side(sharey=True)
    figure.set_size_inches(10, max(3.4, 0.6 + 0.19 * len(runs)))
    for number, (label, folder) in enumerate(runs.items()):
        look = {"linestyle": ("-", "--", ":")[number // 10 % 3], "marker": "o", "markersize": 3, "label": label}
        lines = [line for line in read_metrics(folder / "metrics.jsonl") if "meta_val" in line]
        values = [line["meta_val"] for line in lines]
        by_time.plot([line["seconds"] / 60 for line in lines], values, **look)
        by_episode.plot([line["episode"] for line in lines], values, **look)
    by_time.set(xlabel="minutes", ylabel="meta-val accuracy (%)")
    by_episode.set(xlabel="meta-train episodes")
    figure.legend(*by_time.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


@torch.no_grad()
def gates(method: Method, episodes: Episode) -> Figure | None:
    """The paper's picture: f and i of each layer against the inner step, a line for each task.

    Args:
        method: Any method.
        episodes: A batch of tasks with one task dimension. The method adapts to their support sets.

    Returns:
        The figure, or None for a method without gates.

    References:
        Ravi & Larochelle 2017, section 5.3, figure 2.
    """
    support = episodes.support
    tasks: list[Mapping[str, Tensor]] = []
    for x, y in track(list(zip(support.x, support.y, strict=True)), "drawing the gates"):  # one by one to save memory
        of_task = method.gates(Support(x, y, support.n_way))
        if of_task is None:
            return None
        tasks.append(of_task)
    layers = list(tasks[0])
    figure = Figure(figsize=(2.3 * len(layers), 4.2), layout="constrained")
    grid = figure.subplots(2, len(layers), sharex=True, sharey="row", squeeze=False)
    for column, layer in enumerate(layers):
        lines = torch.stack([task[layer] for task in tasks], -1).cpu().numpy()  # (2, n_steps, n_tasks)
        for axes, values, color in zip(grid[:, column], lines, ("C0", "C1"), strict=True):
            steps = range(1, len(values) + 1)
            axes.plot(steps, values, color=color, alpha=0.15, linewidth=0.7)
            axes.plot(steps, values.mean(1), color="black", linewidth=1.6)
            axes.grid(alpha=0.3)
            axes.ticklabel_format(axis="y", useOffset=False)
        grid[0][column].set_title(layer)
        grid[1][column].set_xlabel("inner step")
        grid[1][column].xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0][0].set_ylabel("forget gate f")
    grid[1][0].set_ylabel("input gate i")
    figure.suptitle(f"Learned gates, mean of each layer: {len(tasks)} tasks; black: mean of the tasks")
    return figure


def confusion(matrix: Float[Tensor, "n_classes n_classes"], classes: Sequence[str]) -> Figure:
    """Which classes are taken for which; with many classes, which groups: the part of a name before the slash.

    Args:
        matrix: Shares of the queries of a class (row), from `metalstm.evaluation.confusion`.
        classes: The names of the rows.
    """
    grouped = len(classes) > MAX_CLASSES
    if grouped:
        matrix, classes = _by_group(matrix, classes)
    shares = 100 * matrix.numpy()
    if not grouped:
        shares = shares.copy()
        np.fill_diagonal(shares, np.nan)
    side = 2.5 + 0.33 * len(classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="viridis", vmin=0)
    axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=7)
    axes.set_yticks(range(len(classes)), classes, fontsize=7)
    axes.set(xlabel="classified as", ylabel="true class")
    figure.colorbar(image, label="% of queries in episodes with both classes", shrink=0.7)
    return figure


def episode_picture(episode: Episode, drawing: bool) -> Figure:
    """One task as a person sees it: the support set on the left, some queries of each class on the right.

    Args:
        episode: A batch of one task or more; the first one is shown.
        drawing: Whether the images are drawings, which learners see with dark paper. They are shown with light paper.
    """
    support, query = episode.support, episode.query
    rows = [
        (support.x[0][support.y[0] == label][:SUPPORT_SHOWN], query.x[0][query.y[0] == label][:QUERIES_SHOWN])
        for label in range(support.n_way)
    ]
    n_left, n_right = len(rows[0][0]), len(rows[0][1])
    figure = Figure(figsize=(0.62 * (n_left + n_right + 1), 0.66 * len(rows) + 0.5), layout="constrained")
    grid = figure.subplots(len(rows), n_left + n_right + 1, squeeze=False)
    for row, (left, right) in zip(grid, rows, strict=True):
        for axes in row:
            axes.axis("off")
        for axes, image in zip([*row[:n_left], *row[n_left + 1 :]], [*left, *right], strict=True):
            pixels = image.movedim(0, -1).cpu().numpy()
            axes.imshow(1 - pixels if drawing else pixels, cmap="gray", vmin=0, vmax=1)
    grid[0][0].set_title("support", loc="left", fontsize=9)
    grid[0][n_left + 1].set_title("queries", loc="left", fontsize=9)
    return figure


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    for axes in figure.axes:
        if not axes.images:
            axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    files.write(path, png(figure))


def _side_by_side(sharey: bool = False) -> tuple[Figure, tuple[Axes, Axes]]:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=sharey)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure, (left, right)


def _by_group(matrix: Tensor, classes: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Mean confusion between groups of classes, without those of a class with itself."""
    group_of = [name.split("/")[0] for name in classes]
    groups = sorted(set(group_of))
    member = torch.tensor([[group == name for name in groups] for group in group_of]).float()
    counted = matrix.isfinite().float() * (1 - torch.eye(len(matrix)))
    return member.T @ (matrix.nan_to_num() * counted) @ member / (member.T @ counted @ member), groups
