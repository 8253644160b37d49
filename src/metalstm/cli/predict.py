"""Predict the classes of images with a classifier that `metalstm adapt` made.

Images that cannot be read are reported on stderr, and the exit status is then 2 unless `--skip-bad` is given; all
others are predicted.

Example: metalstm predict birds.safetensors new/*.jpg --csv -
"""

import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from msgspec import Meta

from metalstm import files
from metalstm.cli.common import Command, Common, Options
from metalstm.cli.options import parse
from metalstm.console import console, printable, results
from metalstm.errors import UserError
from metalstm.geometry import MAX_CROPS, cropped

NONE = "none of these"
MAX_PATHS = 1_000_000  # that are read from stdin
MAX_PATH = 2**16  # characters of each


@dataclass(frozen=True)
class Predict(Command):
    """Options of `metalstm predict`."""

    classifier: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CLASSIFIER")]
    """The file of the classifier."""
    images: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGES ...", help_behavior_hint="(one or more)")
    ]
    """Image files; folders, for all images in them; `-` to read paths from stdin, one on each line."""
    backbone: str | None = None
    """The backbone, as `metalstm adapt` takes it, if the classifier has one and its file is no longer where it was."""
    reject: bool = False
    """Answer "none of these" where an image is near to no class. Of images of the classes, nine in ten should pass."""
    crops: Annotated[int, Meta(ge=1, le=MAX_CROPS)] = 1
    """Look at so many squares of a photo, in even steps along its longer side, and answer by the mean of their
    probabilities. For classifiers with the framing `crop`."""
    crop: Path | None = None
    """A JSON file with the part of an image to look at, as `metalstm adapt --crop` takes it."""
    csv: str | None = None
    """File to write the answers to as a table, with a column p(CLASS) for each class; `-` for stdout."""
    json: str | None = None
    """File to write the answers to as JSON, `-` for stdout."""
    skip_bad: bool = False
    """Exit with status 0 even if images cannot be read; they are reported all the same."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Predict and print."""
        if self.csv == self.json == "-":
            raise UserError("--csv - and --json -: only one of them can go to stdout")
        if not self.images:
            raise UserError("no images: name files or folders, or - to read paths from stdin")
        device = self.common.start()
        from metalstm import images
        from metalstm.classifier import Classifier

        classifier = Classifier.load(self.classifier, device, self.backbone)
        classifier.preprocessing.check_crops(self.crops)
        least = classifier.threshold() if self.reject else None  # raises if it has none
        paths = images.find(self.images, lines(sys.stdin))
        parts = cropped(paths, self.crop) if self.crop else paths
        good, probabilities, scores, faults = classifier.predict_files_with_scores(parts, self.crops)
        known = [True] * len(good) if least is None or scores is None else scores >= least
        best = classifier.classes_[probabilities.argmax(1)].tolist()
        answers = [
            {
                "image": str(path),
                "class": label if is_known else None,
                "probability": round(max(row), 6),
                "probabilities": {str(name): round(p, 6) for name, p in zip(classifier.classes_, row, strict=True)},
            }
            for path, label, is_known, row in zip(good, best, known, probabilities.tolist(), strict=True)
        ]
        self._write(answers, [str(name) for name in classifier.classes_])
        for fault in faults:
            console.print(fault, soft_wrap=True)
        if faults:
            said = f"{len(faults)} of {len(paths)} images could not be read; the others are predicted"
            if not self.skip_bad:
                raise UserError(said)
            console.print(said, soft_wrap=True)

    def _write(self, answers: list[dict[str, Any]], classes: Sequence[str]) -> None:
        """To files or stdout."""
        rows = [(a["image"], NONE if a["class"] is None else str(a["class"]), a["probability"]) for a in answers]
        cells = [
            (_no_formula(image), _no_formula(label), probability, *answer["probabilities"].values())
            for (image, label, probability), answer in zip(rows, answers, strict=True)
        ]
        text = "".join(map(_row, [("image", "class", "probability", *(f"p({name})" for name in classes)), *cells]))
        for place, content in ((self.csv, text), (self.json, json.dumps(answers) + "\n")):
            if place == "-":
                if isinstance(sys.stdout, io.TextIOWrapper):
                    sys.stdout.reconfigure(errors="surrogateescape")
                print(printable(content) if sys.stdout.isatty() else content, end="")  # noqa: T201
            elif place:
                files.write(Path(place), content.encode("utf-8", "surrogateescape"))
        if "-" not in (self.csv, self.json) and answers:
            _print_table(rows)


def lines(file: Any) -> Iterator[str]:
    """The lines of a text file that may never end.

    Raises:
        UserError: There are too many, or one is too long.
    """
    if isinstance(file, io.TextIOWrapper):
        file.reconfigure(errors="surrogateescape")  # the name of a file may have any bytes
    for number, line in enumerate(iter(lambda: file.readline(MAX_PATH + 1), "")):
        if len(line) > MAX_PATH:
            raise UserError(f"a line on stdin has more than {MAX_PATH:,} characters: write one path on each line")
        if number == MAX_PATHS:
            raise UserError(f"stdin has more than {MAX_PATHS:,} lines: predict fewer images at a time")
        yield line


def _row(cells: Sequence[object]) -> str:
    """A line of a table; cells with a comma, a quote or any end of a line are quoted."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)  # quotes its characters, too
    return text.getvalue().removesuffix("\r\n") + "\n"


def _no_formula(cell: str) -> str:
    """A cell that a spreadsheet takes for text: what looks like a formula, and is no number, gets an apostrophe."""
    return f"'{cell}" if re.match(r"[=+\-@\t\r](?!\d+(\.\d*)?$)", cell) else cell


def _print_table(lines: Sequence[tuple[str, str, float]]) -> None:
    from rich import box
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(Column("image", overflow="fold"), "class", Column("probability", justify="right"))
    table.box = box.SIMPLE_HEAD
    for image, label, probability in lines:
        table.add_row(Text(printable(image)), Text(printable(label)), f"{100 * probability:.1f} %")
    results().print(table)


def command(words: Sequence[str]) -> Predict:
    """`metalstm predict WORDS`."""
    return parse(Predict, words, "predict", __doc__)
