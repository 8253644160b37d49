"""The folder of a run: its configuration, metrics, best checkpoint, and the state to go on from."""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalstm import checkpoint, files, recipes, settings
from metalstm.console import console
from metalstm.errors import UserError
from metalstm.methods import Method, RunConfig
from metalstm.settings import Amount, Finite, NotNegative

SHOWN = 5  # damaged lines that a message names


@dataclass
class Progress:
    """How far a run is."""

    episode: Amount = 0
    seconds: NotNegative = 0.0
    best: Finite = -1.0  # meta-val accuracy in percent
    best_episode: Amount = 0
    since_best: Amount = 0  # validations

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: Any) -> "Progress":
        """The inverse of `to_dict`.

        Raises:
            UserError: A value is missing, unknown, or no number that it can be.
        """
        progress = settings.from_dict(cls, values)
        settings.check_names(cls, values)
        return progress


class RunFolder:
    """A run on disk. `config.json`, `metrics.jsonl`, `best.safetensors` (by meta-val), `last.safetensors` (to go on).

    Args:
        path: The folder.
        config: Of the run that is to be in it.
    """

    def __init__(self, path: Path, config: RunConfig):
        self.path, self.config = path, config
        self.best, self.last = path / "best.safetensors", path / "last.safetensors"
        self.metrics, self.configuration = path / "metrics.jsonl", path / "config.json"

    def locked(self, wait: bool = False) -> AbstractContextManager[None]:
        """Keep all other processes from writing here.

        Args:
            wait: For another process that does, if there is one; otherwise it is an error.

        Raises:
            UserError: Another process writes here, or the folder cannot be written to.
        """

        def say(holder: str) -> None:
            console.print(f"{self.path}: waiting for {holder}", soft_wrap=True)

        return files.lock(self.path / ".lock", say if wait else None)

    def check(self, resume: bool) -> None:
        """Compare with the run that is in the folder, if any.

        Raises:
            UserError: It holds a run and `resume` is not set, or another run, or a damaged one.
        """
        source = next((file for file in (self.configuration, self.last, self.best) if file.exists()), None)
        if source is None:
            return
        if not resume:
            raise UserError(f"{self.path} already holds a run: pass --resume to go on with it, or another --out")
        try:
            is_text = source == self.configuration
            old = recipes.from_dict(json.loads(source.read_text()) if is_text else checkpoint.load(source)[1]["config"])
        except (ValueError, KeyError, RecursionError, UserError) as error:
            raise UserError(f"{source} is damaged ({error}): restore it, or train anew with another --out") from error
        if different := recipes.differences(old, self.config):
            raise UserError(f"{self.path} holds another run ({different}): use its settings, or another --out")
        if self.best.exists():  # now, not after all episodes
            try:
                checkpoint.load_method(self.best)
            except UserError as error:
                raise UserError(
                    f"{error}; or remove it: then --resume chooses the best of the validations to come, at least one"
                ) from error

    def progress(self) -> Progress | None:
        """How far the run is; None if it has no state, or a state that was left without its best checkpoint.

        Raises:
            UserError: The state is damaged.
        """
        if not (self.last.exists() and self.best.exists()):
            return None
        with checkpoint.fits(self.last, "train anew with another --out"):
            return Progress.from_dict(checkpoint.load(self.last)[1]["at"])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The state to go on from, if there is one. Without its best checkpoint, it knows of no best."""
        if not self.last.exists():
            return None
        tensors, meta = checkpoint.load(self.last)
        if not self.best.exists() and isinstance(meta.get("at"), dict):
            console.print(f"{self.best} is missing: the best is chosen anew from here on", soft_wrap=True)
            meta["at"] |= {"best": Progress.best, "best_episode": 0, "since_best": 0}
        return tensors, meta

    def restore(
        self, state: tuple[dict[str, Tensor], dict[str, Any]], method: Method, optimizer: torch.optim.Optimizer
    ) -> Progress:
        """Put a state back into a method and its outer optimizer.

        Raises:
            UserError: It is not a state of this run.
        """
        tensors, meta = state
        try:
            checkpoint.restore_training_state(method, optimizer, tensors)
            return Progress.from_dict(meta["at"])
        except (KeyError, TypeError, ValueError, UserError) as error:
            reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{self.last} is not a state of this run ({reason}): train anew with another --out"
            ) from error

    def write_configuration(self) -> None:
        """Write the configuration, from which a run can be resumed."""
        files.write(self.configuration, (files.to_json(recipes.to_dict(self.config), 1) + "\n").encode())

    def begin(self, at: Progress, is_done: bool) -> None:
        """Write the configuration, and drop what a killed run left half-done.

        Args:
            at: How far the run is.
            is_done: Whether its training has ended. Otherwise choices that were made before are dropped.
        """
        files.remove_temporary(self.path, *(file.name for file in (self.best, self.last, self.metrics)))
        files.remove_temporary(self.path, self.configuration.name, "tuned-*.json")
        self.write_configuration()
        has_best = self.best.exists()
        self._forget_metrics_after(at.episode if has_best or at.episode else -1)
        for path in [] if is_done and has_best else self.path.glob("tuned-*.json"):
            path.unlink()

    def save_last(self, method: Method, optimizer: torch.optim.Optimizer, at: Progress) -> None:
        """Write the state to go on from."""
        checkpoint.save(self.last, checkpoint.training_state(method, optimizer), self._meta(self.config, at))

    def save_best(
        self, method: Method, at: Progress, config: RunConfig | None = None, facts: dict[str, Any] | None = None
    ) -> None:
        """Write the checkpoint that evaluation takes.

        Args:
            method: Its weights.
            at: How far the run is.
            config: Of the method, where tuning has changed it.
            facts: Further plain values.
        """
        checkpoint.save(self.best, checkpoint.method_tensors(method), self._meta(config or self.config, at, facts))

    def log(self, line: dict[str, Any]) -> None:
        """Append a line of metrics."""
        text = files.to_json(line) + "\n"
        try:
            with self.metrics.open("a") as file:
                file.write(text)
        except OSError as error:
            raise files.cannot_write(self.metrics, len(text), error) from error

    def keep(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A part of the tuning: read if it is in the folder, otherwise computed and written, with the seconds it took.

        Raises:
            UserError: The file is damaged.
        """
        path = self.path / f"tuned-{name}.json"
        if not path.exists():
            started = time.monotonic()
            values = compute()
            values = values | {"seconds": round(time.monotonic() - started, 3)}
            files.write(path, (files.to_json(values) + "\n").encode())
        return {name: value for name, value in read_tuned(path).items() if name != "seconds"}

    def _meta(self, config: RunConfig, at: Progress, facts: dict[str, Any] | None = None) -> dict[str, Any]:
        return {
            "config": recipes.to_dict(config),
            "at": at.to_dict(),
            "meta_val": at.best,
            "episode": at.episode,
            **(facts or {}),
        }

    def _forget_metrics_after(self, episode: int) -> None:
        """Drop lines that a killed run wrote after its last saved state, and what cannot be read; report the latter."""
        if not self.metrics.exists():
            return
        text = self.metrics.read_bytes()
        lines, damaged = _lines(text)
        files.write(self.metrics, b"".join(line for line, values in lines if values["episode"] <= episode))
        if damaged:
            which = f"line{'s' * (len(damaged) > 1)} {', '.join(map(str, damaged[:SHOWN]))}"
            more = f" and {len(damaged) - SHOWN} more" if len(damaged) > SHOWN else ""
            console.print(f"{self.metrics}: dropped {which}{more}, which cannot be read", soft_wrap=True)


def tuning_seconds(run: Path) -> float:
    """How long the parts of a run's tuning took together."""
    return sum((read_tuned(path).get("seconds", 0.0) for path in run.glob("tuned-*.json")), 0.0)


def read_tuned(path: Path) -> dict[str, Any]:
    """A part of the tuning.

    Raises:
        UserError: The file is damaged.
    """
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("it is no object")
        return values
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it") from error


def last_line(run: Path) -> dict[str, Any]:
    """The last line of a run's metrics that can be read; of episode 0 if there is none."""
    lines, _ = _lines((run / "metrics.jsonl").read_bytes())
    return lines[-1][1] if lines else {"episode": 0, "seconds": 0.0}


def _lines(text: bytes) -> tuple[list[tuple[bytes, dict[str, Any]]], list[int]]:
    """The lines of metrics, each with its values, and the numbers of those that cannot be read.

    A line without an end, which a killed run leaves, is neither.
    """
    good, damaged = [], []
    for number, line in enumerate(text.split(b"\n")[:-1], 1):
        try:
            values = json.loads(line)
            if type(values["episode"]) is not int or not values["seconds"] >= 0:
                raise ValueError
            good.append((line + b"\n", values))
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged.append(number)
    return good, damaged
