"""What is in a table's folder: results, differences between them, comparisons of optimizers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import stdev
from typing import Any

from metalstm.evaluation import difference
from metalstm.table import convergence
from metalstm.table.plan import Table
from metalstm.table.rows import ROWS, Cell, TableRow, Task, rows_of

Result = dict[str, Any]  # what was measured for a cell
Results = dict[Task, dict[str, Result]]  # task -> name of a row -> result


@dataclass(frozen=True)
class Contents:
    """All that a table shows.

    Attributes:
        results: The rows.
        seeds: For each row that was trained from several seeds, the result of each seed.
        convergence: What `convergence.convergence` gives; None if it was not made.
        ablation: What `ablation.ablation` gives; None if it was not made.
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


def bold(results: Mapping[str, Result]) -> set[str]:
    """The rows that are best: the highest mean, and those whose interval overlaps its own, as in the paper."""
    if not results:
        return set()
    top = max(results.values(), key=lambda result: result["accuracy"])
    low = top["accuracy"] - top["ci95"]
    return {name for name, result in results.items() if result["accuracy"] + result["ci95"] >= low}


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


def gap(one: Result, other: Result) -> tuple[float, float]:
    """Mean paired difference of two results, and half the width of its 95 % interval."""
    gaps = difference(one["per_episode"], other["per_episode"])
    return gaps.mean, gaps.ci95
