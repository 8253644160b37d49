"""A table of results as Markdown, JSON and one self-contained page."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from metalstm import ablation, files, provenance, report
from metalstm.episodes import Task
from metalstm.evaluation import gap
from metalstm.methods import METHODS, Published
from metalstm.report import Block, Heading, Strong
from metalstm.table import charts, convergence
from metalstm.table.contents import (
    LABELS,
    Contents,
    Result,
    Results,
    best,
    bold,
    by_block,
    collect,
    differences,
    groups,
    inductive,
    published,
    spread,
)
from metalstm.table.pictures import inner_steps, pictures
from metalstm.table.plan import Table
from metalstm.table.rows import ROWS
from metalstm.table.terms_page import lines_of, terms_tables

PAPERS_DATA = "mini-imagenet"  # of the paper's own Table 1


def write(table: Table) -> None:
    """Write `table.md`, `table.json` and `report.html` from what is in the table's folder."""
    contents = collect(table)
    title = f"Table 1 on {table.meta_sets.name}" + (" (quick)" if _is_quick(table) else "")
    first, *others = _blocks(table, contents)
    files.write(table.out / "table.json", (json.dumps(_values(table, contents)) + "\n").encode())
    files.write(table.out / "table.md", report.markdown(title, [first, *others]).encode())
    shown = [first, *_overview(table, contents.results), *others, *pictures(table, contents)]
    files.write(table.out / "report.html", report.page(title, shown).encode())


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
    task, results = table.main_task, contents.results
    blocks: list[Block] = [
        f"Mean accuracy in percent and 95 % interval over the same {table.budget.test_episodes} meta-test episodes for "
        "all rows of a task, 15 queries a class. Everything was chosen on meta-val before meta-test was opened. Rows "
        "are inductive unless they are called transductive: no query's answer depends on another query.",
        *_table(table, results),
        *terms_tables(results),
        *_published(table, results),
    ]
    for name, runs in contents.seeds.items():
        blocks += _between_trainings(LABELS[name], runs)
    if contents.convergence:
        blocks += _convergence(task, contents.convergence)
    if contents.ablation:
        blocks += _ablation(task, contents.ablation)
    return [*blocks, *_choices(results)]


def _overview(table: Table, results: Results) -> list[Block]:
    """The pictures that a page opens with."""
    columns = groups(results)
    if not columns:
        return []
    blocks: list[Block] = [
        Heading("All rows"),
        "Dots are means, lines 95 % intervals. Arrows stand for rows far to the left. Crosses are published figures of "
        "the same method.",
        *(charts.dots(group, table.meta_sets.name) for group in columns),
        Heading("Accuracy against minutes"),
        "Minutes of all that a row needs: the pre-training that rows share, its own training, tuning. Named are the "
        "rows that no other row beats in both. Rows without training and transductive rows are left out.",
        *(charts.against_minutes(group) for group in columns),
        Heading("Paired differences"),
        "Row minus column, in points, over the same episodes. A dot: the 95 % interval has 0 in it. table.json has all "
        "figures. Transductive rows are left out.",
    ]
    pairs = [(task, rows) for task, column in results.items() if len(rows := inductive(column)) > 1]
    return blocks + [charts.heat(task, rows) for task, rows in pairs]


def _table(table: Table, results: Results) -> list[Block]:
    """A table for each group of columns: accuracy, the difference from the best row, published figures."""
    versions = provenance.versions()
    blocks: list[Block] = [
        Heading("Accuracy"),
        "Bold: the best, and those whose interval overlaps its own. Differences from the best row are paired, with "
        "their own 95 % interval. Transductive rows are not among the best. †: published, but transductive.",
    ]
    for group in groups(results):
        figures = {task: _with_figures(table, task, column) for task, column in group.items()}
        head = ["method"]
        for task in group:
            head += [task.words, "minus the best", *(["published"] if figures[task] else [])]
        blocks.append(
            (head, lines_of(by_block(group), lambda name, of=figures, group=group: _accuracies(name, group, of)))
        )
    return [
        *blocks,
        f"Made by metalstm table --data {table.meta_sets.name}, seed {table.seed}, metalstm {versions['metalstm']} "
        f"({versions['commit'][:10]}), PyTorch {versions['torch']}.",
    ]


def _with_figures(table: Table, task: Task, column: Mapping[str, Result]) -> dict[str, list[Published]]:
    """The rows of a column for which there are published figures."""
    return {name: found for name in column if (found := published(name, table.meta_sets.name, task))}


def _accuracies(name: str, columns: Results, figures: Mapping[Task, Mapping[str, Sequence[Published]]]) -> list[str]:
    cells: list[str] = []
    for task, column in columns.items():
        accuracy = minus = ""
        if name in column:
            accuracy = _figure(column[name])
            accuracy = Strong(accuracy) if name in bold(column) else accuracy
            top = best(column)
            minus = "" if top in (None, name) else _signed(*gap(column[name], column[top]))
        cells += [accuracy, minus]
        if figures[task]:
            cells.append(", ".join(_published_figure(each, task) for each in figures[task].get(name, ())))
    return cells


def _published_figure(each: Published, task: Task) -> str:
    figure = " ± ".join(f"{value:.{1 + (len(each.figures[str(task)]) > 1)}f}" for value in each.figures[str(task)])
    return figure + ("†" if each.transductive else "")


def _published(table: Table, results: Results) -> list[Block]:
    """The sources of published figures for the data set, and the paper's own for its data set."""
    rows = [row for row in ROWS if any(row.name in column for column in results.values())]
    every = [
        (METHODS[row.method].label, each)
        for data in dict.fromkeys((table.meta_sets.name, PAPERS_DATA))
        for row in rows
        for each in row.published
        if each.data == data
    ]
    tasks = [task for task in results if any(str(task) in each.figures for _, each in every)]
    if not tasks:
        return []
    lines = [
        (
            label,
            each.data,
            *(_published_figure(each, task) if str(task) in each.figures else "" for task in tasks),
            ", ".join(filter(None, [each.source, each.note])),
        )
        for label, each in every
    ]
    lines = list(dict.fromkeys(lines))  # rows of one method have the same
    return [
        Heading("Published figures"),
        "Of the same methods, for networks of four convolutions. †: transductive. Figures for "
        f"{PAPERS_DATA} show the order of the rows in the paper's own table.",
        (("method", "data", *(task.words for task in tasks), "source"), lines),
    ]


def _between_trainings(label: str, runs: Mapping[str, Result]) -> list[Block]:
    return [
        Heading(f"Between trainings: {label}"),
        "The same recipe trained from other seeds, tested on the same episodes.",
        (("seed", "accuracy"), [(seed, _figure(result)) for seed, result in runs.items()]),
        f"Standard deviation between trainings: {spread(runs):.2f}.",
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
    return [
        Heading(f"What each part is worth, {task.words}"),
        "One part of the trained method is replaced, without training anew. Means of gates are taken on meta-train, "
        "and rules are tuned on meta-val.",
        *ablation.blocks({task.words: parts}),
    ]


def _choices(results: Results) -> list[Block]:
    lines = [
        (LABELS[name], task.words, _chosen(result["chosen"]))
        for task, column in results.items()
        for name, result in column.items()
    ]
    return [
        Heading("What was chosen on meta-val"),
        "Pre-trained networks are chosen once for all tasks, by nearest neighbor.",
        (("method", "task", "chosen"), lines),
    ]


def _chosen(chosen: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in chosen.items()
    )


def _figure(result: Result) -> str:
    return f"{result['accuracy']:.2f} ± {result['ci95']:.2f}"


def _at_steps(entry: Result) -> str:
    return f"{_figure(entry)} ({entry['steps']})"


def _signed(mean: float, ci95: float) -> str:
    return f"{mean:+.2f} ± {ci95:.2f}"
