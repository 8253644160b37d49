"""Table 1 and its relatives: all rows on a data set, made and compared on equal terms."""

from metalstm.episodes import Task
from metalstm.table.ablation import compare
from metalstm.table.making import make
from metalstm.table.page import write
from metalstm.table.plan import QUICK, Budget, Table
from metalstm.table.rows import ROWS, Cell, TableRow, select

__all__ = [
    "QUICK",
    "ROWS",
    "Budget",
    "Cell",
    "Table",
    "TableRow",
    "Task",
    "compare",
    "make",
    "select",
    "write",
]
