"""`run.json`: what made the contents of a folder, and each time that meta-test was opened for them."""

import json
import time
from pathlib import Path
from typing import Any

import torch

from metalstm import distributed, files, provenance
from metalstm.errors import UserError
from metalstm.methods import RunConfig

NAME = "run.json"
KEPT = (
    "split", "n_way", "n_shot", "n_query", "within_group", "episodes", "seed", "accuracy", "ci95", "changes",
    "checkpoint_sha256",
)  # fmt: skip


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The contents: `starts`, a list of commands, and `meta_test`, a list of openings; both empty if there is no file.

    Raises:
        UserError: The file is damaged.
    """
    path = folder / NAME
    empty: dict[str, list[dict[str, Any]]] = {"starts": [], "meta_test": []}
    if not path.exists():
        return empty
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("it is no object")
        values = empty | values
        for name in empty:
            if not isinstance(values[name], list) or not all(isinstance(each, dict) for each in values[name]):
                raise ValueError(f"{name} is no list of objects")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it, or move it away") from error
    return values


def start(folder: Path, config: RunConfig, device: torch.device | str) -> None:
    """Note that a run is started, or goes on: command, limits, seed, digest of the data, versions and machine.

    Raises:
        UserError: The file is damaged or cannot be written.
    """
    _append(
        folder,
        "starts",
        {
            "data": config.data,
            "data_digest": config.data_digest,
            "seed": config.seed,
            "limits": {name: getattr(config.training, name) for name in ("episodes", "minutes", "patience")},
            "device": str(device),
            "processes": distributed.world_size(),
            "versions": provenance.versions(),
            "machine": provenance.machine(torch.get_num_threads()),
        },
    )


def opening(folder: Path, result: dict[str, Any], **more: Any) -> None:
    """Note that meta-test was opened.

    Args:
        folder: Of a run, or of a table.
        result: What `evaluate_checkpoint` gave.
        more: Further plain values: the `row` of a table, and why it was opened again.

    Raises:
        UserError: The file is damaged or cannot be written.
    """
    _append(folder, "meta_test", {name: result[name] for name in KEPT if name in result} | more)


def openings(folder: Path, row: str) -> list[dict[str, Any]]:
    """How often meta-test was opened for a row of a table, and with which result.

    Raises:
        UserError: The file is damaged.
    """
    return [each for each in read(folder)["meta_test"] if each.get("row") == row]


def _append(folder: Path, name: str, entry: dict[str, Any]) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with files.lock(folder / f".{NAME}.lock", wait=lambda holder: None):
        files.remove_temporary(folder, NAME)
        values = read(folder)
        values[name].append({"time": now, "command": provenance.command(), **entry})
        files.write(folder / NAME, (files.to_json(values, indent=1) + "\n").encode())
