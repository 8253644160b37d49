"""Figures of a table that only its page shows."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from metalstm import checkpoint, report
from metalstm.episodes import EpisodeSampler, Task
from metalstm.evaluation import confusion
from metalstm.report import Block, Heading
from metalstm.table import convergence
from metalstm.table.contents import Contents, Result
from metalstm.table.plan import Table
from metalstm.table.rows import Cell, rows_of

GATE_TASKS, CONFUSION_EPISODES = 50, 200


def pictures(table: Table, contents: Contents) -> list[Block]:
    """Learning curves of each column; of the learned optimizer, its gates and confusions."""
    blocks: list[Block] = []
    for task, results in contents.results.items():
        blocks += _learning_curves(table, task, results)
    learned = convergence.learned_row(table)
    for task in table.tasks if learned else ():
        if learned in rows_of(task) and table.checkpoint(cell := Cell(learned, task)).exists():
            blocks += _behavior(table, cell)
    return blocks


def _learning_curves(table: Table, task: Task, results: Mapping[str, Result]) -> list[Block]:
    runs = {}
    for row in rows_of(task):
        own = table.trainings(Cell(row, task))[-1]
        # A shared pre-training is validated at one task and belongs to that column.
        config = own.config
        belongs = Task(config.n_way, config.n_shot, config.training.within_group) == task
        if row.name in results and belongs and own.config.training.episodes and (own.folder / "metrics.jsonl").exists():
            runs[row.label] = own.folder
    return [Heading(f"Learning curves, {task.words}"), report.meta_val_curves(runs)] if runs else []


def _behavior(table: Table, cell: Cell) -> list[Block]:
    """Gates of the learned optimizer; at the main task, which classes are taken for which."""
    method, _, _ = checkpoint.load_method(table.checkpoint(cell))
    task, images = cell.task, table.meta_sets.splits["meta-test"]
    support_only = EpisodeSampler(images, task.n_way, task.n_shot, 0, table.seed, within_group=task.within_group)
    blocks: list[Block] = []
    if gates := report.gates(method, support_only.batch(range(GATE_TASKS))):
        blocks += [
            Heading(f"What was learned, {task.words}"),
            f"{cell.row.label}: the gates of theta <- f * theta - i * gradient, a line for each of {GATE_TASKS} "
            "meta-test tasks; black: their mean.",
            gates,
        ]
    if task == table.main_task:
        sampler = EpisodeSampler(images, task.n_way, task.n_shot, seed=table.seed)
        matrix = confusion(method, sampler, min(CONFUSION_EPISODES, table.budget.test_episodes), "confusions")
        blocks += [
            Heading(f"Which classes are taken for which, {task.words}"),
            f"{cell.row.label}.",
            report.confusion(matrix, sampler.images.classes),
        ]
    return blocks


def inner_steps(curves: dict[str, Any]) -> Figure:
    """Support loss, query loss and query accuracy against inner steps, a column for each start."""
    starts = curves["starts"]
    kinds = {"support_loss": "support loss (nats)", "query_loss": "query loss (nats)", "accuracy": "query accuracy (%)"}
    figure = Figure(figsize=(11, 8), layout="constrained")
    grid = figure.subplots(len(kinds), len(starts), sharex=True, sharey="row", squeeze=False)
    for column, (start, rivals) in enumerate(starts.items()):
        for row, (kind, label) in enumerate(kinds.items()):
            axes = grid[row][column]
            for number, (name, entry) in enumerate(rivals.items()):
                if not entry["curves"]:
                    continue
                # The learned optimizer comes first.
                color, width = (f"C{number - 1}", 1.2) if number else ("black", 2.2)
                line = entry["curves"][kind]
                axes.plot(
                    curves["points"],
                    line,
                    color=color,
                    linewidth=width,
                    label=convergence.LABELS[name],
                    zorder=2 if number else 3,
                )
                if not number:
                    axes.axvline(entry["steps"], color="0.6", linestyle=":", linewidth=1)
            axes.grid(alpha=0.3)
            if kind == "query_loss":
                axes.set_ylim(0, 2.5)
            if column == 0:
                axes.set_ylabel(label)
        grid[0][column].set_title(f"from {convergence.STARTS[start]}")
        grid[-1][column].set_xlabel("inner step")
    grid[-1][-1].legend(fontsize=8, loc="lower right")
    return figure
