"""A user's own images: `folder:DIR` with DIR/<class>/*, and optional lists of the classes of each split."""

import hashlib
import json
from collections.abc import Iterable, Set
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metalstm.console import console, track
from metalstm.data.base import SPLITS, Dataset, Members, MetaSets, check_disjoint, permuted
from metalstm.data.cache import Decoded, cached
from metalstm.data.places import cache_root
from metalstm.data.reading import checksum, read_lines, reason
from metalstm.errors import SKIP_BAD, Problems, UserError, listed
from metalstm.files import exists
from metalstm.images import Preprocessing, dark_paper, is_image_name, show_drawings
from metalstm.settings import Traits

PREFIX = "folder:"
OTHERS = 5  # files that are no images, which a line names


class Listing(NamedTuple):
    """What is in the class folders."""

    images: list[tuple[str, Path]]  # the class and path of each file that is named as an image
    others: list[Path]  # all other files that are not hidden: they are left out
    problems: list[str]  # what is wrong with each class that has no images

    def say_others(self, directory: Path) -> None:
        """Print a line about the files that are left out, if there are any."""
        if self.others:
            shown = ", ".join(str(path.relative_to(directory)) for path in self.others[:OTHERS])
            more = f" and {len(self.others) - OTHERS:,} more" if len(self.others) > OTHERS else ""
            console.print(f"{directory}: left out, as no images by their names: {shown}{more}", soft_wrap=True)


class Folder(Dataset):
    """A folder of class folders. Whether mirror images show the same class depends on the images.

    Images that look like drawings are taken for signs, whose mirror images are not of the same class. They are still
    read as photos are: RGB, the central square, the paper as light as it is. With `Traits(drawing=True)` from the
    user they are read as `Classifier` reads drawings: gray, contrast stretched, nothing cropped off, dark paper, and
    with `centered` the ink in the middle.

    Args:
        directory: The folder.
        traits: What the user says about the images. None decides by a sample of them.
        skip_bad: Go on without classes that have no images and without images that cannot be read.

    Raises:
        UserError: There is no such folder, or it lacks classes, or a list does not fit.
    """

    licence = "terms of the owner of the images"

    def __init__(self, directory: str | Path, traits: Traits | None = None, skip_bad: bool = False):
        self.name = f"{PREFIX}{directory}"
        self.directory = Path(directory).expanduser()
        self.skip_bad = skip_bad
        classes = class_folders(self.directory)
        empty = (
            set(classes) - {label for label, _ in labeled_files(self.directory, classes).images} if skip_bad else set()
        )
        self._members = split_classes(self.directory, classes, empty)
        check_disjoint(self.directory, self._members)
        self._listing = labeled_files(self.directory, sorted({*chain(*self._members.values()), *empty}))
        self._images = self._listing.images
        n_train, n_val, n_test = (len(self._members[split]) for split in SPLITS)
        self.n_classes = n_train, n_val, n_test
        self.traits = traits or Traits(mirrors=not show_drawings([path for _, path in self._images]))
        self.image_shape = (1 if self.traits.drawing else 3, 32, 32)

    def load(self, root: Path, size: int) -> MetaSets:
        """Load the images; `root` is not used.

        Raises:
            UserError: Names all classes without images and all images that cannot be read, unless they are skipped; or
                a split has nothing else.
        """
        key, problems, images = hashlib.sha256(), list(self._listing.problems), []
        for label, path in track(self._images, f"checking {self.directory.name}"):
            try:
                key.update(json.dumps([label, path.name, checksum(path)]).encode())
                images.append((label, path))
            except UserError as error:
                problems.append(str(error))

        def decode() -> Decoded:
            return [label for label, _ in images], (self._pixels(path, size) for _, path in images)

        shape = (size, size, self.image_shape[0])
        content = [key.hexdigest(), "centered"] if self.traits.centered else key.hexdigest()
        stored = cached("folder", content, shape, decode)
        problems += [self._fault(images[number][1]) for number in stored.broken]
        if problems and not self.skip_bad:
            raise Problems(self.directory, problems, SKIP_BAD)
        self._listing.say_others(self.directory)
        if problems:
            console.print(f"{self.directory}: goes on without these:\n{listed(problems)}", soft_wrap=True)
        left = set(stored.images.classes)
        members = {split: [label for label in labels if label in left] for split, labels in self._members.items()}
        for split in (split for split, labels in members.items() if not labels):
            raise UserError(f"{split} of {self.directory} has no image that can be read: add classes with images to it")
        return self.from_stored([stored], members)

    def fetch(self, root: Path) -> list[Path]:
        """There is nothing to download.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{self.name!r} is a folder of your own: there is nothing to fetch")

    def check(self, root: Path) -> list[tuple[Path, str]]:
        """Nothing: no file of a folder has a known checksum. See `metalstm.data.survey`."""
        return []

    def _pixels(self, path: Path, size: int) -> np.ndarray | None:
        """Of an image; None if it cannot be read."""
        try:
            return self._read(path, size)
        except UserError:
            return None

    def _fault(self, path: Path) -> str:
        """What is wrong with an image that could not be read."""
        try:
            self._read(path, self.image_shape[1])
        except UserError as error:
            return str(error)
        return f"{path} could not be read when the folder was decoded: clear {cache_root()}"

    def _read(self, path: Path, size: int) -> np.ndarray:
        pixels = Preprocessing(size, self.image_shape[0], self.traits.drawing, self.traits.centered)(path)
        return dark_paper(pixels) if self.traits.drawing else pixels


def class_folders(directory: Path) -> list[str]:
    """The class names: the names of the folders in a folder.

    Raises:
        UserError: It is not a folder, or has no folders in it.
    """
    if not (exists(directory) and directory.is_dir()):
        raise UserError(f"{directory} is not a folder: name one with images in <class>/")
    classes = [path.name for path in _visible(directory) if path.is_dir()]
    if not classes:
        raise UserError(f"{directory} has no class folders: put the images of each class into {directory}/<class>/")
    return classes


def labeled_files(directory: Path, classes: Iterable[str]) -> Listing:
    """What is in some class folders; their names decide which files are images."""
    listing = Listing([], [], [])
    for label in classes:
        files = [path for path in _visible(directory / label) if path.is_file()]
        own = [(label, path) for path in files if is_image_name(path)]
        listing.images.extend(own)
        listing.others.extend(path for path in files if not is_image_name(path))
        if not own:
            listing.problems.append(f"class folder {directory / label} has no images: add some, or remove it")
    return listing


def split_classes(directory: Path, classes: list[str], empty: Set[str] = frozenset()) -> Members:
    """The class names of each split.

    They come from the lists meta-train.txt, meta-val.txt and meta-test.txt in the folder. Without lists, a seeded
    permutation gives 64, 16 and 20 % of the classes.

    Args:
        directory: The folder.
        classes: Of the folder.
        empty: Those of them that are left out.

    Raises:
        UserError: A list is missing or names an unknown class, or there are fewer than three classes.
    """
    lists = {split: directory / f"{split}.txt" for split in SPLITS}
    found = [path for path in lists.values() if path.is_file()]
    if found and len(found) < len(lists):
        missing = ", ".join(path.name for path in lists.values() if path not in found)
        raise UserError(f"{directory} has {found[0].name} but not {missing}: write all three lists, or none")
    if found:
        members = {split: read_lines(path) for split, path in lists.items()}
        for split, labels in members.items():
            if not labels:
                raise UserError(f"{lists[split]} names no class: write one class name per line")
            for label in labels:
                if label not in classes:
                    raise UserError(
                        f"{lists[split]} names {label!r}, but {directory} has no such folder: correct the name"
                    )
        return {split: [label for label in labels if label not in empty] for split, labels in members.items()}
    classes = [label for label in classes if label not in empty]
    n = len(classes)
    if n < len(SPLITS):
        raise UserError(f"{directory} has {n} classes, but the three splits need at least 3: add {len(SPLITS) - n}")
    names, n_val, n_test = permuted(classes), max(1, round(0.16 * n)), max(1, round(0.2 * n))
    n_train = n - n_val - n_test
    return dict(zip(SPLITS, (names[:n_train], names[n_train : n_train + n_val], names[n_train + n_val :]), strict=True))


def _visible(directory: Path) -> list[Path]:
    """What is in a folder, ordered by name, without hidden files."""
    try:
        paths = [path for path in directory.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot read {directory} ({reason(error)}): check its permissions") from error
    return sorted(paths, key=lambda path: path.name)
