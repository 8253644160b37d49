"""Everything a person sees while something runs: progress and messages on stderr, results on stdout."""

import re
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

EVERY = 30.0  # seconds between two lines about progress in a log

# Control characters but tab and line feed, changes of the direction of writing, and bytes that are not UTF-8.
UNPRINTABLE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Text that a terminal shows and does not obey: names of files and classes may hold commands for it.

    Such characters become their codes, for example `\x1b`.
    """
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class PlainConsole(Console):
    """A console that prints all strings `printable`."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As Console."""
        super().print(*(printable(part) if isinstance(part, str) else part for part in objects), **options)


# Progress goes to stderr, so that `--json -` and tables can be piped.
console = PlainConsole(stderr=True, highlight=False, markup=False)


def results() -> Console:
    """Where tables of results are printed: stdout as it is now, which a caller may have redirected."""
    return PlainConsole(highlight=False)


@cache
def say_once(text: str) -> None:
    """Print a line, the first time only."""
    console.print(text, soft_wrap=True)


class _Lines(Progress):
    """Progress for a log: a line every `EVERY` seconds about each task that is not finished."""

    def start(self) -> None:
        """Begin to print."""
        self._stopped = threading.Event()
        threading.Thread(target=self._print, daemon=True).start()

    def stop(self) -> None:
        """Print no more."""
        self._stopped.set()

    def _print(self) -> None:
        began = {}
        while not self._stopped.wait(EVERY if began else EVERY / 2):
            for task in self.tasks:
                started, first = began.setdefault(task.id, (task.get_time(), task.completed))
                if task.finished or not task.visible or not task.total:
                    continue
                line = f"{task.description}: {task.completed:,.0f} of {task.total:,.0f} {task.fields.get('unit', '')}"
                if done := task.completed - first:
                    left = (task.get_time() - started) / done * (task.total - task.completed)
                    line += f", about {spell(left)} left"
                console.print(", ".join(filter(None, (line.rstrip(), task.fields.get("status")))), soft_wrap=True)


def spell(seconds: float) -> str:
    """A duration as a person says it: 50 s, 12 min, 3 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def progress(*columns: TextColumn) -> Progress:
    """A progress bar with count and ETA on stderr; a line every 30 seconds if stderr is not a terminal.

    Args:
        columns: Further columns, shown after the count. A line shows the fields `unit` and `status` of a task.
    """
    return (Progress if console.is_terminal else _Lines)(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        *columns,
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar.

    Args:
        items: What to iterate over.
        description: Shown before the bar.
        total: The number of items, if `items` has no length.
    """
    with progress() as bar:
        yield from bar.track(items, total=total, description=printable(description))
