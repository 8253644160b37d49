"""Making a table: every row trained, tuned on meta-val, and tested on the same meta-test episodes."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalstm import checkpoint, files, recipes
from metalstm.console import console
from metalstm.errors import UserError
from metalstm.evaluation import allow_tf32, evaluate_checkpoint
from metalstm.table import terms
from metalstm.table.plan import Table, Training
from metalstm.table.rows import Cell, TableRow, rows_of
from metalstm.training import record, step_seconds, train
from metalstm.training.run_folder import last_line


def make(table: Table, chosen: Sequence[TableRow], seeds: Sequence[int], again: str = "") -> None:
    """Make all results of some rows that are missing, and report progress.

    Args:
        table: Where.
        chosen: Which rows.
        seeds: Of further trainings, for rows that have `seeds`.
        again: Why meta-test is opened again for rows for which it was opened before.

    Raises:
        UserError: Meta-test was opened before for a missing result, and there is no reason to open it again.
    """
    names = [row.name for row in chosen]
    cells = [Cell(row, task) for task in table.tasks for row in rows_of(task) if row.name in names]
    cells += [Cell(row, table.main_task, seed) for seed in seeds for row in chosen if row.seeds]
    missing = [cell for cell in cells if table.read(cell) is None]
    _check_unopened(table, missing, again)  # now, not after hours of training
    left = _seconds(table, missing)
    for number, cell in enumerate(missing):
        hours = _hours(sum(left.values()))
        console.print(f"[{number + 1}/{len(missing)}] {cell}; at most {hours} of training to go", soft_wrap=True)
        make_cell(table, cell, again)
        for training in table.trainings(cell):
            left.pop(training.folder, None)
    opened = {str(cell): _opened(table, cell) for cell in cells}
    more = ", ".join(f"{n} times for {cell}" for cell, n in opened.items() if n > 1)
    total = f"meta-test was opened {sum(opened.values())} times for {len(cells)} results"
    console.print(f"{total}: {more}" if more else total, soft_wrap=True)


def make_cell(table: Table, cell: Cell, again: str = "") -> dict[str, Any]:
    """Train, tune and test a row at a task, as far as that is not done, here or by another process.

    Args:
        table: Where.
        cell: The row and the task.
        again: As for `make`.

    Returns:
        The result, which is also written.

    Raises:
        UserError: As `make`.
    """

    def say(holder: str) -> None:
        console.print(f"{cell}: waiting for {holder}", soft_wrap=True)

    with files.lock(table.result(cell).with_name(f".{cell}.lock"), say):
        return table.read(cell) or _make_cell(table, cell, again)


def _make_cell(table: Table, cell: Cell, again: str) -> dict[str, Any]:
    _check_unopened(table, [cell], again)
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
    files.write(table.result(cell), (files.to_json(result) + "\n").encode())
    record.opening(table.out, result, row=str(cell), reason=again or None)
    console.print(f"{cell}: {result['accuracy']:.2f} +- {result['ci95']:.2f} %", soft_wrap=True)
    return result


def _opened(table: Table, cell: Cell) -> int:
    """How often meta-test was opened for a result. If the last time is not noted, that is made up for."""
    openings = record.openings(table.out, str(cell))
    result = table.read(cell)
    if result is None or result["checkpoint_sha256"] in [each.get("checkpoint_sha256") for each in openings]:
        return len(openings)
    record.opening(table.out, result, row=str(cell), reason="noted later")
    return len(openings) + 1


def _check_unopened(table: Table, cells: Sequence[Cell], again: str) -> None:
    """Whether meta-test was not opened yet for some results.

    Raises:
        UserError: It was, and there is no reason to open it again.
    """
    opened = {str(cell): n for cell in cells if (n := len(record.openings(table.out, str(cell))))}
    if opened and not again:
        which = ", ".join(f"{cell} ({n} time{'s' * (n > 1)})" for cell, n in opened.items())
        raise UserError(
            f"meta-test was opened before for {which}, which are to be made again: pass --again REASON, which "
            f"{table.out / record.NAME} then keeps, or restore their files in {table.out / 'rows'}"
        )


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
            wait=True,
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
