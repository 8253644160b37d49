"""Everything a person sees while something runs: progress and messages on stderr, results on stdout."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

# Progress goes to stderr, so that `--json -` and tables can be piped.
console = Console(stderr=True, highlight=False, markup=False)


def results() -> Console:
    """Where tables of results are printed: stdout as it is now, which a caller may have redirected."""
    return Console(highlight=False)


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
        yield from bar.track(items, total=total, description=description)
