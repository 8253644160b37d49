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
                lines = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
            case Figure():
                pass
            case _:
                raise TypeError(f"a page has no block of type {type(block).__name__}")
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return f"**{text}**" if isinstance(text, Strong) else text
