"""Errors that are explained to the user in one line."""

import difflib
import errno
from collections.abc import Iterable, Sequence
from typing import Any

SHOWN = 20  # lines of a list
MOST = 2000  # characters of a message: names have no bounds either
SKIP_BAD = "pass --skip-bad to go on without"


class UserError(Exception):
    """A mistake that the user can mend. The message says what is wrong, the value got, what is allowed, what to do.

    The command line prints the message as one line on stderr and exits with status 2.
    """

    def __str__(self) -> str:
        """The message in one line of at most 2,000 characters, whatever the names in it hold."""
        return cut(" ".join(super().__str__().splitlines()))


class Problems(UserError):
    """Several mistakes in one list: one line for each below the first. One alone is a single line.

    Args:
        where: What has them.
        problems: One line each; at least one.
        instead: What the user can do other than to mend them, for example "pass --skip-bad".
    """

    def __init__(self, where: object, problems: Sequence[str], instead: str):
        super().__init__(where, problems, instead)  # as they are, so that other processes can be sent the error
        self.where, self.instead = " ".join(str(where).split()), instead
        self.problems = [cut(" ".join(each.split())) for each in problems]

    def __str__(self) -> str:
        """The list."""
        if len(self.problems) == 1:
            return f"{self.problems[0]}, or {self.instead}"
        n = f"{len(self.problems):,} problems"
        return f"{self.where}: {n}; mend them, or {self.instead}:\n{listed(self.problems)}"


class Interrupted(Exception):
    """Ctrl-C or SIGTERM stopped something that can be resumed; everything is saved."""


def is_full(error: BaseException) -> bool:
    """Whether the system refused to write because the disk, the quota or the allowed size of a file is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def shown(value: Any) -> str:
    """A value in a message, in one line of at most 200 characters: what a file holds has no bounds."""
    return short(repr(value))


def cut(message: str) -> str:
    """A message of at most 2,000 characters: its start says what is wrong, its end what to do."""
    return message if len(message) <= MOST else f"{message[: MOST // 2]} ... {message[5 - MOST // 2 :]}"


def short(text: str) -> str:
    """A text in one line of at most 200 characters."""
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def listed(lines: Sequence[str]) -> str:
    """Lines below another one, the first 20 of them."""
    more = [f"and {len(lines) - SHOWN:,} more"] if len(lines) > SHOWN else []
    return "\n".join(f"  {line}" for line in [*lines[:SHOWN], *more])


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for an unknown name, with the nearest known name as a suggestion.

    Args:
        kind: What is named, for example "data set".
        name: The value got.
        known: All allowed values.

    Returns:
        The error, for the caller to raise.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name[:80], known, n=1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {shown(name)}{hint or ':'} allowed: {', '.join(known)}")
