"""Pages and pictures: figures, self-contained HTML, Markdown, the page of a run, TensorBoard's files."""

from metalstm.report.blocks import Block, Heading, Strong, TableBlock
from metalstm.report.figures import confusion, episode_picture, gates, learning_curve, meta_val_curves, png, save
from metalstm.report.markdown import markdown
from metalstm.report.metrics import read_metrics
from metalstm.report.page import page
from metalstm.report.run import write_run
from metalstm.report.tensorboard import tensorboard

__all__ = [
    "Block",
    "Heading",
    "Strong",
    "TableBlock",
    "confusion",
    "episode_picture",
    "gates",
    "learning_curve",
    "markdown",
    "meta_val_curves",
    "page",
    "png",
    "read_metrics",
    "save",
    "tensorboard",
    "write_run",
]
