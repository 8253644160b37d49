"""The parts of a page: headings, texts, tables and figures. `page` and `markdown` write them."""

from collections.abc import Sequence

from matplotlib.figure import Figure


class Heading(str):
    """A text block that starts a section."""


class Strong(str):
    """A table cell in bold."""


# Head and rows; the first column names the rows. A row of one cell is a title of those below it.
TableBlock = tuple[Sequence[str], Sequence[Sequence[str]]]
Block = str | Figure | TableBlock
