"""Ctrl-C and SIGTERM while a run trains."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from metalstm import distributed


@contextmanager
def caught() -> Iterator[list[int]]:
    """A list that fills when Ctrl-C or SIGTERM comes, so that a loop can end between two steps; twice ends at once."""
    received: list[int] = []

    def handle(number: int, _: object) -> None:
        if received:
            os.write(2, b"\x1b[?25h\n")  # show the cursor, which the progress bar hid
            os._exit(130)
        received.append(number)
        if distributed.rank() == 0:
            # Not through rich, which may be in the middle of a line.
            os.write(2, b"\nstopping after this step; once more to stop at once\n")

    # Only the main thread may handle signals; in another one, whoever started it is in charge.
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
