"""Make a classifier from a few images of each class, DIR/<class name>/*.

It also estimates the accuracy, by cross-validation on these images.

Example: metalstm adapt photos --out birds.safetensors
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from metalstm.cli.common import Command, Common, Options
from metalstm.cli.options import parse
from metalstm.console import console
from metalstm.data.folder import class_folders, labeled_files
from metalstm.errors import SKIP_BAD, Problems, UserError, listed


@dataclass(frozen=True)
class Adapt(Command):
    """Options of `metalstm adapt`."""

    images: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """A folder with one folder of images for each class, named as the class; 2 to 20 classes."""
    checkpoint: str | None = None
    """The meta-learner: the name of a shipped checkpoint, a run folder or a file. By default, the shipped one that
    suits the images (drawings or photos) and their number."""
    out: Path | None = None
    """File of the classifier; by default, the name of the images' folder, in the current folder."""
    skip_bad: bool = False
    """Go on without images that cannot be read and without classes that have no images."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Learn, save, and report the accuracy."""
        listing = labeled_files(self.images, class_folders(self.images))
        files = listing.images
        out = self.out or Path(f"{self.images.resolve().name}.safetensors")
        if out.is_dir():
            raise UserError(f"--out {out} is a folder: name a file, for example {out / 'classifier.safetensors'}")
        device = self.common.start()
        from metalstm.classifier import Classifier

        labels, paths = [label for label, _ in files], [path for _, path in files]
        classifier = Classifier(self.checkpoint, self.common.seed, device, self.skip_bad)
        with self._with(listing.problems):
            classifier.fit(paths, labels)
        classifier.save(out)
        listing.say_others(self.images)
        if left_out := [*listing.problems, *classifier.left_out_]:
            console.print(f"{self.images}: goes on without these:\n{listed(left_out)}", soft_wrap=True)
        counts = zip(classifier.meta["images"], classifier.classes_, strict=True)
        console.print(f"{self.images}: {', '.join(f'{n} {name}' for n, name in counts)}", soft_wrap=True)
        if self.checkpoint is None:
            kind = "drawings" if classifier.preprocessing.drawing else "photos"
            n_shot = np.mean(classifier.meta["images"])
            reason = f"for {kind}, {n_shot:.3g} a class; --checkpoint takes another"
            console.print(f"meta-learner: {classifier.checkpoint_} ({reason})", soft_wrap=True)
        console.print(f"{out}: the classifier; now: metalstm predict {out} IMAGES", soft_wrap=True)
        try:
            accuracy = str(classifier.estimate())
        except UserError as error:  # too few images
            accuracy = f"unknown: {error}"
        console.print(f"accuracy on images like these: {accuracy}", soft_wrap=True)

    @contextlib.contextmanager
    def _with(self, problems: list[str]) -> Iterator[None]:
        """Raise these problems, with those that come up in the block, unless they are skipped."""
        problems = [] if self.skip_bad else problems
        try:
            yield
        except UserError as error:
            if not (problems or isinstance(error, Problems)):
                raise
            problems = [*problems, *(error.problems if isinstance(error, Problems) else [str(error)])]
        if problems:
            raise Problems(self.images, problems, SKIP_BAD)


def command(words: Sequence[str]) -> Adapt:
    """`metalstm adapt WORDS`."""
    return parse(Adapt, words, "adapt", __doc__)
