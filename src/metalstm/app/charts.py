"""Charts of the inner loop as small SVG: a frame takes 0.3 ms, where matplotlib took 366 ms."""

from collections.abc import Sequence
from itertools import cycle

from metalstm.app.templates import render
from metalstm.classifier import InnerStep

F_LOW = 0.9  # the chart of f reaches from 1 down to this at least, so that f = 0.99 looks like what it is
COLORS = ("#6366f1", "#0ea5e9", "#10b981", "#f59e0b", "#ef4444", "#a855f7")
LEFT, RIGHT, TOP, BOTTOM = 34, 234, 8, 92  # of the area of the lines, in the units of the SVG


def charts(steps: Sequence[InnerStep], note: str = "") -> str:
    """Loss, accuracy and gates over the inner steps so far, as HTML.

    Args:
        steps: Empty for a method without inner steps; then there are no charts.
        note: A text below the charts.
    """
    if not steps:
        return render("charts.html", charts=[], legend=[], note=note)
    last = steps[-1]
    losses, accuracies = [step.loss for step in steps], [100 * step.accuracy for step in steps]
    parts = [
        chart("Loss", f"{last.loss:.3f}", [losses], last.of, 0.0, max(losses)),
        chart("Right of these images", f"{last.accuracy:.0%}", [accuracies], last.of, 0.0, 100.0),
    ]
    if last.forget:
        forget = [[step.forget[layer] for step in steps] for layer in last.forget]
        rate = [[step.rate[layer] for step in steps] for layer in last.rate]
        parts += [
            chart("Keeps its weights (f)", "", forget, last.of, min(F_LOW, *map(min, forget)), 1.0),
            chart("Follows the gradient (i)", "", rate, last.of, 0.0, max(map(max, rate))),
        ]
    return render("charts.html", charts=parts, legend=list(zip(last.forget, cycle(COLORS))), note=note)


def chart(
    title: str, value: str, lines: Sequence[Sequence[float]], n_steps: int, low: float, high: float
) -> dict[str, object]:
    """One chart, as `charts.html` draws it.

    Args:
        title: Shown above the chart.
        value: The last value, shown beside the title.
        lines: One value for each step so far.
        n_steps: The number of steps in the end.
        low: The value at the bottom.
        high: The value at the top.
    """

    def point(k: int, y: float) -> str:
        across, up = k / max(n_steps - 1, 1), (y - low) / (high - low or 1)
        return f"{LEFT + (RIGHT - LEFT) * across:.1f},{BOTTOM - (BOTTOM - TOP) * up:.1f}"

    return {
        "title": title,
        "value": value,
        "n_steps": n_steps,
        "left": LEFT,
        "right": RIGHT,
        "ticks": [(TOP, f"{high:.3g}"), (BOTTOM, f"{low:.3g}")],
        "lines": [
            (color, " ".join(point(k, y) for k, y in enumerate(line))) for line, color in zip(lines, cycle(COLORS))
        ],
    }
