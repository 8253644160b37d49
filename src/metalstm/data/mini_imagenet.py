"""mini-ImageNet as users have it on disk: the lists of the split with the images, or parquet files."""

import functools
import io
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from metalstm.console import console, track
from metalstm.data.base import Dataset, MetaSets, Stored, check_disjoint
from metalstm.data.cache import Decoded, cached
from metalstm.data.downloads import File
from metalstm.data.places import cache_root
from metalstm.data.reading import checksum, reading
from metalstm.errors import UserError
from metalstm.files import exists
from metalstm.images import decoding
from metalstm.settings import Traits

FOLDER = "mini_imagenet"  # below the data root
LISTS = {"meta-train": "train.csv", "meta-val": "val.csv", "meta-test": "test.csv"}
PARTS = {"meta-train": "train", "meta-val": "validation", "meta-test": "test"}  # how names of parquet files begin
N_IMAGES = 600  # per class
HOW = "as docs/mini-imagenet.md says"
AGAIN = f"get it again, {HOW}"
COLUMNS = ("image.bytes", "image.path", "label")

Rows = list[tuple[str, str]]  # class and file name of every image


class MiniImageNet(Dataset):
    """Photos of 100 classes of ImageNet, in the split of the paper (Ravi and Larochelle 2017)."""

    name = "mini-imagenet"
    image_shape = (3, 84, 84)
    licence = "ImageNet's terms: non-commercial research and education only"
    traits = Traits()
    n_classes = (64, 16, 20)
    files = (  # the lists; the checksums of the images are not known
        File(f"{FOLDER}/train.csv", md5="9525e1538f67719f18f1936bf8d0782d"),
        File(f"{FOLDER}/val.csv", md5="ce315ce99b41fbf84fa6acd69315d918"),
        File(f"{FOLDER}/test.csv", md5="5b89df877c6cbe5d291e43118a2a9591"),
    )

    def load(self, root: Path, size: int) -> MetaSets:
        """Load from images if they are there, otherwise from parquet files.

        The licence names which of them, because their pixels may differ.
        """
        splits = find(root)
        source = splits["meta-train"].source
        stored = {split: self._stored(split, part, size) for split, part in splits.items()}
        members = {split: part.images.classes for split, part in stored.items()}
        check_disjoint(root / FOLDER, members)
        console.print(f"{self.name} is read from {source} in {root / FOLDER}", soft_wrap=True)
        return self.from_stored(list(stored.values()), members, f"{self.licence} (read from {source})")

    def fetch(self, root: Path) -> list[Path]:
        """There is no download.

        Raises:
            UserError: Always, with what the user can do.
        """
        raise UserError(
            f"{self.name} has no download, because ImageNet's terms are between ImageNet and you: get the images, "
            f"{HOW}, and put them into {root / FOLDER}"
        )

    def check(self, root: Path) -> list[tuple[Path, str]]:
        """Count classes and images, and compare the checksums of the lists if the images are read by them."""
        splits = find(root)
        for n, (split, part) in zip(self.n_classes, splits.items(), strict=True):
            _check_counts(split, part, n)
        source = splits["meta-train"].source
        console.print(f"{self.name} has all its classes and images, as {source}", soft_wrap=True)
        return super().check(root) if source == Images.source else []

    def is_here(self, root: Path) -> bool:
        """Whether there are images or parquet files, complete or not."""
        return (root / FOLDER / "images").is_dir() or any((root / FOLDER).glob("data/*.parquet"))

    def _stored(self, split: str, part: "Images | Parquet", size: int) -> Stored:
        sums = [checksum(path) for path in track(part.files, f"checking {split}")]
        decode = functools.partial(part.decode, size, cache_root())
        return cached(f"mini-imagenet-{part.source}-{split}", [part.key, sums], (size, size, 3), decode)


@dataclass(frozen=True)
class Images:
    """A split whose list names files in a folder.

    Attributes:
        source: The name of this form.
        key: The rows of the list, in order. Together with the content of the files they determine the result.
        files: The image of each row.
    """

    source: ClassVar[str] = "images"
    key: Rows
    files: list[Path]

    def labels(self) -> list[str]:
        """The class of every image, in order."""
        return [label for label, _ in self.key]

    def decode(self, size: int, scratch: Path) -> Decoded:
        """All images, scaled to `size` pixels; `scratch` is not used."""

        def images() -> Iterator[np.ndarray]:
            for path in self.files:
                with reading(path, AGAIN):
                    image = _scaled(path, size)
                yield image

        return self.labels(), images()


@dataclass(frozen=True)
class Parquet:
    """A split in parquet files, with rows in any order.

    Attributes:
        source: The name of this form.
        key: The split. Together with the content of the files it determines the result.
        files: Ordered by name.
    """

    source: ClassVar[str] = "parquet"
    key: str
    files: list[Path]

    def labels(self) -> list[str]:
        """The class of every image, in order."""
        return sorted(label for label, _ in self._rows())

    def decode(self, size: int, scratch: Path) -> Decoded:
        """All images, scaled to `size` pixels. If rows are not in order, a temporary file in `scratch` sorts them."""
        rows = self._rows()
        order = sorted(range(len(rows)), key=rows.__getitem__)

        def images() -> Iterator[np.ndarray]:
            n_bytes = size * size * 3
            with tempfile.TemporaryFile(dir=scratch) as file:
                for image in self._images(size):
                    file.write(image.tobytes())
                for k in order:
                    file.seek(k * n_bytes)
                    yield np.frombuffer(file.read(n_bytes), np.uint8).reshape(size, size, 3)

        in_order = order == list(range(len(rows)))
        return [rows[k][0] for k in order], self._images(size) if in_order else images()

    def _rows(self) -> Rows:
        """The rows in the order of the files. A class is the WordNet id in the image's name, otherwise a number."""
        rows = []
        for path in self.files:
            with reading(path, AGAIN), _pyarrow().ParquetFile(path) as file:
                columns = [file.schema.column(k).path for k in range(len(file.schema))]
                if not set(COLUMNS).issubset(columns):
                    raise UserError(f"{path} has columns {', '.join(columns)}, but needs {', '.join(COLUMNS)}: {AGAIN}")
                for row in file.read(["image.path", "label"]).to_pylist():
                    name = row["image"]["path"] or ""
                    wordnet = re.search(r"n\d{8}", name)
                    rows.append((wordnet[0] if wordnet else f"{self.key}/{row['label']:03}", name))
        return rows

    def _images(self, size: int) -> Iterator[np.ndarray]:
        """The images in the order of the files."""
        for path in self.files:
            # Read piece by piece; otherwise a whole row group is in memory.
            with reading(path, AGAIN), _pyarrow().ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
                for batch in file.iter_batches(64, columns=["image.bytes"]):
                    for row in batch.to_pylist():
                        yield _scaled(io.BytesIO(row["image"]["bytes"]), size)


def find(root: Path) -> Mapping[str, Images | Parquet]:
    """The files of each split. Images come before parquet files if both are there.

    Args:
        root: The data root.

    Raises:
        UserError: Files are missing, or a list is malformed.
    """
    folder = root / FOLDER
    if (folder / "images").is_dir():
        return _find_images(folder)
    if not any(folder.glob("data/*.parquet")):
        raise _lacks(folder, "images/ or data/*.parquet")
    return {split: Parquet(split, _find_parquet(folder, part)) for split, part in PARTS.items()}


def _find_images(folder: Path) -> dict[str, Images]:
    rows = {split: sorted(_read_list(folder / name)) for split, name in LISTS.items()}
    names = Counter(name for part in rows.values() for _, name in part)
    for name, n in names.items():
        if n > 1:
            raise UserError(f"{folder}: the lists name {name!r} {n} times: keep one of these lines")
    paths = {name: folder / "images" / name for name in names}
    absent = [name for name, path in paths.items() if not (exists(path) and path.is_file())]
    if absent:
        raise UserError(
            f"{folder / 'images'} lacks {len(absent):,} of the {len(names):,} images that the lists name, "
            f"{absent[0]!r} first: add them, {HOW}"
        )
    return {split: Images(part, [folder / "images" / name for _, name in part]) for split, part in rows.items()}


def _read_list(path: Path) -> Rows:
    if not path.is_file():
        raise _lacks(path.parent, path.name)
    with reading(path, AGAIN):
        lines = [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    rows = []
    for number, line in enumerate(lines):
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 2 or not all(cells) or (cells == ["filename", "label"]) != (number == 0):
            wanted = "a file name, a comma and a class" if number else "'filename,label'"
            raise UserError(
                f"{path} has the line {line!r}, but needs {wanted} there: correct it, or take the authors' list"
            )
        rows.append((cells[1], cells[0]))
    if len(rows) < 2:
        raise UserError(f"{path} names no images: take the authors' list, {HOW}")
    return rows[1:]


def _find_parquet(folder: Path, part: str) -> list[Path]:
    files = sorted(folder.glob(f"data/{part}-*.parquet"))
    if not files:
        raise _lacks(folder, f"data/{part}-*.parquet")
    number = re.search(r"-of-(\d+)", files[-1].name)
    if number and int(number[1]) != len(files):
        raise _lacks(folder, f"{int(number[1])} files data/{part}-*.parquet, not {len(files)},")
    return files


def _check_counts(split: str, part: Images | Parquet, n_classes: int) -> None:
    counts = Counter(part.labels())
    if len(counts) != n_classes or set(counts.values()) != {N_IMAGES}:
        raise UserError(
            f"{split} has {len(counts)} classes of {min(counts.values(), default=0)} to "
            f"{max(counts.values(), default=0)} images, but mini-ImageNet's has {n_classes} of {N_IMAGES}: "
            f"get the rest, {HOW}"
        )


def _lacks(folder: Path, what: str) -> UserError:
    return UserError(f"mini-imagenet needs {what} in {folder}: get the images, {HOW}, or pass --data-root DIR")


def _scaled(file: Path | io.BytesIO, size: int) -> np.ndarray:
    """The whole picture scaled to a square, whatever its shape, as the authors do."""
    from PIL import Image

    with decoding(file) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS))


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "parquet files need pyarrow, which is not installed: pip install 'metalstm[parquet]'"
        ) from error
    return pyarrow.parquet
