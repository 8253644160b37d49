"""What a data set is: images by class in three splits, with everything that is known about them."""

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from metalstm.data.downloads import File
from metalstm.errors import UserError, unknown
from metalstm.settings import Traits

SPLITS = ("meta-train", "meta-val", "meta-test")
SPLIT_SEED = 0  # of every permutation of classes that makes a split

Members = Mapping[str, Sequence[str]]  # the class names of each split


@dataclass(frozen=True, eq=False)
class ImagesByClass:
    """Images grouped by class.

    Attributes:
        images: uint8 (n_images, height, width, channels), read-only, possibly memory-mapped.
        classes: The class names.
        spans: int64 (n_classes, 2): class k is `images[spans[k, 0]:spans[k, 1]]`.
        name: What messages call it, for example "meta-val".
        groups: The group of each class, for example an alphabet; none if the classes have no groups.
    """

    images: np.ndarray
    classes: tuple[str, ...]
    spans: np.ndarray
    name: str = "the set"
    groups: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width), the order that learners take."""
        height, width, channels = self.images.shape[1:]
        return channels, height, width

    def subset(self, classes: Iterable[str]) -> "ImagesByClass":
        """Some of the classes, in the order of this set. The result shares `images`.

        Args:
            classes: Names of classes of this set, in any order.

        Raises:
            UserError: A name is not a class of this set.
        """
        wanted = set(classes)
        for name in sorted(wanted.difference(self.classes)):
            raise unknown("class", name, self.classes)
        keep = [k for k, name in enumerate(self.classes) if name in wanted]
        classes, groups = (tuple(each[k] for k in keep if each) for each in (self.classes, self.groups))
        return ImagesByClass(self.images, classes, self.spans[keep], self.name, groups)

    def compact(self) -> "ImagesByClass":
        """A copy in memory that holds the images of these classes and no others."""
        images = np.concatenate([self.images[start:stop] for start, stop in self.spans])
        return _read_only(images, self.classes, self._counts(), self.name, self.groups)

    def rotated(self) -> "ImagesByClass":
        """Four times the classes: turned by 0, 90, 180 and 270 degrees, each a class of its own ("name@90").

        Groups are turned with their classes. Images must be square. The copy is in memory and takes four times the
        bytes of this set's own classes.
        """
        own = self.compact()
        images = np.concatenate([np.rot90(own.images, turns, axes=(1, 2)) for turns in range(4)])
        classes, groups = (
            [f"{name}@{90 * turns}" if turns else name for turns in range(4) for name in names]
            for names in (self.classes, self.groups)
        )
        return _read_only(images, classes, 4 * self._counts(), self.name, groups)

    def mirrored(self) -> "ImagesByClass":
        """Twice the images: those of each class, then their mirror images. The copy is in memory."""
        own = self.compact()
        parts = [(own.images[start:stop], own.images[start:stop, :, ::-1]) for start, stop in own.spans]
        images = np.concatenate([part for both in parts for part in both])
        return _read_only(images, self.classes, [2 * count for count in self._counts()], self.name, self.groups)

    def _counts(self) -> list[int]:
        """The number of images of each class."""
        return np.diff(self.spans, axis=1).ravel().tolist()


@dataclass(frozen=True, eq=False)
class MetaSets:
    """A data set in its three splits.

    Attributes:
        name: As the user gave it: a name in `DATASETS`, or "folder:DIR".
        splits: The images of each of `SPLITS`.
        licence: License or terms of the images; checkpoints that are trained on them show it.
        digest: sha256 (hex) of class names, split membership and pixels; the same from a zip, a tar or a folder.
        traits: What recipes and preprocessing depend on.
        tasks: (n_way, n_shot) of each column of the table of this data set.
        group_tasks: The same of further columns, in which all classes of an episode are of one group.
    """

    name: str
    splits: dict[str, ImagesByClass]
    licence: str
    digest: str
    traits: Traits = field(default_factory=Traits)
    tasks: tuple[tuple[int, int], ...] = ((5, 1), (5, 5))
    group_tasks: tuple[tuple[int, int], ...] = ()

    @property
    def short_name(self) -> str:
        """The name as part of a file name; for "folder:DIR", the last part of DIR."""
        return self.name.rstrip("/").rpartition("/")[2].replace(":", "-")

    def all(self) -> ImagesByClass:
        """The classes of all splits in one set, as a copy in memory."""
        parts = list(self.splits.values())
        return _read_only(
            np.concatenate([part.compact().images for part in parts]),
            [name for part in parts for name in part.classes],
            [count for part in parts for count in np.diff(part.spans).ravel()],
            "all classes",
            [group for part in parts for group in part.groups],
        )


class Stored(NamedTuple):
    """Decoded images."""

    images: ImagesByClass  # those that could be read
    sums: dict[str, str]  # sha256 (hex) of the pixels of each class
    broken: tuple[int, ...] = ()  # numbers of the images that could not be read, among all that were to be decoded


class Dataset(ABC):
    """A data set that describes itself. A subclass and one line in `DATASETS` make a new data set.

    Attributes:
        name: The value of `--data`.
        image_shape: (channels, height, width) of an image unless the user asks for another size.
        licence: License or terms of the images.
        traits: What recipes and preprocessing depend on.
        n_classes: Number of classes in meta-train, meta-val and meta-test.
        tasks: (n_way, n_shot) of each column of its table.
        groups: What the groups of its classes are, for example "alphabets"; empty if there are none.
        n_groups: Number of groups in meta-train, meta-val and meta-test.
        group_tasks: (n_way, n_shot) of further columns, in which all classes of an episode are of one group.
        earlier: Traits that it had before. Checkpoints with them can still be tested on what they were trained on.
        files: The files that it is read from; none if the images are made on the spot.
    """

    name: str
    image_shape: tuple[int, int, int]
    licence: str
    traits: Traits
    n_classes: tuple[int, int, int]
    tasks: tuple[tuple[int, int], ...] = ((5, 1), (5, 5))
    groups: str = ""
    n_groups: tuple[int, int, int] = (0, 0, 0)
    group_tasks: tuple[tuple[int, int], ...] = ()
    earlier: tuple[Traits, ...] = ()
    files: tuple[File, ...] = ()

    @abstractmethod
    def load(self, root: Path, size: int) -> MetaSets:
        """Load the images. `from_arrays` and `from_stored` make the result.

        Args:
            root: The folder of downloaded files.
            size: Height and width of an image in pixels.

        Raises:
            UserError: A file is missing or damaged, or the cache cannot be written.
        """

    def group(self, label: str) -> str:
        """The group of a class, where `groups` says that there are some."""
        return ""

    def with_traits(self, traits: Traits) -> "Dataset":
        """The data set with these traits.

        Raises:
            UserError: It never had them.
        """
        if traits == self.traits:
            return self
        if traits not in self.earlier:
            raise UserError(
                f"{self.name} has {self.traits}, not {traits}: leave them out; only a folder:DIR can have others"
            )
        before = copy.copy(self)
        before.traits = traits
        return before

    def fetch(self, root: Path) -> list[Path]:
        """Download the files that are missing or damaged, and check their md5.

        Args:
            root: Where to put them.

        Returns:
            The files of the data set.

        Raises:
            UserError: A download fails, or there is none.
        """
        # A rebuilt zip stands in for the original.
        good = {path: state in ("original", "rebuilt") for path, state in self.check(root)}
        if all(good.values()):
            return list(good)
        return [
            root / file.path if good.get(root / file.path) else file.download(root) for file in self.files if file.url
        ]

    def check(self, root: Path) -> list[tuple[Path, str]]:
        """Compare the checksums of the files with the known ones.

        Args:
            root: The folder of downloaded files.

        Returns:
            Each file with "original", "rebuilt", "unknown checksum" or "missing".

        Raises:
            UserError: The data set is not complete, and its files alone do not show it.
        """
        return [(root / file.path, file.state(root)) for file in self.files]

    def is_here(self, root: Path) -> bool:
        """Whether it can be loaded without a download."""
        return all((root / file.path).is_file() for file in self.files)

    def from_arrays(self, splits: Mapping[str, Mapping[str, UInt8[np.ndarray, "_ height width channels"]]]) -> MetaSets:
        """Make the result of `load` from images in memory.

        Args:
            splits: For each of `SPLITS`, the images of each class by its name.

        Raises:
            UserError: A class is in two splits.
        """
        check_disjoint(self.name, {split: list(classes) for split, classes in splits.items()})
        stored = []
        for classes in splits.values():
            names = sorted(classes)
            images = np.concatenate([classes[name] for name in names])
            sums = {name: hashlib.sha256(classes[name].tobytes()).hexdigest() for name in names}
            stored.append(Stored(_read_only(images, names, [len(classes[name]) for name in names]), sums))
        return self.from_stored(stored, {split: list(classes) for split, classes in splits.items()})

    def from_stored(self, stored: Sequence[Stored], members: Members, licence: str | None = None) -> MetaSets:
        """Make the result of `load` from decoded images.

        Args:
            stored: One or more sets of images; each class is in one of them.
            members: The class names of each of `SPLITS`.
            licence: If it depends on the files that were read.
        """
        home = {label: part.images for part in stored for label in part.images.classes}
        sums = {label: pixels for part in stored for label, pixels in part.sums.items()}
        splits = {}
        for split in SPLITS:
            own = home[members[split][0]].subset(members[split])
            groups = tuple(map(self.group, own.classes)) if self.groups else ()
            splits[split] = replace(own, name=split, groups=groups)
        content = [
            splits[SPLITS[0]].image_shape,
            [[[label, sums[label]] for label in splits[split].classes] for split in SPLITS],
        ]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        licence = licence or self.licence
        return MetaSets(self.name, splits, licence, digest, self.traits, self.tasks, self.group_tasks)

    @property
    def fetch_again(self) -> str:
        """What messages advise if a file is damaged."""
        return f"delete it and run 'metalstm data fetch {self.name}'"

    def missing(self, path: Path) -> UserError:
        """The error for a file that is not there."""
        return UserError(
            f"{self.name} needs {path.name}, which is not in {path.parent}: "
            f"run 'metalstm data fetch {self.name}', or pass --data-root DIR"
        )


def spans(counts: Iterable[int]) -> np.ndarray:
    """Where each class begins and ends, from the number of images of each class: int64 (n_classes, 2)."""
    sizes = np.asarray(list(counts), dtype=np.int64)
    ends = np.cumsum(sizes)
    return np.stack([ends - sizes, ends], axis=1)


def permuted(classes: Iterable[str]) -> list[str]:
    """Class names in a random order that is always the same."""
    # The stream of RandomState is the same in every NumPy version; that of default_rng may change.
    names = sorted(classes)
    return [names[k] for k in np.random.RandomState(SPLIT_SEED).permutation(len(names))]


def check_disjoint(source: Path | str, members: Members) -> None:
    """Check that no class is in two splits.

    Raises:
        UserError: A class is in two splits, or twice in one.
    """
    seen: dict[str, str] = {}
    for split in SPLITS:
        for label in members[split]:
            if label in seen:
                raise UserError(f"{source}: class {label!r} is in {seen[label]} and in {split}: keep one of them")
            seen[label] = split


def _read_only(
    images: np.ndarray,
    classes: Sequence[str],
    counts: Sequence[int],
    name: str = "the set",
    groups: Sequence[str] = (),
) -> ImagesByClass:
    images.flags.writeable = False
    return ImagesByClass(images, tuple(classes), spans(counts), name, tuple(groups))
