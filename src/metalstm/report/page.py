"""Pages as one self-contained HTML file."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from metalstm.report.blocks import Block, Heading, Strong
from metalstm.report.figures import png
from metalstm.templates import environment

_templates = environment(Path(__file__).parent)
_templates.tests["strong"] = lambda cell: isinstance(cell, Strong)


def page(title: str, blocks: Sequence[Block]) -> str:
    """A self-contained HTML page.

    Args:
        title: The heading of the page.
        blocks: The parts of the page, in order.

    Raises:
        TypeError: A block is none of the known kinds.
    """
    return _templates.get_template("page.html").render(title=title, blocks=[_values(block) for block in blocks])


def _values(block: Block) -> dict[str, Any]:
    """What the template needs for a block."""
    match block:
        case Heading():
            return {"kind": "heading", "text": block}
        case str():
            return {"kind": "text", "text": block}
        case Figure():
            return {"kind": "figure", **_figure(block)}
        case (head, rows):
            return {"kind": "table", "head": head, "rows": rows}
        case _:
            raise TypeError(f"a page has no block of type {type(block).__name__}")


def _figure(figure: Figure) -> dict[str, Any]:
    """A figure as PNG. Plots are inverted on dark pages; figures that hold images are not."""
    labels = dict.fromkeys(label for axes in figure.axes if (label := axes.get_ylabel() or axes.get_title()))
    return {
        "style": "images" if any(axes.images for axes in figure.axes) else "plot",
        "alt": ", ".join(labels),
        "width": round(100 * figure.get_figwidth()),
        "data": base64.b64encode(png(figure)).decode(),
    }
