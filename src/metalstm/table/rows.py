"""Rows and columns of the table: every method's own rows, and the tasks of the data set."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from metalstm.episodes import Task
from metalstm.errors import unknown
from metalstm.methods import METHODS, Row


@dataclass(frozen=True)
class TableRow(Row):
    """A row with the name of its method in `METHODS`."""

    method: str = ""


@dataclass(frozen=True)
class Cell:
    """A result of the table: a row at a task.

    Attributes:
        row: The row.
        task: The column.
        seed: Of the training, if it is another one than the table's own; the test episodes are the same.
    """

    row: TableRow
    task: Task
    seed: int | None = None

    def __str__(self) -> str:
        return named(self.row.name, self.task, self.seed)


def named(name: str, task: Task, seed: int | None) -> str:
    """The name of a file or folder of the table."""
    return f"{name}-{task}" + (f"-seed{seed}" if seed is not None else "")


ROWS = tuple(TableRow(**vars(row), method=name) for name, method in METHODS.items() for row in method.rows())


def rows_of(task: Task) -> list[TableRow]:
    """The rows that are tested on a task."""
    return [row for row in ROWS if task.n_way in row.ways]


def select(*only: str) -> tuple[TableRow, ...]:
    """The rows of some names, in the table's order; all rows without a name.

    Args:
        only: Names with commas between them. `*`, `?` and `[]` stand for other letters, as in names of files.

    Raises:
        UserError: There is no such row.
    """
    patterns = [pattern.strip() for names in only for pattern in names.split(",")]
    for pattern in patterns:
        if not any(fnmatchcase(row.name, pattern) for row in ROWS):
            raise unknown("row", pattern, [row.name for row in ROWS])
    return tuple(row for row in ROWS if not only or any(fnmatchcase(row.name, pattern) for pattern in patterns))
