"""What a run looks like: learning curve, pictures of the gates, its page; TensorBoard's files."""

import base64
import contextlib
import html
import io
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from metalstm import checkpoint, provenance
from metalstm.console import track
from metalstm.datasets import ImagesByClass
from metalstm.episodes import Episode, EpisodeSampler, Support
from metalstm.errors import UserError
from metalstm.learners import layers
from metalstm.methods import GradientMethod
from metalstm.optimizers import MetaLSTM

FOLLOW_SECONDS = 5  # between two looks at a run that goes on


def learning_curve(metrics: Path) -> Figure:
    """Loss, accuracy and meta-val accuracy against episodes, from a run's `metrics.jsonl`."""
    lines = _read(metrics)
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    episodes = [line["episode"] for line in lines]
    for axes, key, label in ((left, "loss", "query loss (nats)"), (right, "accuracy", "query accuracy (%)")):
        values = np.array([line[key] for line in lines])
        window = max(1, len(values) // 25)
        axes.plot(episodes, values, color="0.8", linewidth=0.8)
        smooth = np.convolve(values, np.ones(window) / window, "valid")
        axes.plot(episodes[window - 1 :], smooth, label=f"meta-train, mean of {window}" if window > 1 else "meta-train")
        axes.set(xlabel="meta-train episodes", ylabel=label)
        axes.grid(alpha=0.3)
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
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    by_time, by_episode = figure.subplots(1, 2, sharey=True)
    for label, folder in runs.items():
        lines = [line for line in _read(folder / "metrics.jsonl") if "meta_val" in line]
        values = [line["meta_val"] for line in lines]
        by_time.plot([line["seconds"] / 60 for line in lines], values, "o-", markersize=3, label=label)
        by_episode.plot([line["episode"] for line in lines], values, "o-", markersize=3, label=label)
    by_time.set(xlabel="minutes", ylabel="meta-val accuracy (%)")
    by_episode.set(xlabel="meta-train episodes")
    for axes in (by_time, by_episode):
        axes.grid(alpha=0.3)
    by_episode.legend()
    return figure


@torch.no_grad()
def gates(method: GradientMethod, episodes: Episode) -> Figure:
    """The paper's picture: f and i of each layer against the inner step, a line for each task.

    Where layers have a learned factor, i is shown times that: the rate by which the layer follows its gradient.

    Args:
        method: With a `MetaLSTM` inside.
        episodes: A batch of tasks, one dimension of them; their support sets are adapted to.

    References:
        Ravi & Larochelle 2017, section 5.3, figure 2.
    """
    places = layers(method.learner.layout(episodes.support.n_way))
    assert isinstance(method.optimizer, MetaLSTM)
    support = episodes.support
    tasks = []
    for x, y in track(list(zip(support.x, support.y, strict=True)), "drawing the gates"):  # one by one, to spare memory
        steps = []
        for step in method.trajectory(Support(x, y, support.n_way)):
            both = method.optimizer.gates(step.state)
            steps.append(torch.stack([both[:, place].mean(-1) for place in places.values()], 1))
        tasks.append(torch.stack(steps, -1))
    lines = torch.stack(tasks, 2).cpu()  # (2, n_layers, n_tasks, n_steps)
    figure = Figure(figsize=(2.3 * len(places), 4.2), layout="constrained")
    grid = figure.subplots(2, len(places), sharex=True, sharey="row", squeeze=False)
    steps = range(1, lines.shape[-1] + 1)
    for row, (name, color) in enumerate((("forget gate f", "C0"), ("input gate i", "C1"))):
        for column, layer in enumerate(places):
            axes = grid[row][column]
            axes.plot(steps, lines[row, column].T, color=color, alpha=0.15, linewidth=0.7)
            axes.plot(steps, lines[row, column].mean(0), color="black", linewidth=1.6)
            axes.grid(alpha=0.3)
            if row == 0:
                axes.set_title(layer)
            else:
                axes.set_xlabel("inner step")
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        grid[row][0].set_ylabel(name)
    figure.suptitle(f"Learned gates, mean over a layer: {lines.shape[2]} tasks, black their mean")
    return figure


def confusion(matrix: Float[Tensor, "n_classes n_classes"], classes: Sequence[str]) -> Figure:
    """What queries of a class (row) are taken for; of many classes, by what stands before the slash of their names.

    Args:
        matrix: Shares, as of `metalstm.evaluation.confusion`.
        classes: The names of its rows.
    """
    if len(classes) > 40:
        groups = [name.split("/")[0] for name in classes]
        classes = sorted(set(groups))
        member = torch.tensor([[group == name for name in classes] for group in groups]).float()
        known = matrix.isfinite().float()
        off = 1 - torch.eye(len(matrix))  # within a group, what is taken for another class of it
        total = member.T @ (matrix.nan_to_num() * off) @ member
        matrix = total / (member.T @ (known * off) @ member)
    shares = 100 * matrix.numpy()
    side = 2.5 + 0.33 * len(classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    off = shares.copy()
    if len(classes) == len(matrix):
        np.fill_diagonal(off, np.nan)
    shown = axes.imshow(off, cmap="viridis", vmin=0)
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=90, fontsize=7)
    axes.set_yticks(ticks, classes, fontsize=7)
    axes.set(xlabel="taken for", ylabel="queries of")
    figure.colorbar(shown, label="% of queries in episodes with both classes", shrink=0.7)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a picture as PNG, whole or not at all."""
    checkpoint.write(path, png(figure))


def png(figure: Figure) -> bytes:
    """A picture as PNG."""
    for axes in figure.axes:
        if not axes.images:
            axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def episode_picture(episode: Episode) -> Figure:
    """One task as a person sees it: the support set on the left, some queries of each class on the right."""
    support, query = episode.support, episode.query
    n_way = support.n_way
    columns = [(support.x[0][support.y[0] == label][:5], query.x[0][query.y[0] == label][:8]) for label in range(n_way)]
    n_left, n_right = len(columns[0][0]), len(columns[0][1])
    figure = Figure(figsize=(0.62 * (n_left + n_right + 1), 0.66 * n_way + 0.5), layout="constrained")
    grid = figure.subplots(n_way, n_left + n_right + 1, squeeze=False)
    for row, (left, right) in zip(grid, columns, strict=True):
        for axes in row:
            axes.axis("off")
        for axes, image in zip([*row[:n_left], *row[n_left + 1 :]], [*left, *right], strict=True):
            picture = image.movedim(0, -1).cpu().numpy()
            axes.imshow(1 - picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
    grid[0][0].set_title("support", loc="left", fontsize=9)
    grid[0][n_left + 1].set_title("queries", loc="left", fontsize=9)
    return figure


def write_run(out: Path, title: str, images: ImagesByClass, results: "Sequence[Block]" = ()) -> None:
    """Write into a run folder `curve.png`, of a Meta-LSTM `gates.png`, and `report.html` with all that there is to see.

    Args:
        out: The run folder.
        title: Heading of the page.
        images: Of the episodes to show.
        results: Shown first.
    """
    method, config, meta = checkpoint.load_method(out)
    curve = learning_curve(out / "metrics.jsonl")
    save(curve, out / "curve.png")
    sampler = EpisodeSampler(images, config.n_way, config.n_shot, config.n_query, config.seed)
    blocks: list[Block] = [
        *results,
        Heading("One task"),
        f"An episode of {images.name}: the support set, that the learner is trained on, and some of the queries.",
        episode_picture(sampler[0]),
        Heading("Meta-training"),
        f"{config.n_way}-way {config.n_shot}-shot on {config.data}, recipe {config.recipe}. Chosen by meta-val: "
        f"{meta['meta_val']:.2f} % after {meta['episode']:,} episodes.",
        curve,
    ]
    if isinstance(method, GradientMethod) and isinstance(method.optimizer, MetaLSTM):
        picture = gates(method, sampler.batch(range(50)))
        save(picture, out / "gates.png")
        blocks += [
            Heading("What was learned"),
            "The gates of theta <- f * theta - i * gradient over the inner steps, a line for each of 50 tasks of "
            f"{images.name}; black: their mean.",
            picture,
        ]
    values = config.to_dict()
    values |= values.pop("settings") | values.pop("training")
    settings = [(name, str(value)) for name, value in values.items()]
    half = (len(settings) + 1) // 2  # in two columns
    rows = [(*left, *right) for left, right in zip_longest(settings[:half], settings[half:], fillvalue=("", ""))]
    machine = provenance.machine(torch.get_num_threads()) | provenance.versions()
    blocks += [
        Heading("Configuration"),
        (("setting", "value") * 2, rows),
        Heading("Where this page was made"),
        (("", ""), [(name.replace("_", " "), str(value)) for name, value in machine.items() if value is not None]),
    ]
    checkpoint.write(out / "report.html", page(title, blocks).encode())


@contextlib.contextmanager
def tensorboard(out: Path) -> Iterator[None]:
    """Copy a run's `metrics.jsonl` into TensorBoard's event file beside it, while the run goes on.

    Raises:
        UserError: TensorBoard is not here.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise UserError(
            "--tensorboard needs tensorboard, which is not here: pip install 'metalstm[tensorboard]'"
        ) from error
    ended, began = threading.Event(), time.time()
    writer: SummaryWriter | None = None
    n_written = 0

    def copy() -> None:
        nonlocal writer, n_written
        lines = _read(out / "metrics.jsonl")[n_written:] if (out / "metrics.jsonl").exists() else []
        if not lines:
            return
        if writer is None:
            for old in out.glob("events.out.tfevents.*"):  # of a run that goes on, which is written from its start
                old.unlink()
            writer = SummaryWriter(out)
        for line in lines:
            for name in line.keys() - {"episode", "seconds"}:
                writer.add_scalar(name, line[name], line["episode"], began + line["seconds"])
        n_written += len(lines)
        writer.flush()

    def follow() -> None:
        while not ended.wait(FOLLOW_SECONDS):
            copy()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        copy()
        if writer:
            writer.close()


class Heading(str):
    """A text block that heads a section."""


class Strong(str):
    """A cell of a table that stands out."""


TableBlock = tuple[Sequence[str], Sequence[Sequence[str]]]  # head and rows; the first column names the rows
Block = str | Figure | TableBlock


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The texts and tables of a page; pictures are left out."""
    parts = [f"# {title}"]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"## {block}")
        elif isinstance(block, str):
            parts.append(block)
        elif not isinstance(block, Figure):
            head, rows = block
            lines = [head, ["---"] * len(head)]
            lines += [[f"**{cell}**" if isinstance(cell, Strong) else cell for cell in row] for row in rows]
            parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts) + "\n"


def page(title: str, blocks: Sequence[Block]) -> str:
    """A self-contained HTML page.

    Args:
        title: Its heading.
        blocks: In order: texts, headings, pictures, and tables.
    """
    body = [f"<h1>{html.escape(title)}</h1>"]
    for block in blocks:
        if isinstance(block, Heading):
            body.append(f"<h2>{html.escape(block)}</h2>")
        elif isinstance(block, str):
            body.append(f"<p>{html.escape(block)}</p>")
        elif isinstance(block, Figure):
            body.append(_img(block))
        else:
            head, rows = block
            cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
            body.append(f'<div class="table"><table><tr>{cells}</tr>')
            body += ["<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows]
            body.append("</table></div>")
    return _PAGE.format(title=html.escape(title), body="\n".join(body))


def _img(figure: Figure) -> str:
    """Plots are turned dark on dark pages; those with images in them stay as they are."""
    kind = "images" if any(axes.images for axes in figure.axes) else "plot"
    names = dict.fromkeys(name for axes in figure.axes if (name := axes.get_ylabel() or axes.get_title()))
    data = base64.b64encode(png(figure)).decode()
    width = round(100 * figure.get_figwidth())
    alt = html.escape(", ".join(names))
    return f'<div class="figure {kind}"><img alt="{alt}" width="{width}" src="data:image/png;base64,{data}"></div>'


def _cell(text: str) -> str:
    inner = html.escape(text)
    return f"<td><b>{inner}</b></td>" if isinstance(text, Strong) else f"<td>{inner}</td>"


def _read(metrics: Path) -> list[dict[str, Any]]:
    whole, _, _ = metrics.read_text().rpartition("\n")  # a line may be on its way
    return [json.loads(line) for line in whole.splitlines()]


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{
  color-scheme: light dark;
  --paper: #fff; --ink: #1b1f27; --soft: #566070; --line: #dde1e7; --shade: #f5f6f8; --accent: #4f46e5;
}}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: #14171c; --ink: #e6e8ec; --soft: #a0a8b5; --line: #30353e; --shade: #1d2127; --accent: #a5a8ff; }}
  .plot img {{ filter: invert(.886) hue-rotate(180deg); }} /* white becomes --shade */
}}
body {{ font: 16px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem;
  background: var(--paper); color: var(--ink); }}
h1 {{ font-size: 1.9rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 1rem; padding-left: .8rem;
  overflow-wrap: anywhere;
  border-left: .3rem solid var(--accent); }}
h2 {{ font-size: 1.2rem; line-height: 1.3; margin: 2.75rem 0 .5rem; }}
p {{ max-width: 46rem; margin: .75rem 0; color: var(--soft); overflow-wrap: anywhere; }}
.table, .figure {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; font-size: .94rem; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .4rem 1.2rem .4rem 0; border-bottom: 1px solid var(--line); }}
th {{ color: var(--soft); font-weight: 600; font-size: .85rem; vertical-align: bottom; }}
td {{ white-space: nowrap; }}
tr:hover td {{ background: var(--shade); }}
td b {{ color: var(--accent); }}
.figure {{ border-radius: 10px; border: 1px solid var(--line); background: white; width: fit-content; max-width: 100%;
  box-sizing: border-box; }}
img {{ display: block; height: auto; max-width: 100%; }}
@media (max-width: 42rem) {{
  .figure img {{ max-width: max(100%, 38rem); }} /* scrolls in its frame instead of being too small to read */
}}
@media (prefers-color-scheme: dark) {{
  .plot {{ background: var(--shade); }}
  .images img {{ filter: brightness(.9); }}
}}
</style></head><body>
{body}
</body></html>
"""
