"""Write a classifier as a file that runs without this package: ONNX, or a program of torch.export.

The file takes uint8 images (n, height, width, channels) and gives probabilities. Its metadata hold the size of images,
the filter to resize them with, and the class names. `examples/` in the source shows how to run it.

Example: metalstm export birds.safetensors --format onnx
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from metalstm.cli.common import Command, Common, Options
from metalstm.cli.options import parse
from metalstm.console import console
from metalstm.errors import unknown

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


@dataclass(frozen=True)
class Export(Command):
    """Options of `metalstm export`."""

    classifier: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CLASSIFIER")]
    """The file of the classifier, made by `metalstm adapt`."""
    format: str = "onnx"
    """`onnx`, which is checked with onnxruntime before it is kept, or `torch`."""
    out: Path | None = None
    """File to write; by default, the name of the classifier with .onnx or .pt2."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Export, check, write."""
        if self.format not in SUFFIXES:
            raise unknown("format", self.format, SUFFIXES)
        self.common.start()
        from metalstm.classifier import Classifier, export

        out = self.out or self.classifier.with_suffix(SUFFIXES[self.format])
        classifier = Classifier.load(self.classifier)
        {"onnx": export.to_onnx, "torch": export.to_torch}[self.format](classifier, out)
        size, channels = classifier.preprocessing.image_size, classifier.preprocessing.channels
        console.print(f"{out}: takes uint8 (n, {size}, {size}, {channels})", soft_wrap=True)


def command(words: Sequence[str]) -> Export:
    """`metalstm export WORDS`."""
    return parse(Export, words, "export", __doc__)
