"""Errors that are explained to the user in one line."""

import difflib
import errno
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A mistake that the user can mend. The message says what is wrong, the value got, what is allowed, what to do.

    The command line prints the message as one line on stderr and exits with status 2.
    """

    def __str__(self) -> str:
        """The message in one line, whatever the names in it hold."""
        return " ".join(super().__str__().splitlines())


class Interrupted(Exception):
    """Ctrl-C or SIGTERM stopped something that can be resumed; everything is saved."""


def is_full(error: BaseException) -> bool:
    """Whether the system refused to write because the disk, the quota or the allowed size of a file is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def shown(value: Any) -> str:
    """A value in a message, in one line of at most 200 characters: what a file holds has no bounds."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


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
