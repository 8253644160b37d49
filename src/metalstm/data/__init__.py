"""Data sets: images by class in three splits, decoded once into a memory-mapped cache.

`DATASETS` is the table. A new data set is one file in this folder, with a subclass of `Dataset`, and one line here.
"""

from dataclasses import dataclass
from pathlib import Path

from metalstm.data.base import SPLITS, Dataset, ImagesByClass, MetaSets
from metalstm.data.cifar import Cifar100
from metalstm.data.folder import PREFIX, Folder
from metalstm.data.glyphs import Glyphs
from metalstm.data.mini_imagenet import MiniImageNet
from metalstm.data.omniglot import Omniglot
from metalstm.data.places import cache_root, default_data_root
from metalstm.data.survey import Survey, survey
from metalstm.errors import UserError, unknown
from metalstm.files import exists
from metalstm.settings import Traits

__all__ = [
    "DATASETS",
    "SPLITS",
    "Dataset",
    "Description",
    "Folder",
    "ImagesByClass",
    "MetaSets",
    "Survey",
    "cache_root",
    "check",
    "default_data_root",
    "describe",
    "fetch",
    "find",
    "load",
    "survey",
]

DATASETS: dict[str, Dataset] = {
    "glyphs": Glyphs(),
    "omniglot": Omniglot(),
    "cifar-fs": Cifar100("cifar-fs", (64, 16, 20), (20, 11, 13)),
    "fc100": Cifar100("fc100", (60, 20, 20), (12, 4, 4)),
    "mini-imagenet": MiniImageNet(),
}


@dataclass(frozen=True)
class Description:
    """A data set in a few words: a line of `metalstm data list`.

    Attributes:
        name: A name in `DATASETS`.
        image_shape: (channels, height, width).
        classes: Number of classes of each split.
        present: Whether it can be loaded without a download.
        licence: License or terms of the images.
        groups: What the groups of its classes are, for example "alphabets"; empty if there are none.
    """

    name: str
    image_shape: tuple[int, int, int]
    classes: dict[str, int]
    present: bool
    licence: str
    groups: str


def find(name: str, traits: Traits | None = None, skip_bad: bool = False) -> Dataset:
    """The data set of this name.

    Args:
        name: A name in `DATASETS`, or "folder:DIR" for images `DIR/<class>/*`.
        traits: What the user says about the images of a folder, or a checkpoint about those that it was trained on.
            None: as the data set says, and of a folder a sample of its images.
        skip_bad: Of a folder: go on without images that cannot be read, and classes that have none.

    Raises:
        UserError: The name is unknown, the folder cannot be used, or the traits are not those of the data set.
    """
    if name.startswith(PREFIX):
        return Folder(name.removeprefix(PREFIX), traits, skip_bad)
    if name not in DATASETS:
        raise unknown("data set", name, (*DATASETS, f"{PREFIX}DIR"))
    dataset = DATASETS[name]
    return dataset if traits is None else dataset.with_traits(traits)


def load(
    name: str,
    data_root: Path | None = None,
    image_size: int | None = None,
    traits: Traits | None = None,
    skip_bad: bool = False,
) -> MetaSets:
    """Load a data set. The first time, it is decoded into the cache.

    Args:
        name: A name in `DATASETS`, or "folder:DIR" for images `DIR/<class>/*`.
        data_root: The folder of downloaded files; default `default_data_root()`.
        image_size: Height and width in pixels; default as the data set says, 32 for a folder.
        traits: As in `find`.
        skip_bad: As in `find`.

    Raises:
        UserError: The name is unknown, a file is missing or damaged, or the cache cannot be written.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"image size {image_size} is too small: pass 1 or more pixels")
    dataset, root = find(name, traits, skip_bad), data_root or default_data_root()
    exists(root)  # an error if the system does not look it up; which files it lacks, the data set knows
    return dataset.load(root, image_size or dataset.image_shape[1])


def fetch(name: str, data_root: Path | None = None) -> list[Path]:
    """Download the files of a data set that are missing or damaged, and check their md5.

    Args:
        name: A name in `DATASETS`.
        data_root: Where to put them; default `default_data_root()`.

    Returns:
        The files of the data set.

    Raises:
        UserError: The name is unknown, or a download fails, or there is none.
    """
    return find(name).fetch(data_root or default_data_root())


def check(name: str, data_root: Path | None = None) -> list[tuple[Path, str]]:
    """Compare the checksums of a data set's files with the known ones.

    Args:
        name: A name in `DATASETS`, or "folder:DIR".
        data_root: The folder of downloaded files; default `default_data_root()`.

    Returns:
        Each file with "original", "rebuilt", "unknown checksum" or "missing".

    Raises:
        UserError: The name is unknown, or the data set is not complete.
    """
    return find(name).check(data_root or default_data_root())


def describe(data_root: Path | None = None) -> list[Description]:
    """Describe the data sets in `DATASETS`.

    Args:
        data_root: The folder of downloaded files; default `default_data_root()`.
    """
    root = data_root or default_data_root()
    return [
        Description(
            name,
            dataset.image_shape,
            dict(zip(SPLITS, dataset.n_classes, strict=True)),
            dataset.is_here(root),
            dataset.licence,
            dataset.groups,
        )
        for name, dataset in DATASETS.items()
    ]
