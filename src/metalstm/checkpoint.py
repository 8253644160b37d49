"""Checkpoints: tensors in safetensors, everything else as JSON in its header. Loading one executes nothing."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from metalstm import files, recipes
from metalstm.errors import UserError, unknown
from metalstm.methods import Method, RunConfig


def save(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors and plain values to one safetensors file, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    files.write(path, serialize(tensors, metadata={"metalstm": json.dumps(meta)}))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote.

    Raises:
        UserError: The file is missing, damaged, or not a checkpoint of metalstm.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "metalstm" not in metadata:
                raise ValueError("it has no metadata of metalstm")
            meta = json.loads(metadata["metalstm"])
            if not isinstance(meta, dict):
                raise ValueError("its metadata are no object")
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        if not path.exists():
            raise UserError(f"no checkpoint at {path}") from error
        raise UserError(f"{path} is damaged or not a checkpoint of metalstm ({error}): get or train it anew") from error


def load_method(name: str | Path, changes: dict[str, Any] | None = None) -> tuple[Method, RunConfig, dict[str, Any]]:
    """The method that a checkpoint holds.

    Args:
        name: The name of a shipped checkpoint, a run folder or a file.
        changes: Settings to be other than the checkpoint's, by name.

    Returns:
        The method in evaluation mode, its configuration, and all plain values of the checkpoint.

    Raises:
        UserError: The name is unknown, the file damaged, or a setting not one of the method's.
    """
    path = find(name)
    tensors, meta = load(path)
    if "classes" in meta:
        raise UserError(f"{path} is a classifier, not a meta-learner: metalstm predict takes it")
    config = recipes.with_changes(read_config(path, meta), changes or {})
    with fits(path, "train it anew"):
        method = recipes.build(config)
        method.load_state_dict(method_state(tensors))
    return method.eval(), config, meta


def read_config(path: Path, meta: dict[str, Any]) -> RunConfig:
    """The configuration in the plain values of a checkpoint.

    Raises:
        UserError: There is none, or one that this version does not know.
    """
    with fits(path, "train it anew"):
        return recipes.from_dict(meta["config"])


@contextlib.contextmanager
def fits(path: Path, mend: str) -> Iterator[None]:
    """Turn whatever goes wrong in making something of a file into one clear line.

    Raises:
        UserError: The contents do not fit this version.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError, UserError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise UserError(f"{path} does not fit this version of metalstm ({reason}): {mend}") from error


def shipped() -> dict[str, Path]:
    """The checkpoints in the package: name -> path."""
    folder = Path(str(resources.files("metalstm"))) / "checkpoints"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def find(name: str | Path) -> Path:
    """The file of a shipped checkpoint's name, of a run folder (its best by meta-val) or of a path.

    Raises:
        UserError: There is no such thing.
    """
    path = Path(name)
    if path.is_dir():
        if (path / "best.safetensors").exists():
            return path / "best.safetensors"
        raise UserError(f"{path} holds no best.safetensors: train to the first validation, or name another run folder")
    if path.exists():
        return path
    if path.suffix or len(path.parts) > 1:
        raise UserError(f"no checkpoint at {path}: give a run folder, a file, or one of {', '.join(shipped())}")
    if str(name) not in shipped():
        raise unknown("checkpoint", str(name), shipped())
    return shipped()[str(name)]


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def training_state(method: Method, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors that training goes on from: the method's, and the outer optimizer's per parameter."""
    state = method_tensors(method)
    for index, values in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
    return state


def restore_training_state(method: Method, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `training_state` took after a step.

    Raises:
        ValueError: The tensors are of another method, or not all there.
    """
    # One step that changes nothing lasting makes the optimizer's state, with the names and shapes to hold against.
    for parameter in method.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    expected = training_state(method, optimizer)
    wrong = [name for name in expected.keys() | tensors.keys() if _shape(expected, name) != _shape(tensors, name)]
    if wrong:
        raise ValueError(f"{min(wrong)} is missing, foreign or of another shape")
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = tensor
    method.load_state_dict(method_state(tensors))
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def method_tensors(method: Method) -> dict[str, Tensor]:
    """A method's tensors under the names that they have in a checkpoint."""
    return {f"method.{name}": tensor for name, tensor in method.state_dict().items()}


def method_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The method's part of what `training_state` gives, under its own names."""
    return {key.removeprefix("method."): tensor for key, tensor in tensors.items() if key.startswith("method.")}


def _shape(tensors: dict[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None
