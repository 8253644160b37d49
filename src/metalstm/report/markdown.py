"""Pages as Markdown."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from metalstm.report.blocks import Block, Heading, Strong


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The texts and tables of a page, without its figures.

    Args:
        title: The heading of the page.
        blocks: The parts of the page, in order.

    Raises:
        TypeError: A block is none of the known kinds.
    """
    parts = [f"# {title}"]
    for block in blocks:
        match block:
            case Heading():
                parts.append(f"## {block}")
            case str():
                parts.append(block)
            case (head, rows):
                lines = [head, ["---"] * len(head), *(_line(row, len(head)) for row in rows)]
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
            case Figure():
                pass
            case _:
                raise TypeError(f"a page has no block of type {type(block).__name__}")
    return "\n\n".join(parts) + "\n"


def _line(row: Sequence[str], width: int) -> list[str]:
    """The cells of a row; a title of rows is in italics, and fills the row with empty cells."""
    if len(row) < width:
        return [f"*{row[0]}*", *[""] * (width - 1)]
    return [f"**{cell}**" if isinstance(cell, Strong) else cell for cell in row]
