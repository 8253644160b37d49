"""Settings: frozen dataclasses whose types hold their bounds and whose docstrings are the help of the command line."""

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from math import inf
from numbers import Integral
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from metalstm.errors import UserError, shown

S = TypeVar("S")

LARGEST = 1e9  # of every number

Count = Annotated[int, Meta(ge=1, le=10**9)]
Amount = Annotated[int, Meta(ge=0, le=10**9)]  # a count that may be 0
Ways = Annotated[int, Meta(ge=2, le=10**6)]  # classes in an episode
Channels = Annotated[int, Meta(ge=1, le=16)]  # of an image
Side = Annotated[int, Meta(ge=1, le=512)]  # height or width of an image, in pixels
Width = Annotated[int, Meta(ge=1, le=2**16)]  # as `Side`; features stand for images with one pixel for each number
Seed = Annotated[int, Meta(ge=0, lt=2**32)]
Positive = Annotated[float, Meta(gt=0, le=LARGEST)]
NotNegative = Annotated[float, Meta(ge=0, le=LARGEST)]
Share = Annotated[float, Meta(ge=0, lt=1)]  # 1 is excluded
Weight = Annotated[float, Meta(gt=0, le=1)]  # 0 is excluded
Finite = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Precision = Literal["fp32", "tf32", "bf16"]

# How a message states each bound of `msgspec.Meta`.
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


@dataclass(frozen=True)
class NoSettings:
    """Nothing to set."""


@dataclass(frozen=True)
class Traits:
    """What recipes and preprocessing need to know about a data set. A checkpoint keeps them."""

    drawing: bool = False
    """Strokes on paper. Light paper is turned dark before a learner sees it."""
    mirrors: bool = True
    """An image and its mirror image show the same class."""
    rotations: bool = False
    """An image turned by 90 degrees shows another class."""
    centered: bool = False
    """Of drawings: the ink is moved to the middle of the paper before the image is resized."""
    built_in: bool = False
    """Drawn on the spot for the demo, which has minutes: recipes do without pre-training."""


@dataclass(frozen=True)
class TrainingSettings:
    """The outer loop; the defaults are the paper's for the Meta-LSTM at 5 shots."""

    episodes: Amount = 50_000
    """Meta-train episodes at the most; mini-batches for a method that is trained on these."""
    minutes: Positive | None = None
    """Minutes of training at the most, validations and pre-training included; the pre-training gets at most half of
    them. A validation that has begun is finished."""
    meta_batch: Count = 1
    """Episodes in an outer step."""
    lr: NotNegative = 1e-3
    """Learning rate of the outer optimizer. 0 leaves the network as it is: only an inner optimizer is trained."""
    optimizer_lr: Positive = 1e-3
    """The same for the inner optimizer's own weights. With large inner steps, a fast-changing rule diverges."""
    lr_decay: bool = False
    """Let the learning rates fall to zero over `episodes` along half a cosine."""
    outer: Literal["adam", "sgd"] = "adam"
    """The outer optimizer: Adam, or gradient descent with Nesterov momentum 0.9."""
    weight_decay: NotNegative = 0.0
    """Factor of the weights that the outer optimizer adds to their gradient."""
    clip: Positive | None = 0.25
    """Largest norm of the meta-gradient, over all meta-parameters."""
    pretrain: Amount = 0
    """Mini-batches of pre-training as a classifier of all meta-train classes, from which theta_0 starts."""
    generations: Annotated[int, Meta(ge=1, le=10)] = 1
    """Times that the network is pre-trained; from the second on, it also learns from the answers of the one before
    (self-distillation)."""
    rotations: bool = False
    """Add each meta-train class turned by 90, 180 and 270 degrees as new classes."""
    mirrors: bool = False
    """Add each meta-train image's mirror image to its class."""
    crop: Annotated[int, Meta(ge=0, le=64)] = 0
    """Train on random crops: shift each image by up to this many pixels and fill the border with zeros."""
    jitter: Share = 0.0
    """Train on images whose brightness, contrast and saturation change at random by up to this share."""
    affine: Share = 0.0
    """Train on images that are turned, scaled, sheared and shifted at random: 0.1 turns by up to 18 degrees, scales and
    shears by up to 10 %, and shifts by up to 5 % of the side."""
    elastic: NotNegative = 0.0
    """Train on images that are bent at random by up to about this many pixels."""
    within_group: bool = False
    """Draw all classes of an episode from one group of classes, an alphabet for example; in validation too."""
    val_every: Count = 1000
    """Episodes between two validations."""
    val_episodes: Annotated[int, Meta(ge=2, le=10**9)] = 100
    """Meta-val episodes in a validation."""
    patience: Count | None = None
    """Stop after this many validations without gain."""


def option(name: str) -> str:
    """The command-line option of a setting."""
    return f"--{name.replace('_', '-')}"


def check(*settings: Any) -> None:
    """Compare every value of some settings with its type and bounds.

    Raises:
        UserError: Names every wrong value and what is allowed.
    """
    wrong = [message for each in settings for message in _wrong(type(each), _values(each))]
    if wrong:
        raise UserError("; ".join(wrong))


def check_seed(seed: Any) -> None:
    """Whether NumPy and torch take a number as a seed.

    Raises:
        UserError: It is out of 0 .. 2^32 - 1, or no whole number.
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= int(seed) < 2**32:
        raise UserError(f"--seed {shown(seed)}: must be a whole number, at least 0 and below 2^32")


def changed(settings: S, name: str, value: Any) -> S:
    """The same settings with another value of one.

    Raises:
        UserError: The value has a wrong type or is out of its bounds.
    """
    for message in _wrong(type(settings), {name: value}):
        raise UserError(message)
    values: dict[str, Any] = {name: _convert(value, _hints(type(settings))[name])}
    return replace(settings, **values)  # pyright: ignore[reportArgumentType]


def to_dict(settings: Any) -> dict[str, Any]:
    """Plain values, as JSON would give them back."""
    return msgspec.json.decode(msgspec.json.encode(settings))


def from_dict(kind: type[S], values: Any) -> S:
    """The inverse of `to_dict`.

    Args:
        kind: The dataclass to make; its fields may be dataclasses themselves.
        values: Values of fields; a field without one has its default, which for a new setting is what was before it.

    Raises:
        UserError: A name is unknown, or a value has a wrong type or is out of its bounds.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{kind.__qualname__} is {shown(values)}: must be an object")
    check_names(kind, values, complete=False)
    if wrong := list(_wrong(kind, values)):
        raise UserError("; ".join(wrong))
    return kind(**{name: _convert(values[name], hint) for name, hint in _hints(kind).items() if name in values})


def check_names(kind: type, values: Mapping[Any, Any], complete: bool = True) -> None:
    """Whether there is a value for no other than the fields of a dataclass, and if it is to be complete, for each.

    Raises:
        UserError: Names what is missing and what is unknown.
    """
    names = {field.name for field in fields(kind)}
    faults = {"lacks": names - set(values) if complete else set(), "does not know": set(values) - names}
    faults = {what: sorted(str(each)[:80] for each in which)[:20] for what, which in faults.items() if which}
    if said := [f"{what} {', '.join(which)}" for what, which in faults.items()]:
        raise UserError(f"{kind.__qualname__} {' and '.join(said)}")


def _convert(value: Any, hint: Any) -> Any:
    if is_dataclass(hint):
        return from_dict(hint, value)  # pyright: ignore[reportArgumentType]
    return msgspec.convert(value, hint)


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}  # pyright: ignore[reportArgumentType]


@cache
def _plain_hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _values(settings: Any) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in fields(settings)}


def _wrong(kind: type, values: Mapping[str, Any]) -> Iterator[str]:
    """A message for each wrong value; values that are dataclasses are left to the caller."""
    for name, hint in _hints(kind).items():
        if name not in values or is_dataclass(hint) or is_dataclass(values[name]) or hint is Any:
            continue
        if not _fits(values[name], hint):
            is_of_type = _fits(values[name], _plain_hints(kind)[name]) and values[name] not in (inf, -inf)
            yield f"{option(name)} {shown(values[name])}: must be {_allowed(hint, not is_of_type)}".replace("'", "")


def _fits(value: Any, hint: Any) -> bool:
    try:
        plain = msgspec.to_builtins(value, enc_hook=str)  # of a path
        msgspec.convert(plain, hint, dec_hook=lambda kind, text: kind(text))
    except (msgspec.ValidationError, TypeError, OverflowError):
        return False
    return True


def _allowed(hint: Any, with_type: bool = True) -> str:
    """What a type allows, in words; bounds alone where the value is of the type and out of these."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (Union, types.UnionType):
        return " or ".join("None" if arg is type(None) else _allowed(arg, with_type) for arg in args)
    if origin is Annotated:
        bounds = {key: getattr(args[1], key) for key in _BOUNDS if getattr(args[1], key) is not None}
        bounded = " and ".join(f"{_BOUNDS[key]} {value:g}" for key, value in bounds.items())
        return f"{_allowed(args[0])}, {bounded}" if with_type else bounded
    if origin is tuple:
        number = "a list of values" if args[-1] is Ellipsis else f"{len(args)} values"
        return f"{number}, each {_allowed(args[0])}"
    return {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}.get(hint, str(hint))
