"""CIFAR-100, whose 100 classes are split in two ways: CIFAR-FS and FC100."""

import functools
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from metalstm.data.archives import MAX_UNPACKED, BoundedGzip, decode_zip
from metalstm.data.base import SPLITS, Dataset, Members, MetaSets
from metalstm.data.cache import Decoded, cached
from metalstm.data.downloads import File
from metalstm.data.reading import checksum, read_lines, reading
from metalstm.errors import UserError
from metalstm.images import Preprocessing, square
from metalstm.settings import Traits

SPLITS_FOLDER = Path(__file__).parent / "splits"


class Cifar100(Dataset):
    """Photos of 100 classes (Krizhevsky 2009), from the original archive or from a zip of PNG images.

    Args:
        name: The split: a folder of class lists in `splits/`.
        n_classes: Number of classes in each of its three lists.
        n_groups: Number of superclasses in each of them.
    """

    image_shape = (3, 32, 32)
    licence = "CIFAR-100 (Krizhevsky 2009): no licence stated, citation asked for"
    traits = Traits()
    groups = "superclasses"
    files = (
        File(
            "cifar100/cifar-100-python.tar.gz",
            url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            md5="eb9058c3a382ffc7106e4002c42a8d85",
        ),
        File(
            "cifar100/cifar100.zip",
            rebuilt="a4f7fbac2b295e926009db291a08e31e2137bfd16f6d10b9ec7d99356875d636",
        ),
    )

    def __init__(self, name: str, n_classes: tuple[int, int, int], n_groups: tuple[int, int, int]):
        self.name, self.n_classes, self.n_groups = name, n_classes, n_groups

    def group(self, label: str) -> str:
        """The superclass."""
        return superclasses()[label]

    def load(self, root: Path, size: int) -> MetaSets:
        """Load whichever archive is there; the original comes first. Both splits share one entry of the cache."""
        tar, zipped = (root / file.path for file in self.files)
        path = next((path for path in (tar, zipped) if path.is_file()), None)
        if path is None:
            raise self.missing(tar)
        if path == tar:
            decode = functools.partial(decode_tar, path, size, self.fetch_again)
        else:
            photo = Preprocessing(size, 3, drawing=False)
            decode = functools.partial(decode_zip, path, "cifar100/<class>/*.png", photo, self.fetch_again)
        stored = cached("cifar100", checksum(path), (size, size, 3), decode)
        members = class_lists(self.name)
        wanted = {label for labels in members.values() for label in labels}
        for label in sorted(wanted.difference(stored.images.classes)):
            raise UserError(f"{path} has no class {label!r}, so it is not CIFAR-100: {self.fetch_again}")
        return self.from_stored([stored], members)

    def check(self, root: Path) -> list[tuple[Path, str]]:
        """Compare the checksums of the archives that are there; one of the two is enough."""
        found = [file for file in self.files if (root / file.path).exists()]
        return [(root / file.path, file.state(root)) for file in found or self.files[:1]]

    def is_here(self, root: Path) -> bool:
        """Whether one of the two archives is there."""
        return any((root / file.path).is_file() for file in self.files)


def class_lists(name: str) -> Members:
    """The class names of each split, from the lists that are part of this package."""
    return {split: read_lines(SPLITS_FOLDER / name / f"{split}.txt") for split in SPLITS}


@functools.cache
def superclasses() -> dict[str, str]:
    """The superclass of each of the 100 classes."""
    lines = read_lines(SPLITS_FOLDER / "superclasses.txt")
    return {label: name for name, labels in (line.split(": ") for line in lines) for label in labels.split()}


def decode_tar(path: Path, size: int, remedy: str) -> Decoded:
    """Read the original archive, which holds pickles; ordered by class and file name.

    Args:
        path: The archive.
        size: Height and width of the result in pixels.
        remedy: What the user can do if the archive is damaged.

    Raises:
        UserError: The archive is damaged, or a pickle asks for more than plain values and arrays.
    """
    from PIL import Image

    with reading(path, remedy):
        with BoundedGzip(path) as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as tar:
            parts = {}
            for part in ("meta", "test", "train"):
                file = tar.extractfile(f"cifar-100-python/{part}")
                if file is None:
                    raise ValueError(f"cifar-100-python/{part} is not a file")
                parts[part] = unpickle(file.read(MAX_UNPACKED))
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


class PlainUnpickler(pickle._Unpickler):
    """Reads plain values and NumPy arrays, and takes no more memory than the file asks for by its length.

    It is Python's own in Python: that in C makes room for as many values as a few bytes ask for.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name in the file.

        Raises:
            pickle.UnpicklingError: Nothing does.
        """
        match module, name:
            case "numpy", "dtype":
                return np.dtype
            case "numpy", "ndarray":
                return None  # the first argument of the other one
            case "numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct":  # NumPy 1, 2
                return lambda kind, shape, dtype: np.empty(0)  # its shape and bytes come later
        raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}, which is refused")


def unpickle(content: bytes) -> Any:
    """Load a pickle of plain values and NumPy arrays. It cannot run anything else.

    Raises:
        pickle.UnpicklingError: It asks for anything else.
    """
    return PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
