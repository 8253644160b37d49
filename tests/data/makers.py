"""Small data sets in the forms of the real ones."""

import functools
import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from metalstm.data import MetaSets
from metalstm.data.cifar import class_lists

CIFAR_CLASSES = sorted(name for names in class_lists("cifar-fs").values() for name in names)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def images_of(sets: MetaSets, split: str) -> dict[str, np.ndarray]:
    part = sets.splits[split]
    return {name: part.images[start:stop] for name, (start, stop) in zip(part.classes, part.spans, strict=True)}


# Omniglot


def drawing(seed: int) -> Image.Image:
    """White paper with a black square somewhere, 1 bit, as in Omniglot."""
    pixels = np.full((105, 105), True)
    row, column = np.random.RandomState(seed).randint(0, 60, 2)
    pixels[row : row + 40, column : column + 40] = False
    return Image.fromarray(pixels)


def make_omniglot(root: Path, n_background: int = 12, n_evaluation: int = 3, n_images: int = 2) -> Path:
    """Alphabets of three characters."""
    (root / "omniglot").mkdir(parents=True)
    seed = 0
    for archive, script, n in (("background", "Abc", n_background), ("evaluation", "Xyz", n_evaluation)):
        with zipfile.ZipFile(root / "omniglot" / f"images_{archive}.zip", "w") as file:
            # Written in reverse order, because the order must not matter.
            for k in reversed(range(n)):
                alphabet = f"{script}{k // 3}"
                for image in reversed(range(n_images)):
                    buffer = io.BytesIO()
                    drawing(seed).save(buffer, "png")
                    seed += 1
                    name = f"images_{archive}/{alphabet}/character{k + 1:02}/{k + 1:04}_{image + 1:02}.png"
                    file.writestr(zipfile.ZipInfo(name), buffer.getvalue())  # the same bytes at any time
            file.writestr(zipfile.ZipInfo(f"__MACOSX/images_{archive}/{script}0/._character01.png"), b"no image")
    return root


# CIFAR-100


class Python2Pickler(pickle._Pickler):
    """Writes bytes and NumPy's names as Python 2 did, which pickled the real CIFAR-100."""

    dispatch: Any = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_bytes(self: Any, obj: bytes):
        self.write(pickle.BINSTRING + len(obj).to_bytes(4, "little") + obj)
        self.memoize(obj)

    dispatch[bytes] = save_bytes


def python2_pickle(value: object) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def write_tar(root: Path, parts: dict[str, bytes]) -> Path:
    path = root / "cifar100" / "cifar-100-python.tar.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for part, content in parts.items():
            info = tarfile.TarInfo(f"cifar-100-python/{part}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@functools.cache
def cifar_images() -> list[tuple[str, str, np.ndarray]]:
    """(class, file, pixels) of three images per class, in no order."""
    random = np.random.RandomState(0)
    names = [(label, f"{label}_s_{k}.png") for label in CIFAR_CLASSES for k in range(3)]
    return [(*names[k], random.randint(0, 256, (32, 32, 3), dtype=np.uint8)) for k in random.permutation(len(names))]


def make_cifar_tar(root: Path, write=python2_pickle) -> Path:
    meta = {b"fine_label_names": [label.encode() for label in CIFAR_CLASSES]}
    parts = {"meta": write(meta)}
    for part, images in (("train", cifar_images()[:200]), ("test", cifar_images()[200:])):
        rows = np.stack([pixels.transpose(2, 0, 1).reshape(-1) for _, _, pixels in images])
        labels = [CIFAR_CLASSES.index(label) for label, _, _ in images]
        files = [file.encode() for _, file, _ in images]
        parts[part] = write({b"data": rows, b"fine_labels": labels, b"filenames": files})
    return write_tar(root, parts)


def make_cifar_zip(root: Path) -> Path:
    path = root / "cifar100" / "cifar100.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for label, name, pixels in cifar_images():
            file.writestr(f"cifar100/{label}/{name}", png(pixels))
    return path


# Folders


def make_folder(path: Path, n_classes: int = 5, n_images: int = 3, size: tuple[int, int] = (40, 50)) -> Path:
    """Noise, which nobody takes for drawings."""
    random = np.random.RandomState(1)
    for k in range(n_classes):
        (path / f"class{k}").mkdir(parents=True)
        for image in range(n_images):
            pixels = random.randint(0, 256, (*size, 3), dtype=np.uint8)
            (path / f"class{k}" / f"{image}.png").write_bytes(png(pixels))
    return path


def letter(seed: int, ink: str = "black", paper: str = "white") -> Image.Image:
    """A zigzag of ink on paper, wider than high."""
    image = Image.new("RGB", (60, 50), paper)
    points = np.random.RandomState(seed).randint(5, 45, (4, 2)).tolist()
    ImageDraw.Draw(image).line([tuple(point) for point in points], fill=ink, width=4)
    return image


def make_letters(path: Path, n_classes: int = 5, n_images: int = 3, ink: str = "black", paper: str = "white") -> Path:
    for k in range(n_classes):
        (path / f"letter{k}").mkdir(parents=True)
        for image in range(n_images):
            letter(100 * k + image, ink, paper).save(path / f"letter{k}" / f"{image}.png")
    return path


# Processes


def start(code: str, *arguments: object, cache: Path) -> subprocess.Popen[str]:
    """A Python process that starts when a line comes on its stdin."""
    code = "import sys; from pathlib import Path; from metalstm import data; sys.stdin.readline();" + code
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "METALSTM_CACHE": str(cache)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
