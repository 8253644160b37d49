"""mini-ImageNet as it lies on a user's disk: the lists of the split beside the images, or parquet files."""

import contextlib
import io
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from metalstm.errors import UserError

FOLDER = "mini_imagenet"  # below the data root
LISTS = {"meta-train": "train.csv", "meta-val": "val.csv", "meta-test": "test.csv"}
PARTS = {"meta-train": "train", "meta-val": "validation", "meta-test": "test"}  # how names of parquet files begin
CLASSES = {"meta-train": 64, "meta-val": 16, "meta-test": 20}
N_IMAGES = 600  # of a class
HOW = "as docs/mini-imagenet.md says"
COLUMNS = ("image.bytes", "image.path", "label")

Rows = list[tuple[str, str]]  # class and file name of every image
Decoded = tuple[list[str], Iterator[np.ndarray]]  # classes and images, by class and file name


@dataclass(frozen=True)
class Images:
    """A split whose list names files in a folder.

    Attributes:
        source: What a user calls it.
        key: What the list says; with the files' contents it tells what `decode` gives.
        files: In order.
    """

    source: ClassVar[str] = "images"
    key: Rows
    files: list[Path]

    def labels(self) -> list[str]:
        """The class of every image, in order."""
        return [label for label, _ in self.key]

    def decode(self, size: int, scratch: Path) -> Decoded:
        """All images, scaled to `size` pixels; nothing is put into `scratch`."""

        def images() -> Iterator[np.ndarray]:
            for path in self.files:
                with _reading(path):
                    image = _scaled(path, size)
                yield image

        return self.labels(), images()


@dataclass(frozen=True)
class Parquet:
    """A split in parquet files, with rows in any order.

    Attributes:
        source: What a user calls it.
        key: The split; with the files' contents it tells what `decode` gives.
        files: By name.
    """

    source: ClassVar[str] = "parquet"
    key: str
    files: list[Path]

    def labels(self) -> list[str]:
        """The class of every image, in order."""
        return sorted(label for label, _ in self._rows())

    def decode(self, size: int, scratch: Path) -> Decoded:
        """All images, scaled to `size` pixels; where rows are not in order, a file in `scratch` puts them so."""
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
        """In the files' order. A class is the WordNet id in its images' names, or its number where there is none."""
        rows = []
        for path in self.files:
            with _reading(path), _pyarrow().ParquetFile(path) as file:
                there = [file.schema.column(k).path for k in range(len(file.schema))]
                if not set(COLUMNS).issubset(there):
                    raise UserError(
                        f"{path} has columns {', '.join(there)}, but needs {', '.join(COLUMNS)}: get it again, {HOW}"
                    )
                for row in file.read(["image.path", "label"]).to_pylist():
                    name = row["image"]["path"] or ""
                    wordnet = re.search(r"n\d{8}", name)
                    rows.append((wordnet[0] if wordnet else f"{self.key}/{row['label']:03}", name))
        return rows

    def _images(self, size: int) -> Iterator[np.ndarray]:
        """In the files' order."""
        for path in self.files:
            # Read piece by piece: otherwise a row group as a whole lies in memory.
            with _reading(path), _pyarrow().ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
                for batch in file.iter_batches(64, columns=["image.bytes"]):
                    for row in batch.to_pylist():
                        yield _scaled(io.BytesIO(row["image"]["bytes"]), size)


def is_there(root: Path) -> bool:
    """Whether the data root has images or parquet files, be they all or not."""
    return (root / FOLDER / "images").is_dir() or any((root / FOLDER).glob("data/*.parquet"))


def find(root: Path) -> Mapping[str, Images | Parquet]:
    """The splits; where there are images as well as parquet files, those of the images.

    Args:
        root: The data root.

    Raises:
        UserError: There are none, or not all, or a list is malformed.
    """
    folder = root / FOLDER
    if (folder / "images").is_dir():
        return _find_images(folder)
    if not is_there(root):
        raise _lacks(folder, "images/ or data/*.parquet")
    return {split: Parquet(split, _find_parquet(folder, part)) for split, part in PARTS.items()}


def check(splits: Mapping[str, Images | Parquet]) -> None:
    """Count the classes and images.

    Raises:
        UserError: They are not as many as in mini-ImageNet.
    """
    for split, part in splits.items():
        own = Counter(part.labels())
        if len(own) != CLASSES[split] or set(own.values()) != {N_IMAGES}:
            raise UserError(
                f"{split} has {len(own)} classes of {min(own.values(), default=0)} to {max(own.values(), default=0)} "
                f"images, but mini-ImageNet's has {CLASSES[split]} of {N_IMAGES}: get the rest, {HOW}"
            )


def _find_images(folder: Path) -> dict[str, Images]:
    rows = {split: sorted(_read_list(folder / name)) for split, name in LISTS.items()}
    names = Counter(name for part in rows.values() for _, name in part)
    for name, n in names.items():
        if n > 1:
            raise UserError(f"{folder}: the lists name {name!r} {n} times: keep one of these lines")
    absent = [name for name in names if not (folder / "images" / name).is_file()]
    if absent:
        raise UserError(
            f"{folder / 'images'} lacks {len(absent):,} of the {len(names):,} images that the lists name, "
            f"{absent[0]!r} first: add them, {HOW}"
        )
    return {split: Images(part, [folder / "images" / name for _, name in part]) for split, part in rows.items()}


def _read_list(path: Path) -> Rows:
    if not path.is_file():
        raise _lacks(path.parent, path.name)
    with _reading(path):
        lines = [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    rows = []
    for number, line in enumerate(lines):
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 2 or not all(cells) or (cells == ["filename", "label"]) != (number == 0):
            wanted = "a file name, a comma and a class" if number else "'filename,label'"
            raise UserError(
                f"{path} has the line {line!r}, but needs {wanted} there: mend it, or take the authors' list"
            )
        rows.append((cells[1], cells[0]))
    if len(rows) < 2:
        raise UserError(f"{path} names no images: take the authors' list, {HOW}")
    return rows[1:]


def _find_parquet(folder: Path, part: str) -> list[Path]:
    files = sorted(folder.glob(f"data/{part}-*.parquet"))
    if not files:
        raise _lacks(folder, f"data/{part}-*.parquet")
    whole = re.search(r"-of-(\d+)", files[-1].name)
    if whole and int(whole[1]) != len(files):
        raise _lacks(folder, f"{int(whole[1])} files data/{part}-*.parquet, not {len(files)},")
    return files


def _lacks(folder: Path, what: str) -> UserError:
    return UserError(f"mini-imagenet needs {what} in {folder}: get the images, {HOW}, or pass --data-root DIR")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tell any error as the file's."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # broken images and parquet files raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is damaged ({reason}): get it again, {HOW}") from error


def _scaled(file: Path | io.BytesIO, size: int) -> np.ndarray:
    """The whole picture, whatever its shape, scaled to a square, as the authors do."""
    from PIL import Image

    with Image.open(file) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS))


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("parquet files need pyarrow, which is not here: pip install 'metalstm[parquet]'") from error
    return pyarrow.parquet
