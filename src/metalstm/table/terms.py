"""On what terms a result was made: its start, what was trained, how it was tuned, and what differs between rows."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metalstm import checkpoint, recipes
from metalstm.methods import Method
from metalstm.report import read_metrics
from metalstm.table.plan import Table, Training
from metalstm.table.rows import Cell
from metalstm.training.run_folder import last_line, tuning_seconds

Terms = dict[str, Any]

# How the outer loop steps and how long it may take: a method's own, like its other settings.
_OWN = {"lr", "optimizer_lr", "lr_decay", "outer", "weight_decay", "clip", "minutes", "patience", "pretrain"}


def record(table: Table, cell: Cell, trainings: Sequence[Training], method: Method, is_tuned: bool) -> Terms:
    """The terms of a result, as plain values that are kept with it.

    Args:
        table: Gives the budget.
        cell: The result's.
        trainings: Its finished runs.
        method: As it is tested.
        is_tuned: Whether settings were chosen after the training.

    Returns:
        `start`: run, sha256, mini-batches and seconds of the pre-training, None without one. `config`: of the row's own
        training; `episodes` and `seconds` of it, 0 if there is none, and `seconds` of tuning. `validations`: how many
        the checkpoint was chosen from. `search`: the budget of tuning. `part` and `steps`: what the inner loop trains.
    """
    first, own = trainings[0], trainings[-1]
    has_start = first.config.method == recipes.pretraining(own.config).method
    is_start = has_start and first is own
    end = last_line(own.folder)
    return {
        "start": _start(first.folder) if has_start else None,
        "config": recipes.to_dict(own.config),
        "episodes": 0 if is_start else end["episode"],
        "seconds": 0.0 if is_start else end["seconds"],
        "tuning_seconds": tuning_seconds(own.folder),
        "validations": sum("meta_val" in line for line in read_metrics(own.folder / "metrics.jsonl")),
        "search": asdict(table.budget.search) if is_tuned else None,
        "part": method.trained_part(),
        "steps": method.n_steps(table.episodes("meta-val", cell.task)[0].support),
    }


def _start(folder: Path) -> dict[str, Any]:
    end, file = last_line(folder), folder / "best.safetensors"
    return {
        "run": folder.name,
        "sha256": checkpoint.sha256(file),
        "steps": end["episode"],
        "seconds": end["seconds"],
    }
