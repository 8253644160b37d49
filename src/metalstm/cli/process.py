"""The process that a command runs in: its number among those that torchrun started, and its exit status."""

import os
import sys
import time
from typing import NoReturn

VARIABLES = {"RANK", "LOCAL_RANK", "WORLD_SIZE"}  # which torchrun sets


def rank() -> int | None:
    """The number of this process if torchrun has started several, otherwise None."""
    launched = os.environ.keys() >= VARIABLES and os.environ["WORLD_SIZE"] != "1"
    return int(os.environ["RANK"]) if launched else None


def is_first_of_machine() -> bool:
    """Whether this process does what is done once on each machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def fail(message: str, status: int) -> NoReturn:
    """Print a message on stderr and exit."""
    if number := rank():
        # A failure of all processes is reported by process 0: once it has ended, torchrun ends the others.
        time.sleep(5 if status == 2 else 1)
        message = f"process {number}: {message}"
    if not (number and status == 130):
        from metalstm.console import printable

        print(f"metalstm: {printable(message)}", file=sys.stderr)  # noqa: T201
    leave(status)


def leave(status: int, at_once: bool = False) -> NoReturn:
    """Exit.

    Args:
        status: Of the process.
        at_once: Without the interpreter's own end, which takes half a second once torch is imported.
    """
    if at_once or rank() is not None:  # a thread of gloo that still runs may abort the interpreter's own end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
