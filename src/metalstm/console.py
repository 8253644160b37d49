"""Everything a person sees while something runs: progress and messages on stderr, results on stdout."""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

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


def progress(*columns: TextColumn) -> Progress:
    """A progress bar with count and ETA on stderr; shows nothing if stderr is not a terminal.

    Args:
        columns: Further columns, shown after the count.
    """
    return Progress(
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
