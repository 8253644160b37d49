"""A user's own images: `folder:DIR` with DIR/<class>/*, and optional lists of the classes of each split."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from metalstm.console import console, track
from metalstm.data.base import SPLITS, Dataset, Members, MetaSets, check_disjoint, permuted
from metalstm.data.cache import Decoded, cached
from metalstm.data.reading import checksum, read_lines, reason
from metalstm.errors import UserError
from metalstm.images import Preprocessing, dark_paper, show_drawings
from metalstm.settings import Traits

PREFIX = "folder:"
SHOWN = 3  # broken files that a message names


class Folder(Dataset):
    """A folder of class folders. Whether mirror images show the same class depends on the images.

    Images that look like drawings are taken for signs, whose mirror images are not of the same class. They are still
    read as photos are: RGB, the central square, the paper as light as it is. With `Traits(drawing=True)` from the
    user they are read as `Classifier` reads drawings: gray, contrast stretched, nothing cropped off, dark paper, and
    with `centered` the ink in the middle.

    Args:
        directory: The folder.
        traits: What the user says about the images. None decides by a sample of them.

    Raises:
        UserError: There is no such folder, or it lacks classes or images, or a list does not fit.
    """

    licence = "terms of the owner of the images"

    def __init__(self, directory: str | Path, traits: Traits | None = None):
        self.name = f"{PREFIX}{directory}"
        self.directory = Path(directory).expanduser()
        self._members = split_classes(self.directory, class_folders(self.directory))
        check_disjoint(self.directory, self._members)
        used = sorted(label for labels in self._members.values() for label in labels)
        self._images = labeled_files(self.directory, used)
        n_train, n_val, n_test = (len(self._members[split]) for split in SPLITS)
        self.n_classes = n_train, n_val, n_test
        self.traits = traits or Traits(mirrors=not show_drawings([path for _, path in self._images]))
        self.image_shape = (1 if self.traits.drawing else 3, 32, 32)

    def load(self, root: Path, size: int) -> MetaSets:
        """Load the images; `root` is not used."""
        key = hashlib.sha256()
        for label, path in track(self._images, f"checking {self.directory.name}"):
            key.update(json.dumps([label, path.name, checksum(path)]).encode())

        def decode() -> Decoded:
            return [label for label, _ in self._images], self._decoded(size)

        shape = (size, size, self.image_shape[0])
        content = [key.hexdigest(), "centered"] if self.traits.centered else key.hexdigest()
        return self.from_stored([cached("folder", content, shape, decode)], self._members)

    def fetch(self, root: Path) -> list[Path]:
        """There is nothing to download.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{self.name!r} is a folder of your own: there is nothing to fetch")

    def check(self, root: Path) -> list[tuple[Path, str]]:
        """Read every image, and report how many there are. There are no known checksums.

        Returns:
            Nothing, because no file has a known checksum.

        Raises:
            UserError: Images cannot be read.
        """
        faults = []
        for _, path in track(self._images, f"checking {self.directory.name}"):
            try:
                self._read(path, self.image_shape[1])
            except UserError as error:
                faults.append(str(error))
        if faults:
            more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
            raise UserError("; ".join(faults[:SHOWN]) + more)
        counts = ", ".join(f"{n} in {split}" for n, split in zip(self.n_classes, SPLITS, strict=True))
        console.print(
            f"{self.directory} has {len(self._images)} images of {sum(self.n_classes)} classes ({counts}), "
            "and all can be read",
            soft_wrap=True,
        )
        return []

    def _decoded(self, size: int) -> Iterator[np.ndarray]:
        return (self._read(path, size) for _, path in self._images)

    def _read(self, path: Path, size: int) -> np.ndarray:
        pixels = Preprocessing(size, self.image_shape[0], self.traits.drawing, self.traits.centered)(path)
        return dark_paper(pixels) if self.traits.drawing else pixels


def class_folders(directory: Path) -> list[str]:
    """The class names: the names of the folders in a folder.

    Raises:
        UserError: It is not a folder, or has no folders in it.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is not a folder: name one with images in <class>/")
    classes = [path.name for path in _visible(directory) if path.is_dir()]
    if not classes:
        raise UserError(f"{directory} has no class folders: put the images of each class into {directory}/<class>/")
    return classes


def labeled_files(directory: Path, classes: Iterable[str]) -> list[tuple[str, Path]]:
    """The class and path of every file in the class folders.

    Raises:
        UserError: A class has no files.
    """
    files: list[tuple[str, Path]] = []
    for label in classes:
        own = [path for path in _visible(directory / label) if path.is_file()]
        if not own:
            raise UserError(f"class folder {directory / label} has no images: add some, or remove it")
        files += [(label, path) for path in own]
    return files


def split_classes(directory: Path, classes: list[str]) -> Members:
    """The class names of each split.

    They come from the lists meta-train.txt, meta-val.txt and meta-test.txt in the folder. Without lists, a seeded
    permutation gives 64, 16 and 20 % of the classes.

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
        return members
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
