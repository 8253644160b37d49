"""A table of results as Markdown, JSON and one self-contained page."""

import json
from collections.abc import Mapping
from typing import Any

import torch

from metalstm import files, provenance, report
from metalstm.report import Block, Heading, Strong
from metalstm.table import convergence
from metalstm.table.contents import Contents, Result, Results, bold, collect, differences, gap, spread
from metalstm.table.pictures import inner_steps, pictures
from metalstm.table.plan import Table
from metalstm.table.rows import ROWS, Task

ROW_LABELS = {row.name: row.label for row in ROWS}


def write(table: Table) -> None:
    """Write `table.md`, `table.json` and `report.html` from what is in the table's folder."""
    contents = collect(table)
    title = f"Table 1 on {table.meta_sets.name}" + (" (quick)" if _is_quick(table) else "")
    blocks = _blocks(table, contents)
    files.write(table.out / "table.json", (json.dumps(_values(table, contents)) + "\n").encode())
    files.write(table.out / "table.md", report.markdown(title, blocks).encode())
    files.write(table.out / "report.html", report.page(title, [*blocks, *pictures(table, contents)]).encode())


def _is_quick(table: Table) -> bool:
    return table.budget.train_episodes is not None


def _values(table: Table, contents: Contents) -> dict[str, Any]:
    """The contents of `table.json`."""
    task = str(table.main_task)
    return {
        "data": table.meta_sets.name,
        "quick": _is_quick(table),
        "seed": table.seed,
        "machine": provenance.machine(torch.get_num_threads()),
        "versions": provenance.versions(),
        "tasks": {str(task): results for task, results in contents.results.items()},
        "differences": {str(task): differences(results) for task, results in contents.results.items()},
        "seeds": {name: {"runs": runs, "std": spread(runs)} for name, runs in contents.seeds.items()},
        "convergence": {task: contents.convergence} if contents.convergence else {},
        "ablation": {task: contents.ablation} if contents.ablation else {},
    }


def _blocks(table: Table, contents: Contents) -> list[Block]:
    task = table.main_task
    blocks = _table(table, contents.results)
    for name, runs in contents.seeds.items():
        blocks += _between_trainings(ROW_LABELS[name], runs)
    for column, results in contents.results.items():
        if len(results) > 1:
            blocks += _paired_differences(column, results)
    if contents.convergence:
        blocks += _convergence(task, contents.convergence)
    if contents.ablation:
        blocks += _ablation(task, contents.ablation)
    return [*blocks, *_choices(contents.results)]


def _table(table: Table, results: Results) -> list[Block]:
    versions = provenance.versions()
    head = ["method", *(task.words for task in results), *(f"paper, {shots}-shot" for shots in (1, 5))]
    strong = {task: bold(column) for task, column in results.items()}
    lines = []
    for row in ROWS:
        if not any(row.name in column for column in results.values()):
            continue
        cells = []
        for task, column in results.items():
            cell = _figure(column[row.name]) if row.name in column else ""
            cells.append(Strong(cell) if row.name in strong[task] else cell)
        paper = [f"{mean:.2f} ± {ci95:.2f}" for mean, ci95 in row.paper] or ["", ""]
        lines.append((row.label, *cells, *paper))
    return [
        f"Mean accuracy in percent and 95 % interval over the same {table.budget.test_episodes} meta-test episodes for "
        "all rows of a task, 15 queries a class. All rows are inductive: no query's answer depends on another query. "
        "Bold: the best, and those whose interval overlaps its own. Everything was chosen on meta-val before meta-test "
        "was opened. The paper's own figures are for mini-ImageNet; they show the order of the rows there.",
        (head, lines),
        f"Made by metalstm table --data {table.meta_sets.name}, seed {table.seed}, metalstm {versions['metalstm']} "
        f"({versions['commit'][:10]}), PyTorch {versions['torch']}.",
    ]


def _between_trainings(label: str, runs: Mapping[str, Result]) -> list[Block]:
    return [
        Heading(f"Between trainings: {label}"),
        "The same recipe trained from other seeds, tested on the same episodes.",
        (("seed", "accuracy"), [(seed, _figure(result)) for seed, result in runs.items()]),
        f"Standard deviation between trainings: {spread(runs):.2f}.",
    ]


def _paired_differences(task: Task, results: Mapping[str, Result]) -> list[Block]:
    gaps = differences(results)
    lines = [
        (ROW_LABELS[one], *("" if one == other else _signed(*gaps[one][other]) for other in results)) for one in results
    ]
    return [
        Heading(f"Paired differences, {task.words}"),
        "Row minus column, in points, over the same episodes, with the 95 % interval of the paired differences.",
        (["", *(ROW_LABELS[name] for name in results)], lines),
    ]


def _convergence(task: Task, curves: dict[str, Any]) -> list[Block]:
    starts = curves["starts"]
    names = list(dict.fromkeys(name for rivals in starts.values() for name in rivals))
    lines = []
    for name in names:
        cells = (_at_steps(rivals[name]) if name in rivals else "" for rivals in starts.values())
        lines.append((convergence.LABELS[name], *cells))
    return [
        Heading(f"How fast does each optimizer learn? {task.words}"),
        f"Mean query accuracy over {curves['episodes']} meta-test episodes after the number of inner steps in "
        "brackets. For the learned optimizer it is the number that it was trained for, for a fixed rule the best on "
        "meta-val. Fixed rules are tuned on meta-val for each start. Only the last column separates the learned "
        "optimizer from the learned start.",
        (("optimizer", *(f"from {convergence.STARTS[start]}" for start in starts)), lines),
        inner_steps(curves),
    ]


def _ablation(task: Task, parts: Mapping[str, Result]) -> list[Block]:
    whole = parts["whole"]
    lines = [(name, _figure(part), "" if part is whole else _signed(*gap(part, whole))) for name, part in parts.items()]
    return [
        Heading(f"What each part is worth, {task.words}"),
        "One part of the trained method is replaced, without training anew. Means of gates are taken on meta-train, "
        "and rules are tuned on meta-val.",
        (("variant", "accuracy", "minus the whole"), lines),
    ]


def _choices(results: Results) -> list[Block]:
    lines = [
        _choice(ROW_LABELS[name], task, result) for task, column in results.items() for name, result in column.items()
    ]
    head = ("method", "task", "chosen on meta-val", "parameters", "episodes", "minutes of training")
    return [
        Heading("What was chosen, and what it took"),
        "Pre-trained networks are chosen once for all tasks, by nearest neighbor on meta-val. Minutes include the "
        "pre-training that a row starts from; for a row without further training, episodes are its mini-batches.",
        (head, lines),
    ]


def _choice(label: str, task: Task, result: Result) -> tuple[str, ...]:
    chosen = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in result["chosen"].items()
    )
    minutes = f"{result['train_seconds'] / 60:.0f} ({result['train_precision']})"
    return label, task.words, chosen, f"{result['parameters']:,}", f"{result['train_episodes']:,}", minutes


def _figure(result: Result) -> str:
    return f"{result['accuracy']:.2f} ± {result['ci95']:.2f}"


def _at_steps(entry: Result) -> str:
    return f"{_figure(entry)} ({entry['steps']})"


def _signed(mean: float, ci95: float) -> str:
    return f"{mean:+.2f} ± {ci95:.2f}"
