"""Write a classifier as a file that runs without this package: ONNX, a program of torch.export, or an HTML page.

ONNX and torch take uint8 images (n, height, width, channels) and give probabilities. Their metadata hold the size of
images, the filter to resize them with, and the class names. `examples/` in the source shows how to run them.
A classifier on a backbone is exported with it, or without it by `--head-only`.

The page takes files and the camera, and runs in a browser without a network. It needs onnxruntime-web, which is
downloaded once (33 MB).

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
from metalstm.errors import UserError, unknown

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "html": ".html"}


@dataclass(frozen=True)
class Export(Command):
    """Options of `metalstm export`."""

    classifier: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CLASSIFIER")]
    """The file of the classifier, made by `metalstm adapt`."""
    format: str = "onnx"
    """`onnx`, which is checked with onnxruntime before it is kept, `torch`, or `html`."""
    out: Path | None = None
    """File to write; by default, the name of the classifier with .onnx, .pt2 or .html."""
    head_only: bool = False
    """Of a classifier with a backbone, only the head: it takes features (n, n_features) instead of images."""
    backbone: str | None = None
    """The backbone's file, if the classifier has one and it is no longer where it was."""
    runtime: Path | None = None
    """For html without a network: the file that `npm pack onnxruntime-web@1.30.0` writes."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Export, check, write."""
        if self.format not in SUFFIXES:
            raise unknown("format", self.format, SUFFIXES)
        if self.runtime and self.format != "html":
            raise UserError(f"--runtime is for --format html only, not for {self.format}: leave it out")
        if self.head_only and self.format == "html":
            raise UserError(
                "--head-only is not for --format html, which takes images: leave it out, or pass --format onnx"
            )
        self.common.start()
        from metalstm.classifier import Classifier, browser, export

        out = self.out or self.classifier.with_suffix(SUFFIXES[self.format])
        classifier = Classifier.load(self.classifier, backbone=self.backbone)
        if self.format == "html":
            browser.to_html(classifier, out, self.runtime)
            console.print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; open it in a browser", soft_wrap=True)
            return
        {"onnx": export.to_onnx, "torch": export.to_torch}[self.format](classifier, out, self.head_only)
        if self.head_only:
            n_features = classifier.meta["config"]["image_shape"][2]
            console.print(
                f"{out}: takes floats (n, {n_features}), features of {classifier.checkpoint_}", soft_wrap=True
            )
            return
        size, channels = classifier.preprocessing.image_size, classifier.preprocessing.channels
        console.print(f"{out}: takes uint8 (n, {size}, {size}, {channels})", soft_wrap=True)


def command(words: Sequence[str]) -> Export:
    """`metalstm export WORDS`."""
    return parse(Export, words, "export", __doc__)
