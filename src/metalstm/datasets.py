"""Data sets as images by class: decoded once into a memory-mapped cache, loaded at once ever after."""

import contextlib
import functools
import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from metalstm import mini_imagenet
from metalstm.console import console, progress, track
from metalstm.errors import UserError, is_full, unknown
from metalstm.images import read_image, square

SPLITS = ("meta-train", "meta-val", "meta-test")
NAMES = ("glyphs", "omniglot", "cifar-fs", "fc100", "mini-imagenet")
CIFAR = ("cifar-fs", "fc100")  # both made from CIFAR-100
GREY = ("glyphs", "omniglot")

# A change here makes every cached set stale: raise it with any change to what is decoded, or how it is stored.
FORMAT = 1
# Of Omniglot's 964 background characters so many are meta-val; of a smaller archive the same share.
OMNIGLOT_VAL, OMNIGLOT_BACKGROUND = 164, 964
# The seed of every permutation of classes that makes a split.
SPLIT_SEED = 0
IMAGE_SIZES = {"glyphs": 28, "omniglot": 28, "cifar-fs": 32, "fc100": 32, "mini-imagenet": 84}
LICENCES = {
    "glyphs": "MIT, part of metalstm; drawn from the DejaVu and STIX fonts",
    "omniglot": "MIT, Copyright (c) 2015 Brenden Lake",
    "cifar-fs": "CIFAR-100 (Krizhevsky 2009): no licence stated, citation asked for",
    "fc100": "CIFAR-100 (Krizhevsky 2009): no licence stated, citation asked for",
    "mini-imagenet": "ImageNet's terms: non-commercial research and education only",
}


@dataclass(frozen=True, eq=False)
class ImagesByClass:
    """Images grouped by class.

    Attributes:
        images: uint8 (n_images, height, width, channels), read-only, possibly memory-mapped.
        classes: The class names.
        spans: int64 (n_classes, 2): class k is `images[spans[k, 0]:spans[k, 1]]`.
        name: What messages call it: "meta-val", say.
    """

    images: np.ndarray
    classes: tuple[str, ...]
    spans: np.ndarray
    name: str = "the set"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width), the order that learners take."""
        height, width, channels = self.images.shape[1:]
        return channels, height, width

    def subset(self, classes: Iterable[str]) -> "ImagesByClass":
        """Some of the classes, in the order of this set; shares `images`.

        Args:
            classes: Names of classes of this set, in any order.

        Raises:
            UserError: A name is not a class of this set.
        """
        wanted = set(classes)
        for name in sorted(wanted.difference(self.classes)):
            raise unknown("class", name, self.classes)
        keep = [k for k, name in enumerate(self.classes) if name in wanted]
        return ImagesByClass(self.images, tuple(self.classes[k] for k in keep), self.spans[keep], self.name)

    def compact(self) -> "ImagesByClass":
        """The same classes in a copy that lies in memory and holds no other images."""
        images = np.concatenate([self.images[start:stop] for start, stop in self.spans])
        images.flags.writeable = False
        return ImagesByClass(images, self.classes, _spans(np.diff(self.spans, axis=1).ravel().tolist()), self.name)

    def rotated(self) -> "ImagesByClass":
        """Four times the classes: as they are, then turned by 90, 180 and 270 degrees as new classes ("name@90").

        Images must be square. The copy lies in memory: four times the bytes of this set's own classes.
        """
        own = self.compact()
        images = np.concatenate([np.rot90(own.images, turns, axes=(1, 2)) for turns in range(4)])
        images.flags.writeable = False
        names = [f"{name}@{90 * turns}" if turns else name for turns in range(4) for name in self.classes]
        return ImagesByClass(images, tuple(names), _spans(4 * np.diff(own.spans, axis=1).ravel().tolist()), self.name)

    def mirrored(self) -> "ImagesByClass":
        """Twice the images: those of each class, then their mirror images. The copy lies in memory."""
        own = self.compact()
        parts = [(own.images[start:stop], own.images[start:stop, :, ::-1]) for start, stop in own.spans]
        images = np.concatenate([part for both in parts for part in both])
        images.flags.writeable = False
        return ImagesByClass(images, self.classes, _spans((2 * np.diff(own.spans, axis=1).ravel()).tolist()), self.name)


@dataclass(frozen=True, eq=False)
class MetaSets:
    """A data set in its three splits.

    Attributes:
        name: As the user gave it: one of `NAMES`, or "folder:DIR".
        splits: Each of `SPLITS` with its images.
        licence: Licence or terms of the images, to be told in checkpoints made from them.
        digest: sha256 (hex) of class names, split membership and pixels; the same from zip, tar or folder.
    """

    name: str
    splits: dict[str, ImagesByClass]
    licence: str
    digest: str

    @property
    def short_name(self) -> str:
        """The name as a part of a file's name; of a folder, what it is called."""
        return self.name.rstrip("/").rpartition("/")[2].replace(":", "-")


@dataclass(frozen=True)
class Description:
    """A data set in a few words, a line of `metalstm data list`.

    Attributes:
        name: One of `NAMES`.
        image_shape: (channels, height, width).
        classes: Number of classes of each split.
        present: Whether it can be loaded without a download.
        licence: Licence or terms of the images.
    """

    name: str
    image_shape: tuple[int, int, int]
    classes: dict[str, int]
    present: bool
    licence: str


@dataclass(frozen=True)
class _Archive:
    """A file that a data set is read from, below the data root."""

    path: str
    url: str = ""
    md5: str = ""  # of the original release
    rebuilt: str = ""  # sha256 of a zip with the same images, made anew


_BACKGROUND = _Archive(
    "omniglot/images_background.zip",
    url="https://github.com/brendenlake/omniglot/raw/master/python/images_background.zip",
    md5="68d2efa1b9178cc56df9314c21c6e718",
    rebuilt="5e40902b4b72dcec6d87732eb8e8c0862f2c92b579cf264e65fc7a0954e80d47",
)
_EVALUATION = _Archive(
    "omniglot/images_evaluation.zip",
    url="https://github.com/brendenlake/omniglot/raw/master/python/images_evaluation.zip",
    md5="6b91aef0f799c5bb55b94e3f2daec811",
    rebuilt="bcc0b44a73cc146a6739d98c0004e3fc70173968e567278fb429b3dd55342400",
)
_CIFAR_TAR = _Archive(
    "cifar100/cifar-100-python.tar.gz",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
)
_CIFAR_ZIP = _Archive(
    "cifar100/cifar100.zip",
    rebuilt="a4f7fbac2b295e926009db291a08e31e2137bfd16f6d10b9ec7d99356875d636",
)
_MINI_IMAGENET = [  # the split; checksums of the images are not known
    _Archive("mini_imagenet/train.csv", md5="9525e1538f67719f18f1936bf8d0782d"),
    _Archive("mini_imagenet/val.csv", md5="ce315ce99b41fbf84fa6acd69315d918"),
    _Archive("mini_imagenet/test.csv", md5="5b89df877c6cbe5d291e43118a2a9591"),
]

# What a decoder gives: the class of every image, in order, and the images themselves.
_Decoded = tuple[list[str], Iterator[np.ndarray]]
# What the cache gives: the images, and the sha256 of every class's pixels.
_Stored = tuple[ImagesByClass, dict[str, str]]
# The class names of every split.
_Members = Mapping[str, Sequence[str]]


def load(name: str, data_root: Path | None = None, image_size: int | None = None) -> MetaSets:
    """Load a data set; the first time it is decoded into the cache.

    Args:
        name: One of `NAMES`, or "folder:DIR" for images `DIR/<class>/*`.
        data_root: Where downloaded files lie; default `default_data_root()`.
        image_size: Height and width in pixels; default 28 for glyphs and Omniglot, 84 for mini-ImageNet, else 32.

    Raises:
        UserError: The name is unknown, a file is missing or damaged, or the cache cannot be written.
    """
    kind = "folder" if name.startswith("folder:") else name
    if kind not in (*NAMES, "folder"):
        raise unknown("data set", name, (*NAMES, "folder:DIR"))
    size = IMAGE_SIZES.get(kind, 32) if image_size is None else image_size
    if size < 1:
        raise UserError(f"image size {size} is too small: pass 1 or more pixels")
    root = default_data_root() if data_root is None else data_root
    licence = LICENCES.get(kind, "terms of the owner of the images")
    if kind == "folder":
        stored, members = _load_folder(Path(name.removeprefix("folder:")).expanduser(), size)
    elif kind == "glyphs":
        stored, members = _load_glyphs(size)
    elif kind == "omniglot":
        stored, members = _load_omniglot(root, size)
    elif kind == "mini-imagenet":
        source, stored, members = _load_mini_imagenet(root, size)
        licence += f" (read from {source})"  # goes into checkpoints, as pixels may differ between the sources
    else:
        stored, members = _load_cifar(kind, root, size)
    return _meta_sets(name, stored, members, licence)


def fetch(name: str, data_root: Path | None = None) -> list[Path]:
    """Download the files of a data set that are not there yet, with their md5 checked.

    Args:
        name: One of `NAMES`; glyphs need no file.
        data_root: Where to put them; default `default_data_root()`.

    Returns:
        The files of the data set.

    Raises:
        UserError: The name is unknown, or a download fails, or there is none.
    """
    root = default_data_root() if data_root is None else data_root
    if name == "mini-imagenet":
        raise UserError(
            "mini-imagenet has no download, as ImageNet's terms are between ImageNet and you: get the images, as "
            f"docs/mini-imagenet.md says, and put them into {root / 'mini_imagenet'}"
        )
    # A rebuilt zip stands in for the original.
    good = {path: state in ("original", "rebuilt") for path, state in check(name, root)}
    if all(good.values()):
        return list(good)
    downloads = [(archive, root / archive.path) for archive in _archives(name) if archive.url]
    return [path if good.get(path) else _download(archive, path) for archive, path in downloads]


def check(name: str, data_root: Path | None = None) -> list[tuple[Path, str]]:
    """Compare the checksums of a data set's files with the known ones.

    Args:
        name: One of `NAMES`; glyphs have no file.
        data_root: Where the files lie; default `default_data_root()`.

    Returns:
        Each file with "original", "rebuilt", "unknown checksum" or "missing"; of mini-ImageNet the lists of the split,
        where it is read by them.

    Raises:
        UserError: The name is unknown, or mini-ImageNet is not whole.
    """
    root = default_data_root() if data_root is None else data_root
    archives = _archives(name)
    if name == "mini-imagenet":
        splits = mini_imagenet.find(root)
        mini_imagenet.check(splits)
        source = splits["meta-train"].source
        console.print(f"mini-imagenet has all its classes and images, as {source}", soft_wrap=True)
        if source == "parquet":
            return []
    if name in CIFAR:
        archives = [archive for archive in archives if (root / archive.path).exists()] or [_CIFAR_TAR]
    return [(root / archive.path, _state(archive, root / archive.path)) for archive in archives]


def describe(data_root: Path | None = None) -> list[Description]:
    """Describe the data sets that have a name.

    Args:
        data_root: Where downloaded files would lie; default `default_data_root()`.
    """
    root = default_data_root() if data_root is None else data_root
    n_classes = {
        "glyphs": {"meta-train": 1269, "meta-val": 216, "meta-test": 381},  # drawing them takes time
        "omniglot": {"meta-train": OMNIGLOT_BACKGROUND - OMNIGLOT_VAL, "meta-val": OMNIGLOT_VAL, "meta-test": 659},
        "cifar-fs": {split: len(classes) for split, classes in _class_lists("cifar-fs").items()},
        "fc100": {split: len(classes) for split, classes in _class_lists("fc100").items()},
        "mini-imagenet": mini_imagenet.CLASSES,
    }
    descriptions = []
    for name in NAMES:
        here = [(root / archive.path).is_file() for archive in _archives(name)]
        if name == "mini-imagenet":
            here = [mini_imagenet.is_there(root)]
        descriptions.append(
            Description(
                name,
                (1 if name in GREY else 3, IMAGE_SIZES[name], IMAGE_SIZES[name]),
                n_classes[name],
                any(here) if name in CIFAR else all(here),  # either file of CIFAR-100 will do
                LICENCES[name],
            )
        )
    return descriptions


def default_data_root() -> Path:
    """Where data files are looked for: METALSTM_DATA, else a folder of the user cache directory."""
    return Path(os.environ.get("METALSTM_DATA") or _user_cache() / "data")


def cache_root() -> Path:
    """Where decoded images are kept: METALSTM_CACHE, else a folder of the user cache directory."""
    return Path(os.environ.get("METALSTM_CACHE") or _user_cache() / "decoded")


def class_folders(directory: Path) -> list[str]:
    """The class names of a folder of one's own: those of the folders in it.

    Raises:
        UserError: It is not a folder, or has none in it.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is not a folder: name one with images in <class>/")
    classes = [path.name for path in _visible(directory) if path.is_dir()]
    if not classes:
        raise UserError(f"{directory} has no class folders: put the images of each class into {directory}/<class>/")
    return classes


def labelled_files(directory: Path, classes: Iterable[str]) -> list[tuple[str, Path]]:
    """The files in class folders, each with its class.

    Raises:
        UserError: A class has none.
    """
    files: list[tuple[str, Path]] = []
    for label in classes:
        own = [path for path in _visible(directory / label) if path.is_file()]
        if not own:
            raise UserError(f"class folder {directory / label} has no images: add some, or remove it")
        files += [(label, path) for path in own]
    return files


def _user_cache() -> Path:
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("metalstm"))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _spans(counts: Sequence[int]) -> np.ndarray:
    ends = np.cumsum(counts, dtype=np.int64)
    return np.stack([ends - np.asarray(counts, dtype=np.int64), ends], axis=1)


def _permuted(classes: Iterable[str]) -> list[str]:
    # RandomState, as its stream is the same in every NumPy version; that of default_rng may change.
    names = sorted(classes)
    return [names[k] for k in np.random.RandomState(SPLIT_SEED).permutation(len(names))]


def _meta_sets(name: str, stored: list[_Stored], members: _Members, licence: str) -> MetaSets:
    """Put the splits together from what is stored; each class lies in one of `stored`."""
    home = {label: images for images, _ in stored for label in images.classes}
    pixels = {label: sha256 for _, sums in stored for label, sha256 in sums.items()}
    splits = {s: replace(home[members[s][0]].subset(members[s]), name=s) for s in SPLITS}
    content = [splits[SPLITS[0]].image_shape, [[[label, pixels[label]] for label in splits[s].classes] for s in SPLITS]]
    return MetaSets(name, splits, licence, hashlib.sha256(json.dumps(content).encode()).hexdigest())


def _check_disjoint(source: Path, members: _Members) -> None:
    seen: dict[str, str] = {}
    for split in SPLITS:
        for label in members[split]:
            if label in seen:
                raise UserError(f"{source}: class {label!r} is in {seen[label]} and in {split}: keep one of them")
            seen[label] = split


# Sources: what each data set is made from.


def _load_glyphs(size: int) -> tuple[list[_Stored], _Members]:
    from PIL import Image

    from metalstm import glyphs

    render = functools.cache(glyphs.render)  # one rendering serves all splits

    def decode(split: str) -> _Decoded:
        images, classes, members = render()
        labels = np.repeat(classes, len(images) // len(classes))
        own = set(members[split])
        order = [k for k in np.argsort(labels, kind="stable") if labels[k] in own]
        return [str(labels[k]) for k in order], (square(Image.fromarray(images[k, :, :, 0]), size, 1) for k in order)

    stored = {
        split: _cached("glyphs", [glyphs.KEY, split], (size, size, 1), functools.partial(decode, split))
        for split in SPLITS
    }
    return list(stored.values()), {split: images.classes for split, (images, _) in stored.items()}


def _load_omniglot(root: Path, size: int) -> tuple[list[_Stored], _Members]:
    paths = [root / archive.path for archive in _archives("omniglot")]
    for path in paths:
        if not path.is_file():
            raise _missing("omniglot", path)
    background, evaluation = (
        _cached(
            f"omniglot-{path.stem}",
            _checksum(path),
            (size, size, 1),
            functools.partial(_decode_zip, path, "omniglot", 4, size, 1),
        )
        for path in paths
    )
    names = _permuted(background[0].classes)
    if len(names) < 2:
        raise UserError(f"{paths[0]} has {len(names)} character, but two are needed: {_fetch_again('omniglot')}")
    n_val = max(1, round(len(names) * OMNIGLOT_VAL / OMNIGLOT_BACKGROUND))
    members = {"meta-train": names[n_val:], "meta-val": names[:n_val], "meta-test": evaluation[0].classes}
    _check_disjoint(root / "omniglot", members)
    return [background, evaluation], members


def _load_cifar(name: str, root: Path, size: int) -> tuple[list[_Stored], _Members]:
    tar, zipped = (root / archive.path for archive in _archives(name))
    path = next((path for path in (tar, zipped) if path.is_file()), None)
    if path is None:
        raise _missing(name, tar)
    if path == tar:
        decode = functools.partial(_decode_cifar_tar, path, name, size)
    else:
        decode = functools.partial(_decode_zip, path, name, 3, size, 3)
    stored = _cached("cifar100", _checksum(path), (size, size, 3), decode)
    lists = _class_lists(name)
    for label in sorted({label for labels in lists.values() for label in labels}.difference(stored[0].classes)):
        raise UserError(f"{path} has no class {label!r}, so it is not CIFAR-100: {_fetch_again(name)}")
    return [stored], lists


def _load_mini_imagenet(root: Path, size: int) -> tuple[str, list[_Stored], _Members]:
    """As the others, with what it was read from."""
    splits = mini_imagenet.find(root)
    source = splits["meta-train"].source
    stored = {}
    for split, part in splits.items():
        sums = [_checksum(path) for path in track(part.files, f"checking {split}")]
        decode = functools.partial(part.decode, size, cache_root())
        stored[split] = _cached(f"mini-imagenet-{source}-{split}", [part.key, sums], (size, size, 3), decode)
    members = {split: images.classes for split, (images, _) in stored.items()}
    _check_disjoint(root / mini_imagenet.FOLDER, members)
    console.print(f"mini-imagenet is read from {source} in {root / mini_imagenet.FOLDER}", soft_wrap=True)
    return source, list(stored.values()), members


def _load_folder(directory: Path, size: int) -> tuple[list[_Stored], _Members]:
    members = _folder_splits(directory, class_folders(directory))
    _check_disjoint(directory, members)
    used = sorted(label for labels in members.values() for label in labels)
    files = labelled_files(directory, used)
    key = hashlib.sha256()
    for label, path in track(files, f"checking {directory.name}"):
        key.update(json.dumps([label, path.name, _checksum(path)]).encode())

    def decode() -> _Decoded:
        return [label for label, _ in files], (read_image(path, size) for _, path in files)

    return [_cached("folder", key.hexdigest(), (size, size, 3), decode)], members


def _visible(directory: Path) -> list[Path]:
    """What a folder holds, by name, without hidden files."""
    try:
        paths = [path for path in directory.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot read {directory} ({_one_line(error)}): check its permissions") from error
    return sorted(paths, key=lambda path: path.name)


def _folder_splits(directory: Path, classes: list[str]) -> _Members:
    """Class names of each split: as listed in meta-train.txt and so on, else a seeded 64, 16 and 20 %."""
    lists = {split: directory / f"{split}.txt" for split in SPLITS}
    there = [path for path in lists.values() if path.is_file()]
    if there and len(there) < len(lists):
        lacking = ", ".join(path.name for path in lists.values() if path not in there)
        raise UserError(f"{directory} has {there[0].name} but not {lacking}: write all three lists, or none")
    if there:
        members = {split: _lines(path) for split, path in lists.items()}
        for split, labels in members.items():
            if not labels:
                raise UserError(f"{lists[split]} names no class: write one class name a line")
            for label in labels:
                if label not in classes:
                    raise UserError(f"{lists[split]} names {label!r}, but {directory} has no such folder: mend it")
        return members
    n = len(classes)
    if n < len(SPLITS):
        raise UserError(f"{directory} has {n} classes, but the three splits need at least 3: add {len(SPLITS) - n}")
    names, n_val, n_test = _permuted(classes), max(1, round(0.16 * n)), max(1, round(0.2 * n))
    n_train = n - n_val - n_test
    return dict(zip(SPLITS, (names[:n_train], names[n_train : n_train + n_val], names[n_train + n_val :]), strict=True))


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({_one_line(error)}): write it as UTF-8 text") from error


def _class_lists(name: str) -> _Members:
    return {split: _lines(Path(__file__).parent / "splits" / name / f"{split}.txt") for split in SPLITS}


# Archives: reading, checking and downloading them.


def _archives(name: str) -> list[_Archive]:
    if name.startswith("folder:"):
        raise UserError(f"{name!r} is a folder of your own: there is nothing to fetch or check")
    if name not in NAMES:
        raise unknown("data set", name, NAMES)
    if name == "glyphs":
        return []
    if name == "mini-imagenet":
        return _MINI_IMAGENET
    return [_BACKGROUND, _EVALUATION] if name == "omniglot" else [_CIFAR_TAR, _CIFAR_ZIP]


def _missing(name: str, path: Path) -> UserError:
    return UserError(
        f"{name} needs {path.name}, which is not in {path.parent}: "
        f"run 'metalstm data fetch {name}', or pass --data-root DIR"
    )


def _fetch_again(name: str) -> str:
    return f"delete it and run 'metalstm data fetch {name}'"


@contextlib.contextmanager
def _reading(path: Path, name: str) -> Iterator[None]:
    """Tell any error as the archive's."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # broken zips, tars, pickles and PNGs raise nearly anything
        raise UserError(f"{path} is damaged ({_one_line(error)}): {_fetch_again(name)}") from error


def _decode_zip(path: Path, name: str, depth: int, size: int, channels: int) -> _Decoded:
    """Images `<top>/<class>/<file>.png`; at depth 4 the class is two folders, as Omniglot's alphabet and character."""
    with _reading(path, name), zipfile.ZipFile(path) as archive:
        found = [(member.split("/"), member) for member in archive.namelist() if member.endswith(".png")]
    entries = sorted(
        ("/".join(parts[1:-1]), parts[-1], member)
        for parts, member in found
        if len(parts) == depth and not parts[-1].startswith(".")
    )
    if not entries:
        layout = "images_*/<alphabet>/<character>/*.png" if depth == 4 else "cifar100/<class>/*.png"
        raise UserError(f"{path} has no images {layout}: {_fetch_again(name)}")

    def images() -> Iterator[np.ndarray]:
        from PIL import Image

        with _reading(path, name), zipfile.ZipFile(path) as archive:
            for _, _, member in entries:
                with Image.open(io.BytesIO(archive.read(member))) as image:
                    pixels = square(image, size, channels)
                # Omniglot's paper is 1 and its ink 0; here ink is 255 and paper 0.
                yield 255 - pixels if channels == 1 else pixels

    return [label for label, _, _ in entries], images()


def _decode_cifar_tar(path: Path, name: str, size: int) -> _Decoded:
    from PIL import Image

    with _reading(path, name):
        with tarfile.open(path, "r:gz") as tar:
            parts = {}
            for part in ("meta", "test", "train"):
                file = tar.extractfile(f"cifar-100-python/{part}")
                if file is None:
                    raise ValueError(f"cifar-100-python/{part} is not a file")
                parts[part] = _unpickle(file.read())
        names = [label.decode() for label in parts["meta"][b"fine_label_names"]]
        both = parts["train"], parts["test"]
        labels = [names[k] for part in both for k in part[b"fine_labels"]]
        files = [file.decode() for part in both for file in part[b"filenames"]]
        # A row is 1,024 reds, then greens, then blues.
        pixels = np.concatenate([part[b"data"].reshape(-1, 3, 32, 32) for part in both]).transpose(0, 2, 3, 1)
        if pixels.dtype != np.uint8 or not len(labels) == len(files) == len(pixels) > 0:
            raise ValueError(f"{len(labels)} labels, {len(files)} names, {len(pixels)} images of {pixels.dtype}")
    order = sorted(range(len(labels)), key=lambda k: (labels[k], files[k]))
    return [labels[k] for k in order], (square(Image.fromarray(pixels[k]), size, 3) for k in order)


def _unpickle(content: bytes) -> Any:
    """Load a pickle that may hold plain values and NumPy arrays, and can run nothing else."""
    reconstruct: Any = np.empty(0).__reduce__()[0]
    allowed = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): reconstruct,  # NumPy 1
        ("numpy._core.multiarray", "_reconstruct"): reconstruct,  # NumPy 2
    }

    class ArrayUnpickler(pickle.Unpickler):
        def find_class(self, module_name: str, global_name: str, /) -> Any:
            if (module_name, global_name) not in allowed:
                raise pickle.UnpicklingError(f"its pickle asks for {module_name}.{global_name}, which is refused")
            return allowed[module_name, global_name]

    return ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()


def _checksum(path: Path, algorithm: str = "sha256") -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path} ({_one_line(error)}): check its permissions") from error


def _state(archive: _Archive, path: Path) -> str:
    if not path.is_file():
        return "missing"
    if archive.md5 and _checksum(path, "md5") == archive.md5:
        return "original"
    return "rebuilt" if archive.rebuilt and _checksum(path) == archive.rebuilt else "unknown checksum"


class _DownloadBar:
    """What pooch asks of a progress bar (attribute `total` and these methods, in bytes), shown by rich."""

    def __init__(self, bar: Any, description: str):
        self.total = 0
        self._bar, self._task = bar, bar.add_task(description, total=None)

    def update(self, size: int) -> None:
        self._bar.update(self._task, advance=size // 1024, total=self.total // 1024)

    def reset(self) -> None:
        self._bar.reset(self._task)

    def close(self) -> None:
        self._bar.stop_task(self._task)


def _download(archive: _Archive, path: Path) -> Path:
    import pooch

    pooch.get_logger().setLevel("WARNING")
    try:
        with progress() as bar:
            shown: Any = _DownloadBar(bar, f"{path.name} (kB)")  # pooch's stubs only know bool
            downloader: Any = pooch.HTTPDownloader(progressbar=shown, chunk_size=1 << 16)
            pooch.retrieve(archive.url, f"md5:{archive.md5}", path.name, path.parent, downloader=downloader)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong checksum is a ValueError
        if is_full(error):
            raise UserError(
                f"no space left in {path.parent} for {path.name}: free some, or pass --data-root"
            ) from error
        raise UserError(
            f"cannot download {archive.url} to {path} ({_one_line(error)}): try again, or put the file there yourself"
        ) from error
    return path


# The cache: for each source an .npy file of all images, and a .json file of its classes.


def _cached(kind: str, content: object, shape: tuple[int, int, int], decode: Callable[[], _Decoded]) -> _Stored:
    """Decoded images from the cache; decoded now where they are not there or broken.

    Args:
        kind: What is decoded, for people who look into the cache.
        content: What identifies the source: a checksum, say.
        shape: (height, width, channels) of an image.
        decode: Called where there is no entry.
    """
    import PIL

    key = hashlib.sha256(json.dumps([FORMAT, PIL.__version__, content, shape]).encode()).hexdigest()[:20]
    entry = cache_root() / f"{kind}-{key}"
    stored = _read(entry)
    if stored is None:
        labels, images = decode()
        try:
            _write(entry, labels, images, shape)
        except OSError as error:
            need = f"{-(-len(labels) * int(np.prod(shape)) // 1_000_000)} MB"
            if is_full(error):
                raise UserError(
                    f"no space left in {entry.parent} for the decoded images, which need {need}: "
                    "free some, or set METALSTM_CACHE to another folder"
                ) from error
            raise UserError(
                f"cannot write the decoded images to {entry.parent} ({_one_line(error)}): "
                f"set METALSTM_CACHE to a folder with {need} of space"
            ) from error
        stored = _read(entry)
    if stored is None:
        raise UserError(
            f"the decoded images in {entry.parent} cannot be read back: set METALSTM_CACHE to another folder"
        )
    return stored


def _read(entry: Path) -> _Stored | None:
    try:
        index = json.loads(entry.with_suffix(".json").read_text("utf-8"))
        # Mapping fails where the file is shorter than its header says.
        images = np.load(entry.with_suffix(".npy"), mmap_mode="r").view(np.ndarray)
        names, counts, sums = zip(*index, strict=True)
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != sum(counts):
            return None
        return ImagesByClass(images, names, _spans(counts)), dict(zip(names, sums, strict=True))
    except (OSError, EOFError, ValueError, TypeError):
        return None


def _write(entry: Path, labels: list[str], images: Iterator[np.ndarray], shape: tuple[int, int, int]) -> None:
    """Write an entry so that it is there either whole or not at all, whoever else writes it at the same time."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(entry.parent)
    sums = {label: hashlib.sha256() for label in labels}
    counts = dict.fromkeys(labels, 0)
    with tempfile.TemporaryDirectory(prefix=".decoding-", dir=entry.parent) as scratch:
        # Written in sequence, as a full disk would end a process that writes to a memory map by a signal.
        with open(Path(scratch) / "images.npy", "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), *shape)}
            np.lib.format.write_array_header_1_0(file, header)
            shown = track(images, f"decoding {entry.name.rpartition('-')[0]}", total=len(labels))
            for label, image in zip(labels, shown, strict=True):
                pixels = image.tobytes()
                file.write(pixels)
                sums[label].update(pixels)
                counts[label] += 1
            _sync(file)
        with open(Path(scratch) / "index.json", "wb") as file:
            file.write(json.dumps([[label, counts[label], sums[label].hexdigest()] for label in sums]).encode())
            _sync(file)
        # Where another process was faster, its entry holds the same bytes, and may be in use.
        if _read(entry) is None:
            os.replace(Path(scratch) / "images.npy", entry.with_suffix(".npy"))
            os.replace(Path(scratch) / "index.json", entry.with_suffix(".json"))


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _remove_stale(directory: Path) -> None:
    """Remove what killed decodes left behind: scratch folders that nothing was written to for a day."""
    for scratch in directory.glob(".decoding-*"):
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in (scratch, *scratch.iterdir()))
            if time.time() - newest > 24 * 3600:
                shutil.rmtree(scratch, ignore_errors=True)
