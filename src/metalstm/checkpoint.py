"""Checkpoints: tensors in safetensors, everything else as JSON in its header. Loading one executes nothing.

A file is not trusted: before a network is built, its settings are held against their bounds, and the shapes that they
ask for against the tensors in the file. So what loading costs is bounded by the size of the file.
"""

import contextlib
import hashlib
import json
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from metalstm import files, recipes
from metalstm.errors import UserError, shown, unknown
from metalstm.learners import LEARNERS
from metalstm.methods import Method, RunConfig
from metalstm.settings import Amount, Count, Finite, Positive, Ways

LARGE = 2**14  # numbers of a tensor that `halved` rounds
# Below these, a method takes at most some 100 MB: one with a network of its own on features has their square.
SMALL_BODY, SMALL_FEATURES, SMALL_WAY = 2**23, 2**10, 2**10
MOST_ABSENT = 2**28  # bytes of tensors that a method has and a file may lack


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` fitted for a number of classes and shots; what it measured beside that is not looked at.

    `threshold` is that of a classifier. In checkpoints of older versions it was a probability, and is not used.
    """

    n_way: Ways
    n_shot: Count
    temperature: Positive
    least: Finite | None = None
    own: Finite | None = None
    auroc: Finite | None = None
    threshold: Finite | None = None


@dataclass(frozen=True)
class Facts:
    """The plain values of a meta-learner that are used; others are kept and not looked at."""

    config: dict[str, Any]
    meta_val: Finite | None = None
    episode: Amount = 0
    calibration: list[Calibration] | None = None


def save(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors and plain values to one safetensors file, whole or not at all.

    Raises:
        UserError: A number is not finite, or the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        check_finite(tensors)
        text = json.dumps(meta, allow_nan=False)
    except ValueError as error:
        raise UserError(f"{path} is not written ({error}): what was learned has diverged, so lower --lr") from error
    files.write(path, serialize(tensors, metadata={"metalstm": text}))


def load(path: Path, only: Container[str] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote; bfloat16 is read as float32.

    Args:
        path: The file.
        only: Names of the tensors to read; all by default.

    Raises:
        UserError: The file is missing, damaged, not a checkpoint of metalstm, or has a number that is not finite.
    """
    if not files.exists(path):
        raise UserError(f"no checkpoint at {path}")
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("it is not a file")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "metalstm" not in metadata:
                raise ValueError("it has no metadata of metalstm")
            meta = json.loads(metadata["metalstm"])
            if not isinstance(meta, dict):
                raise ValueError("its metadata are no object")
            json.dumps(meta, allow_nan=False)  # the reader takes NaN and 1e999
            names = [name for name in file.keys() if only is None or name in only]  # noqa: SIM118
            tensors = {name: _widened(file.get_tensor(name)) for name in names}
        check_finite(tensors)
        return tensors, meta
    except Exception as error:
        reason = _reason(error)
        raise UserError(
            f"{path} is damaged or not a checkpoint of metalstm ({reason}): get or train it anew"
        ) from error


def n_numbers(path: Path, without: Container[str] = ()) -> int:
    """Numbers in all tensors of a file that `load` reads, without some of them; no tensor is read."""
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name not in without]  # noqa: SIM118
        return sum(prod(file.get_slice(name).get_shape()) for name in names)


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, of which the large ones in float32 are rounded to bfloat16: about half of the bytes."""
    return {
        name: tensor.bfloat16() if tensor.dtype == torch.float32 and tensor.numel() >= LARGE else tensor
        for name, tensor in tensors.items()
    }


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Whether all numbers are finite.

    Raises:
        ValueError: Names the first tensor that has a NaN or an infinite number.
    """
    for name, tensor in sorted(tensors.items()):
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite")


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
        msgspec.convert(meta, Facts)
        state = method_state(tensors)
        check_shapes(config, state)
        method = recipes.build(config)
        method.load_state_dict(state)
    return method.eval(), config, meta


def check_shapes(config: RunConfig, state: Mapping[str, Tensor], may_lack_spent: bool = False) -> Method | None:
    """Compare a method's tensors with those that its configuration asks for, before any of them is made.

    Args:
        config: The configuration.
        state: The tensors, under the names that they have in `state_dict`.
        may_lack_spent: Tensors may be missing that the method no longer needs once it has adapted.

    Returns:
        The method, on PyTorch's meta device if it may be large: shapes without numbers. None if its learner cannot be
        built there.

    Raises:
        KeyError, ValueError: A tensor is missing, foreign, or of another shape or type.
        UserError: The configuration makes no sense.
    """
    try:
        with contextlib.nullcontext() if _is_small(config) else torch.device("meta"):
            method = recipes.build(config)
    except UserError:
        raise
    except Exception:  # a module of a user's own may need its numbers; it is compared once it is built
        return None
    expected = method.state_dict()
    absent = (
        {name: expected.pop(name) for name in expected.keys() & method.spent() - state.keys()} if may_lack_spent else {}
    )
    _check_same_shapes(expected, state)
    if (n_bytes := sum(each.numel() * each.element_size() for each in absent.values())) > MOST_ABSENT:
        raise ValueError(f"its settings ask for {n_bytes:,} bytes that the file does not hold")
    return method


def _is_small(config: RunConfig) -> bool:
    """Whether a method has few numbers. On the meta device PyTorch imports its compiler, which takes seconds."""
    learner = LEARNERS[config.learner]
    if not learner.light:
        return False
    built = learner.build(config.learner_settings, config.image_shape, torch.Generator())
    return built.n_body <= SMALL_BODY and built.n_features <= SMALL_FEATURES and config.n_way <= SMALL_WAY


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
    except Exception as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else _reason(error)
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
    if not isinstance(name, str | Path):
        raise UserError(f"checkpoint {shown(name)}: give the name of a shipped one, a run folder or a file")
    path = Path(name)
    if files.exists(path):
        if not path.is_dir():
            return path
        if files.exists(path / "best.safetensors"):
            return path / "best.safetensors"
        raise UserError(f"{path} holds no best.safetensors: train to the first validation, or name another run folder")
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
        KeyError, ValueError: The tensors are of another method, or not all there.
    """
    # One step that changes nothing lasting makes the optimizer's state, with the names and shapes to hold against.
    for parameter in method.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    _check_same_shapes(training_state(method, optimizer), tensors)
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            if name == "step" and tensor < 0:  # an exponent
                raise ValueError(f"{key} is {tensor.item():g}")
            state.setdefault(int(index), {})[name] = tensor
    method.load_state_dict(method_state(tensors))
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def method_tensors(method: Method) -> dict[str, Tensor]:
    """A method's tensors under the names that they have in a checkpoint."""
    return {f"method.{name}": tensor for name, tensor in method.state_dict().items()}


def method_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The method's part of what `training_state` gives, under its own names."""
    return {key.removeprefix("method."): tensor for key, tensor in tensors.items() if key.startswith("method.")}


def _check_same_shapes(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Whether there are these tensors and no others, each of its shape and type.

    Raises:
        KeyError: One is missing.
        ValueError: One is of another shape or type, or foreign.
    """
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise KeyError(name)
        if name not in expected:
            raise ValueError(f"{name} is foreign")
        there, here = (f"{each[name].dtype} {tuple(each[name].shape)}" for each in (tensors, expected))
        if there != here:
            raise ValueError(f"{name} is {there}, and {here} here".replace("torch.", ""))


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _reason(error: Exception) -> str:
    """What went wrong, in one line that is not too long."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:500]
