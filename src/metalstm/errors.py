"""What a user did wrong, in one line."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend: what is wrong, the value got, what is allowed, what to do.

    The command line prints the message as one line on stderr and exits with status 2.
    """


class Interrupted(Exception):
    """Ctrl-C or SIGTERM came while something ran that can be gone on with; everything is saved."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not known, with the nearest known name as a suggestion.

    Args:
        kind: What the name names, "data set" say.
        name: The value got.
        known: All allowed values.

    Returns:
        The error, for the caller to raise.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {name!r}{hint or ':'} allowed: {', '.join(known)}")
