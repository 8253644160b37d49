"""On what terms a result was made: its start, what was trained, how it was tuned, and what differs between rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from metalstm import checkpoint, recipes
from metalstm.methods import Method
from metalstm.report import read_metrics
from metalstm.table.plan import Table, Training
from metalstm.table.rows import Cell
from metalstm.training.run_folder import last_line, tuning_seconds

Terms = dict[str, Any]

PRETRAINED, RANDOM = "From one pre-trained network", "From random weights"
UNTRAINED, TRANSDUCTIVE = "Nothing is trained", "Transductive"
UNKNOWN = "Made by an older version, which kept no terms"
BLOCKS: tuple[str, ...] = (PRETRAINED, RANDOM, UNTRAINED, TRANSDUCTIVE, UNKNOWN)

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
        `start`: run, sha256, mini-batches, seconds and settings of the pre-training; None without one. `config`: of
        the row's own training; its `episodes` and `seconds`, 0 if there is none; `tuning_seconds`. `validations`: how
        many the checkpoint was chosen from. `search`: the budget of tuning, None without. `part` and `steps`: what the
        inner loop trains.
    """
    first, own = trainings[0], trainings[-1]
    has_start = first.config.method == recipes.pretraining(own.config).method
    is_start = has_start and first is own
    end = last_line(own.folder)
    return {
        "start": _start(first) if has_start else None,
        "config": recipes.to_dict(own.config),
        "episodes": 0 if is_start else end["episode"],
        "seconds": 0.0 if is_start else end["seconds"],
        "tuning_seconds": tuning_seconds(own.folder),
        "validations": sum("meta_val" in line for line in read_metrics(own.folder / "metrics.jsonl")),
        "search": asdict(table.budget.search) if is_tuned else None,
        "part": method.trained_part(),
        "steps": method.n_steps(table.episodes("meta-val", cell.task)[0].support),
    }


def _start(training: Training) -> dict[str, Any]:
    end = last_line(training.folder)
    return {
        "run": training.folder.name,
        "sha256": checkpoint.sha256(training.folder / "best.safetensors"),
        "steps": end["episode"],
        "seconds": end["seconds"],
        "training": recipes.to_dict(training.config)["training"],
    }


def block(result: Mapping[str, Any]) -> str:
    """The rows that a result may be compared with on equal terms, as a title: of the same kind of start."""
    terms = result.get("terms")
    if result.get("transductive"):
        return TRANSDUCTIVE
    if terms is None:
        return UNKNOWN
    if terms["start"]:
        return PRETRAINED
    return RANDOM if terms["episodes"] else UNTRAINED


def minutes(result: Mapping[str, Any], with_start: bool) -> float | None:
    """What a result took: training and tuning, with the shared pre-training or without; None where it is not known."""
    terms = result.get("terms")
    if terms is None:
        return None
    start = terms["start"]["seconds"] if with_start and terms["start"] else 0.0
    return (terms["seconds"] + terms["tuning_seconds"] + start) / 60


def unequal(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, tuple[Any, Any]]]:
    """What is other than in most rows of the same block.

    Settings of the network, of augmentation and of validation are compared, the number of episodes, and the start. A
    method's own settings and its learning rates are not.

    Args:
        results: The results of one task, by row.

    Returns:
        For each row, setting -> (its own value, that of most rows).
    """
    values = {name: _compared(result["terms"]) for name, result in results.items() if result.get("terms")}
    found: dict[str, dict[str, tuple[Any, Any]]] = {name: {} for name in values}
    for title in BLOCKS:
        rows = [name for name in values if block(results[name]) == title]
        for setting in dict.fromkeys(setting for name in rows for setting in values[name]):
            have = {name: values[name][setting] for name in rows if setting in values[name]}
            ((most, _),) = Counter(have.values()).most_common(1)
            for name, own in have.items():
                if own != most:
                    found[name][setting] = _apart(own, most) if setting == "start" else (own, most)
    return found


def _apart(own: str, most: str) -> tuple[str, str]:
    """Names of pre-trainings, with checksums only where the folders have the same name."""
    short = own.partition(" ")[0], most.partition(" ")[0]
    return (own, most) if len(set(short)) == 1 else short


def _compared(terms: Terms) -> dict[str, Any]:
    """The settings that rows are compared by; those of a training only if there was one."""
    config = terms["config"]
    training = {name: value for name, value in config["training"].items() if name not in _OWN}
    return {
        "start": start_name(terms["start"]) if terms["start"] else "",
        "learner": config["learner"],
        **config["learner_settings"],
        **(training if terms["episodes"] else {}),
    }


def start_name(start: Mapping[str, Any]) -> str:
    """A pre-training's folder, and the first digits of its checksum: two files of one name may differ."""
    return f"{start['run']} ({start['sha256'][:6]})"
