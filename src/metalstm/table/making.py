"""Making a table: every row trained, tuned on meta-val, and tested on the same meta-test episodes."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalstm import checkpoint, files, recipes
from metalstm.console import console
from metalstm.evaluation import allow_tf32, evaluate_checkpoint
from metalstm.table import terms
from metalstm.table.plan import Table, Training
from metalstm.table.rows import Cell, TableRow, rows_of
from metalstm.training import step_seconds, train
from metalstm.training.run_folder import last_line


def make(table: Table, chosen: Sequence[TableRow], seeds: Sequence[int]) -> None:
    """Make all results of some rows that are missing, and report progress.

    Args:
        table: Where.
        chosen: Which rows.
        seeds: Of further trainings, for rows that have `seeds`.
    """
    names = [row.name for row in chosen]
    cells = [Cell(row, task) for task in table.tasks for row in rows_of(task) if row.name in names]
    cells += [Cell(row, table.main_task, seed) for seed in seeds for row in chosen if row.seeds]
    missing = [cell for cell in cells if table.read(cell) is None]
    left = _seconds(table, missing)
    for number, cell in enumerate(missing):
        hours = _hours(sum(left.values()))
        console.print(f"[{number + 1}/{len(missing)}] {cell}; at most {hours} of training to go", soft_wrap=True)
        make_cell(table, cell)
        for training in table.trainings(cell):
            left.pop(training.folder, None)


def make_cell(table: Table, cell: Cell) -> dict[str, Any]:
    """Train, tune and test a row at a task, as far as that is not done.

    Returns:
        The result, which is also written.
    """
    if result := table.read(cell):
        return result
    started = time.monotonic()
    facts = _choose(table, cell, _train(table, cell))
    console.print(f"{cell}: chosen on meta-val: {facts['chosen']}; now meta-test is opened", soft_wrap=True)
    result = evaluate_checkpoint(
        table.checkpoint(cell),
        table.meta_sets,
        "meta-test",
        cell.task.n_way,
        cell.task.n_shot,
        episodes=table.budget.test_episodes,
        seed=table.seed,
        device=table.device,
        within_group=cell.task.within_group,
    )
    names = {"row": cell.row.name, "label": cell.row.label}
    result |= facts | names | {"made_in_seconds": time.monotonic() - started}
    files.write(table.result(cell), (json.dumps(result) + "\n").encode())
    console.print(f"{cell}: {result['accuracy']:.2f} +- {result['ci95']:.2f} %", soft_wrap=True)
    return result


def _train(table: Table, cell: Cell) -> list[Training]:
    """Finish the runs that a cell needs."""
    allow_tf32(table.precision)
    trainings = table.trainings(cell)
    start = None
    for training in trainings:
        train(
            training.config,
            table.meta_sets,
            training.folder,
            resume=True,
            device=table.device,
            pretrained=start,
            search=table.budget.search,
        )
        start = training.folder
    return trainings


def _choose(table: Table, cell: Cell, trainings: Sequence[Training]) -> dict[str, Any]:
    """Write the checkpoint that is to be tested, in fp32.

    Returns:
        How it was chosen, and on what terms it was made.
    """
    method, config, meta = checkpoint.load_method(trainings[-1].folder)
    config = recipes.with_changes(config, {"precision": "fp32"})
    chosen = {key: meta[key] for key in ("meta_val", "episode")}
    values = {"config": recipes.to_dict(config), **chosen}
    if "chosen" in meta:  # by tuning
        values["chosen"] = chosen = meta["chosen"]
    checkpoint.save(table.checkpoint(cell), checkpoint.method_tensors(method), values)
    return {
        "chosen": chosen,
        "parameters": sum(parameter.numel() for parameter in method.parameters()),
        "terms": terms.record(table, cell, trainings, method, "chosen" in meta),
    }


def _seconds(table: Table, cells: Sequence[Cell]) -> dict[Path, float]:
    """How long each run that some cells need will take at the most: steps that are left times the time of one."""
    left: dict[Path, float] = {}
    for cell in cells:
        for training in table.trainings(cell):
            if training.folder not in left:
                left[training.folder] = _training_seconds(table, training)
    return left


def _training_seconds(table: Table, training: Training) -> float:
    settings = training.config.training
    done = last_line(training.folder)["episode"] if (training.folder / "metrics.jsonl").exists() else 0
    steps = max(0, settings.episodes - done)
    left = step_seconds(training.config, table.meta_sets, table.device) * steps if steps else 0.0
    return left if settings.minutes is None else min(left, 60 * settings.minutes)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes"
