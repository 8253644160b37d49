"""How the words of a command become its options."""

import ast
import contextlib
import difflib
import inspect
import io
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import groupby
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_origin, get_type_hints

import tyro

from metalstm import settings
from metalstm.cli.common import Command
from metalstm.data import DATASETS, find
from metalstm.data.folder import PREFIX
from metalstm.errors import UserError
from metalstm.settings import Traits

C = TypeVar("C", bound=Command)

Kind = Literal["auto", "drawing", "photo"]
KINDS: dict[Kind, Traits] = {"drawing": Traits(drawing=True, mirrors=False, centered=True), "photo": Traits()}

DATA = f"{', '.join(DATASETS)}; or {PREFIX}DIR for your own images, DIR/<class>/*."
"""Help of `--data`."""


def parse(
    kind: Callable[..., C],
    words: Sequence[str],
    name: str,
    about: str | None,
    default: C | None = None,
    owners: Callable[[], Mapping[str, str]] = dict,
) -> C:
    """A command with the options that some words give.

    Args:
        kind: The command's class, a dataclass.
        words: What stands behind the command's name.
        name: The command's name.
        about: What its help says first.
        default: Values of the options that are not given, where they are not those of the class.
        owners: Gives options that the command has with other choices, each with that choice.

    Raises:
        UserError: There is no such option, or values are not allowed.
        SystemExit: The help was asked for.
    """
    for part in _parts(kind):
        _explain_fields(part)
    if "" in words:  # as a path, it would be the current folder
        after = f" after {words[words.index('') - 1]}" if words[0] else ""
        raise UserError(
            f"metalstm {name} has an empty word{after}: a name or value is missing, or a variable is not set"
        )
    if {"-h", "--help"} & {*words}:
        print(_wrapped(about or ""))  # noqa: T201
    defaults: dict[str, Any] = {} if default is None else {"default": default}
    command, odd = parsed(kind, words, name, description="", **defaults)
    if odd:
        raise _unexpected(odd, name, option_names(kind), owners())
    settings.check(*_values(command))
    return command


def parsed(kind: Any, words: Sequence[str], name: str, **options: Any) -> Any:
    """What tyro makes of some words, and the words that it does not know.

    Raises:
        UserError: A value is missing or of a wrong type.
        SystemExit: The help was asked for.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=words, prog=f"metalstm {name}", return_unknown_args=True, **options)
    except SystemExit as end:
        if not end.code:
            raise
        lines = (line.strip(" │") for line in _plain(said.getvalue()).splitlines()[1:])  # below the title, in a box
        parts = (list(part) for is_rule, part in groupby(lines, lambda line: not line.strip("─-")) if not is_rule)
        reason = " ".join(next(parts, [])).rstrip(". ")
        raise UserError(f"{reason}: metalstm {name} --help shows what it takes") from None


def option_names(kind: Any) -> list[str]:
    """The options that set the fields of a dataclass, and of the dataclasses in it."""
    return [
        settings.option(name) for part in _parts(kind) for name, hint in _hints(part).items() if not is_dataclass(hint)
    ]


def field_docstrings(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, as one line; none where there is no source."""
    docstrings: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        except (OSError, TypeError, SyntaxError):
            continue
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    docstrings[name] = " ".join(text.split())
    return docstrings


def traits_of(data: str, kind: Kind) -> Traits | None:
    """What the user says about the images of a data set; None if they say nothing.

    Raises:
        UserError: The data set is not a folder, and holds the other kind of images.
    """
    if kind == "auto":
        return None
    if data.startswith(PREFIX):
        return KINDS[kind]
    if (is_drawing := find(data).traits.drawing) != KINDS[kind].drawing:
        holds = "drawings" if is_drawing else "photos"
        raise UserError(f"--kind {kind}: {data} holds {holds}: leave it out; it is for {PREFIX}DIR")
    return None


def kind_of(traits: Traits) -> Kind:
    """The kind that gives these traits to the images of a folder."""
    for kind, own in KINDS.items():
        if own == traits:
            return kind
    return "auto"


def _parts(kind: Any) -> Iterator[Any]:
    """A dataclass and all dataclasses in it."""
    yield kind
    for hint in _hints(kind).values():
        if is_dataclass(hint):
            yield from _parts(hint)


def _values(part: Any) -> Iterator[Any]:
    """The values of a dataclass, and of the dataclasses in it."""
    yield part
    for field in fields(part):
        if is_dataclass(value := getattr(part, field.name)):
            yield from _values(value)


def _hints(kind: Any) -> dict[str, Any]:
    """The type of each field; those of a generic dataclass are filled in."""
    origin = get_origin(kind) or kind
    filled = dict(zip(getattr(origin, "__parameters__", ()), getattr(kind, "__args__", ()), strict=False))
    hints = get_type_hints(origin)
    return {field.name: filled.get(hints[field.name], hints[field.name]) for field in fields(origin)}


def _explain_fields(kind: Any) -> None:
    """Give tyro the docstrings of the fields as help; by itself it keeps the line breaks of the source."""
    kind = get_origin(kind) or kind
    docstrings = field_docstrings(kind)
    for field in fields(kind):
        field.metadata = MappingProxyType({"help": docstrings.get(field.name), **field.metadata})


def _wrapped(text: str) -> str:
    """Paragraphs, as wide as the terminal but not wider than is easy to read."""
    width = min(shutil.get_terminal_size().columns, 100)
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(textwrap.fill(" ".join(each.split()), width) for each in paragraphs) + "\n"


def _plain(text: str) -> str:
    """Text without colors."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def _unexpected(odd: Sequence[str], name: str, known: Sequence[str], owners: Mapping[str, str]) -> UserError:
    option = next((word for word in odd if word.startswith("-")), None)
    mend = f"metalstm {name} --help shows what it takes"
    if option is None:
        return UserError(f"metalstm {name} does not take {' '.join(map(repr, odd))}: {mend}")
    option = option.partition("=")[0]
    if option in owners:
        return UserError(f"{option} is not an option of these choices, but of {owners[option]}")
    near = difflib.get_close_matches(option.replace("_", "-"), known, n=1)
    hint = f", did you mean {near[0]}?" if near else ":"
    return UserError(f"metalstm {name} has no option {option}{hint} {mend}")
