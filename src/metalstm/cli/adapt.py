"""Make a classifier from a few images of each class, DIR/<class name>/*.

It also estimates the accuracy, by cross-validation on these images: every image is classified by a classifier that has
not seen it. The classes that do worst, those that are confused most often, and images that may be mislabeled are named.

Example: metalstm adapt photos --out birds.safetensors
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from metalstm.cli.common import Command, Common, Options
from metalstm.cli.options import parse
from metalstm.console import console
from metalstm.data.folder import class_folders, labeled_files
from metalstm.errors import SKIP_BAD, Problems, UserError, listed
from metalstm.files import to_json, write
from metalstm.geometry import Framing, cropped

if TYPE_CHECKING:
    from metalstm.classifier import Classifier, Estimate

FACTS = 5  # of a kind that a line shows


@dataclass(frozen=True)
class Adapt(Command):
    """Options of `metalstm adapt`."""

    images: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """A folder with one folder of images for each class, named as the class; 2 to 200 classes."""
    checkpoint: str | None = None
    """The meta-learner: the name of a shipped checkpoint, a run folder or a file. By default, the shipped one that
    suits the images (drawings or photos) and their number."""
    backbone: str | None = None
    """A frozen network instead of a meta-learner: an ONNX file that maps images to features, with a JSON file of the
    same name that says what is done to images; a checkpoint, whose network is taken; or `timm:NAME`, a model of timm,
    with the weights that timm names or, `timm:NAME=FILE.safetensors`, those of a file."""
    head: str = "auto"
    """What learns from the features of the backbone: `meta-lstm`, `logistic`, `class-means` or `tip-adapter`; `auto`
    takes the best by cross-validation. Without `--backbone`, one of the four learns from the features of the
    checkpoint's network, and `auto` means the checkpoint's own method."""
    add: Path | None = None
    """A classifier that keeps its images: learn anew from these and the folder's, of its classes or new ones. It is
    replaced unless `--out` names another file."""
    keep_images: bool = False
    """Keep the images in the file of the classifier, small as the network sees them, so that `--add` can add more.
    Whoever has the file can look at them."""
    out: Path | None = None
    """File of the classifier; by default, the name of the images' folder, in the current folder."""
    framing: Framing | None = None
    """How an image that is not square becomes one: `crop` takes the central square, `letterbox` the whole image between
    bars, `squeeze` the whole image, distorted. By default, `crop` for photos and `letterbox` for drawings."""
    crop: Path | None = None
    """A JSON file with the part of an image to look at, {"cat/1.jpg": [left, top, right, bottom]}, in pixels of the
    upright image. Paths start at the folder of the JSON file; images without an entry stay whole."""
    skip_bad: bool = False
    """Go on without images that cannot be read and without classes that have no images."""
    report: str | None = None
    """File for all figures of the cross-validation as JSON, `-` for stdout: accuracy of each class, confusions, images
    that may be mislabeled, and the accuracy with fewer images, which takes a few times as long."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Learn, save, and report the accuracy."""
        listing = labeled_files(self.images, class_folders(self.images))
        files = listing.images
        if self.add and self.checkpoint:
            raise UserError("--add takes the meta-learner of the classifier: leave out --checkpoint")
        if self.add and self.framing:
            raise UserError("--add takes the framing of the classifier: leave out --framing")
        out = self.out or self.add or Path(f"{self.images.resolve().name}.safetensors")
        if out.is_dir():
            raise UserError(f"--out {out} is a folder: name a file, for example {out / 'classifier.safetensors'}")
        device = self.common.start()
        from metalstm.classifier import Classifier
        from metalstm.classifier.inputs import MAX_SUPPORT

        labels, paths = [label for label, _ in files], [path for _, path in files]
        images = cropped(paths, self.crop) if self.crop else paths
        if self.add:
            classifier = Classifier.load(self.add, device, self.backbone)
            if self.head != "auto":
                if not classifier.meta.get("backbone"):
                    raise UserError(
                        f"{self.add} learns by the method of {classifier.checkpoint_}, not by a head: leave out "
                        "--head, or adapt to all images anew, without --add"
                    )
                classifier.head = self.head
            classifier.skip_bad = self.skip_bad
            learn = classifier.add
        else:
            place = self.common.seed, device, self.skip_bad, self.framing
            classifier = Classifier(self.checkpoint, *place, self.backbone, self.head)
            learn = classifier.fit
        with self._with(listing.problems):
            learn(images, labels)
        classifier.save(out, self.keep_images or self.add is not None)
        listing.say_others(self.images)
        if left_out := [*listing.problems, *classifier.left_out_]:
            console.print(f"{self.images}: goes on without these:\n{listed(left_out)}", soft_wrap=True)
        counts = zip(classifier.meta["images"], classifier.classes_, strict=True)
        console.print(f"{self.images}: {', '.join(f'{n} {name}' for n, name in counts)}", soft_wrap=True)
        if max(classifier.meta["images"]) > (most := MAX_SUPPORT // len(classifier.classes_)):
            console.print(f"learned from {most} images of each class, drawn at random", soft_wrap=True)
        facts = classifier.meta.get("backbone")
        if self.checkpoint is None and not self.add and not self.backbone:
            kind = "drawings" if classifier.preprocessing.drawing else "photos"
            n_shot = np.mean(classifier.meta["images"])
            reason = f"for {kind}, {n_shot:.3g} a class; --checkpoint takes another"
            what = "network" if facts else "meta-learner"
            console.print(f"{what}: {classifier.checkpoint_} ({reason})", soft_wrap=True)
        if facts:
            console.print(_why(facts), soft_wrap=True)
        console.print(f"{out}: the classifier; now: metalstm predict {out} IMAGES", soft_wrap=True)
        self._report(classifier, left_out)

    def _report(self, classifier: "Classifier", left_out: list[str]) -> None:
        """Say how well it does, by cross-validation."""
        try:
            found = classifier.cross_validate()
        except UserError as error:  # too few images
            console.print(f"accuracy on images like these: unknown: {error}", soft_wrap=True)
            return
        console.print(f"accuracy on images like these: {found.estimate}", soft_wrap=True)
        classes, confused, doubts = found.by_class(), found.confused(), found.doubts()
        worst = sorted(
            (name for name, own in classes.items() if own.right < own.images), key=lambda x: classes[x].accuracy
        )
        for about, facts in (
            ("least accurate", [f"{name} {classes[name].accuracy:.0f} %" for name in worst]),
            ("most often confused", [f"{name} taken for {other} {n} times" for name, other, n in confused]),
            ("may be mislabeled", [f"{each.image} looks like {each.looks_like}" for each in doubts]),
        ):
            if facts:
                console.print(f"{about}: {', '.join(facts[:FACTS])}", soft_wrap=True)
        if not self.report:
            return
        from metalstm.classifier.cross_validation import another_image

        curve = classifier.learning_curve()
        gain = another_image(curve, float(np.median(classifier.meta["images"])))
        shown = ", ".join(f"{size}: {each.accuracy:.0f} %" for size, each in curve.items())
        console.print(f"accuracy by images of a class that are learned from: {shown}", soft_wrap=True)
        if gain is not None:
            console.print(f"another image of each class would bring about {gain:+.1f} points", soft_wrap=True)
        values = {
            "accuracy": _values(found.estimate),
            "classes": {str(name): _values(each) for name, each in classes.items()},
            "confused": [{"class": str(name), "taken_for": str(other), "times": n} for name, other, n in confused],
            "may_be_mislabeled": [each._asdict() | {"probability": round(each.probability, 6)} for each in doubts],
            "learning_curve": {str(size): _values(each) for size, each in curve.items()},
            "points_by_another_image": gain,
            "left_out": left_out,
        }
        text = to_json(values, indent=1) + "\n"
        if self.report == "-":
            print(text, end="")  # noqa: T201
        else:
            write(Path(self.report), text.encode())

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


def _why(facts: dict[str, Any]) -> str:
    """Which head a classifier has, and why."""
    head, accuracy = facts["head"], facts["accuracy"]
    if facts["asked"] != "auto":
        return f"head: {head}"
    if not accuracy:
        return f"head: {head} (one image of each class is too few to compare heads; --head takes another)"
    others = ", ".join(f"{name} {value:.1f} %" for name, value in accuracy.items() if name != head)
    return f"head: {head} (cross-validated {accuracy[head]:.1f} %; {others}; --head takes another)"


def _values(estimate: "Estimate") -> dict[str, Any]:
    """An estimate as plain values, in percent."""
    low, high = estimate.interval
    return {"accuracy": estimate.accuracy, "low": low, "high": high, "images": estimate.images}


def command(words: Sequence[str]) -> Adapt:
    """`metalstm adapt WORDS`."""
    return parse(Adapt, words, "adapt", __doc__)
