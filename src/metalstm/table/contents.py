"""What is in a table's folder: results, differences between them, comparisons of optimizers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import stdev
from typing import Any

from metalstm.episodes import Task
from metalstm.evaluation import gap
from metalstm.methods import Published
from metalstm.table import convergence, terms
from metalstm.table.plan import Table
from metalstm.table.rows import ROWS, Cell, TableRow, rows_of

LABELS = {row.name: row.label for row in ROWS}
Result = dict[str, Any]  # what was measured for a cell
Results = dict[Task, dict[str, Result]]  # task -> name of a row -> result


@dataclass(frozen=True)
class Contents:
    """All that a table shows.

    Attributes:
        results: The rows.
        seeds: For each row that was trained from several seeds, the result of each seed.
        convergence: What `convergence.convergence` gives; None if it was not made.
        ablation: What `ablation.parts` gives; None if it was not made.
    """

    results: Results
    seeds: dict[str, dict[str, Result]]
    convergence: dict[str, Any] | None
    ablation: dict[str, Result] | None


def collect(table: Table) -> Contents:
    """Read what is in the table's folder."""
    cells = {task: [Cell(row, task) for row in rows_of(task)] for task in table.tasks}
    results = {
        task: {cell.row.name: result for cell in column if (result := table.read(cell))}
        for task, column in cells.items()
    }
    seeds = {row.name: runs for row in ROWS if row.seeds and len(runs := _seeds(table, row)) > 1}
    return Contents(results, seeds, *(_read(table, name) for name in ("convergence", "ablation")))


def inductive(results: Mapping[str, Result]) -> dict[str, Result]:
    """The results that are not transductive."""
    return {name: result for name, result in results.items() if not result.get("transductive")}


def best(results: Mapping[str, Result]) -> str | None:
    """The inductive row with the highest mean; None if there is none."""
    rows = inductive(results)
    return max(rows, key=lambda name: rows[name]["accuracy"]) if rows else None


def bold(results: Mapping[str, Result]) -> set[str]:
    """The best inductive rows: the highest mean, and those whose interval overlaps its own, as in the paper."""
    if not (top := best(results)):
        return set()
    low = results[top]["accuracy"] - results[top]["ci95"]
    return {name for name, result in inductive(results).items() if result["accuracy"] + result["ci95"] >= low}


def by_block(columns: Results) -> dict[str, list[str]]:
    """The rows of some columns, in the table's order, by the title of the block that they are in."""
    blocks: dict[str, list[str]] = {}
    for row in ROWS:
        if found := [column[row.name] for column in columns.values() if row.name in column]:
            blocks.setdefault(terms.block(found[0]), []).append(row.name)
    return {title: blocks[title] for title in terms.BLOCKS if title in blocks}


def published(name: str, data: str, task: Task) -> list[Published]:
    """The published figures of a row for a data set and a task."""
    (row,) = (row for row in ROWS if row.name == name)
    return [each for each in row.published if each.data == data and str(task) in each.figures]


def groups(results: Results) -> list[Results]:
    """The columns that have results, in groups that differ in the number of shots alone."""
    filled = ((task, column) for task, column in results.items() if column)
    return [dict(group) for _, group in groupby(filled, key=lambda item: replace(item[0], n_shot=0))]


def differences(results: Mapping[str, Result]) -> dict[str, dict[str, tuple[float, float]]]:
    """For each row and each other row, their mean paired difference and half the width of its 95 % interval."""
    return {one: {other: gap(a, b) for other, b in results.items() if other != one} for one, a in results.items()}


def _seeds(table: Table, row: TableRow) -> dict[str, Result]:
    """The results of a row by seed, at the main task: the table's own first."""
    own = Cell(row, table.main_task)
    paths = table.result(own).parent.glob(f"{own}-seed*.json")
    seeds = sorted(int(path.stem.rpartition("-seed")[2]) for path in paths)
    cells = {table.seed: own, **{seed: Cell(row, table.main_task, seed) for seed in seeds}}
    return {str(seed): result for seed, cell in cells.items() if (result := table.read(cell))}


def _read(table: Table, name: str) -> dict[str, Any] | None:
    path = convergence.path(table, name)
    return json.loads(path.read_text()) if path.exists() else None


def spread(runs: Mapping[str, Result]) -> float:
    """Standard deviation of accuracy between trainings."""
    return stdev(result["accuracy"] for result in runs.values())
