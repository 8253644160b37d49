"""The parts of a page: headings, texts, tables and figures. `page` and `markdown` write them."""

from collections.abc import Sequence

from matplotlib.figure import Figure


class Heading(str):
    """A text block that starts a section."""


class Strong(str):
    """A table cell in bold."""


TableBlock = tuple[Sequence[str], Sequence[Sequence[str]]]  # head and rows; the first column names the rows
Block = str | Figure | TableBlock
