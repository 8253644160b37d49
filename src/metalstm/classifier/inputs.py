"""From what a user passes, images of any kind and labels, to pixels and a support set."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8

from metalstm.classifier.network import BATCH, to_x
from metalstm.console import printable, progress
from metalstm.episodes import Support
from metalstm.errors import UserError, shown
from metalstm.images import Preprocessing

MAX_WAY = 20  # classes that meta-learners have been measured with
SHOWN = 3  # unreadable images that a message names

Pixels = UInt8[np.ndarray, "n height width channels"]


class Task(NamedTuple):
    """What a meta-learner adapts to."""

    support: Support
    classes: np.ndarray  # the labels, sorted
    counts: list[int]  # images of each class


class FilesRead(NamedTuple):
    """What came of reading some files."""

    paths: list[Path]  # those that could be read
    pixels: Pixels
    faults: list[str]  # what is wrong with each of the others


def as_list(images: Any) -> list[Any]:
    """Images as a list.

    Raises:
        UserError: It is one image, not several.
    """
    is_one = isinstance(images, str) or not hasattr(images, "__iter__") or getattr(images, "ndim", 1) == 0
    if is_one or (isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[-1] in (1, 3, 4)):
        raise UserError("one image where several are expected: give a list, [image]")
    return list(images)


def as_labels(labels: Any, n_images: int, least: int = 1) -> np.ndarray:
    """Labels as an array.

    Args:
        labels: As the user passed them.
        n_images: How many there must be.
        least: Images that each class must have.

    Raises:
        UserError: There is not one label for each image, or the number of classes or of their images is wrong.
    """
    labels = one_for_each(labels, n_images)
    classes, counts = np.unique(labels, return_counts=True)
    if not 2 <= len(classes) <= MAX_WAY:
        raise UserError(f"{len(classes)} {'class' if len(classes) == 1 else 'classes'}: give 2 to {MAX_WAY}")
    if counts.min() < least:
        smallest = classes[counts.argmin()]
        raise UserError(
            f"an estimate of the accuracy needs {least} images per class, but {printable(str(smallest))} has 1"
        )
    return labels


def one_for_each(labels: Any, n_images: int) -> np.ndarray:
    """As `as_classes`.

    Raises:
        UserError: There is not one label for each image; or as `as_classes`.
    """
    try:
        labels = labels.tolist() if hasattr(labels, "detach") else labels
        shape = np.shape(np.asarray(labels, object))
    except (TypeError, ValueError, RuntimeError) as error:  # arrays of different shapes, tensors without numbers
        raise UserError(f"labels are {shown(labels)}: give one label for each image") from error
    if shape != (n_images,):
        raise UserError(f"{n_images} images, but labels of shape {shape}: give one label for each image")
    return as_classes(labels)


def as_classes(labels: Any) -> np.ndarray:
    """Labels as an array in which each stays what it is.

    Raises:
        UserError: They are not all texts, all whole numbers, all numbers, or all True and False; a number is not finite
            or too large; or a text has a character 0, at which NumPy cuts texts.
    """
    dtype = getattr(labels, "dtype", None)
    values = np.asarray(labels, object).tolist()
    for number, label in enumerate(values, 1):
        is_number = isinstance(label, (bool, int, float, np.bool_, np.integer, np.floating))
        if getattr(dtype, "kind", "O") in "mMSV" or not (is_number or isinstance(label, str)):
            raise UserError(f"label {number} is {shown(label)}, of type {type(label).__name__}: give text or numbers")
        if isinstance(label, str) and "\0" in label:
            raise UserError(f"label {number} is {shown(label)}, with a character 0: remove that")
        if isinstance(label, (float, np.floating)) and not isfinite(label):
            raise UserError(f"label {number} is {shown(label)}: give finite numbers")
        if isinstance(label, int) and not -(2**63) <= label < 2**63:
            raise UserError(f"label {number} is {shown(label)}: give numbers of at most 64 bits")
    kinds = {_kind(label) for label in values}
    if len(kinds) > 1:
        raise UserError(f"labels of different types, {' and '.join(sorted(kinds))}: give labels of one")
    return np.array(values)


def _kind(label: Any) -> str:
    """What a label is."""
    if isinstance(label, str):
        return "text"
    return "True or False" if isinstance(label, (bool, np.bool_)) else "numbers"


def read_images(images: Sequence[Any], preprocessing: Preprocessing) -> Pixels:
    """The pixels of all images.

    Raises:
        UserError: Names the first images that cannot be read.
    """
    pixels, faults = [], []
    for number, image in enumerate(images, 1):
        try:
            pixels.append(preprocessing(image, f"image {number}"))
        except UserError as error:
            faults.append(str(error))
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError("; ".join(faults[:SHOWN]) + more)
    return _stack(pixels, preprocessing)


def read_files(paths: Sequence[Path], preprocessing: Preprocessing) -> Iterator[FilesRead]:
    """The pixels of many files, a batch at a time, with a progress bar. Some files may be broken."""

    def read(path: Path) -> np.ndarray | UserError:
        try:
            return preprocessing(path)
        except UserError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool, progress() as bar:
        task = bar.add_task("predicting", total=len(paths))
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            results = list(zip(batch, pool.map(read, batch), strict=True))
            good = [(path, result) for path, result in results if not isinstance(result, UserError)]
            faults = [str(result) for _, result in results if isinstance(result, UserError)]
            yield FilesRead([path for path, _ in good], _stack([pixels for _, pixels in good], preprocessing), faults)
            bar.advance(task, len(batch))


def make_task(pixels: Pixels, labels: np.ndarray, drawing: bool, seed: int, device: torch.device | str = "cpu") -> Task:
    """The support set of some images, in random order; images of smaller classes are repeated.

    Args:
        pixels: Of the images.
        labels: One for each image.
        drawing: Whether they are drawings.
        seed: Of the order.
        device: Where to put the support set.
    """
    classes, y = np.unique(labels, return_inverse=True)
    n_way, counts = len(classes), np.bincount(y)
    rows = np.concatenate([np.resize(np.flatnonzero(y == k), counts.max()) for k in range(n_way)])
    rows = rows[np.random.RandomState(seed).permutation(len(rows))]
    x = to_x(torch.from_numpy(pixels[rows]).to(device), drawing)
    support = Support(x, torch.from_numpy(y[rows]).to(device), n_way)
    return Task(support, classes, counts.tolist())


def _stack(pixels: list[np.ndarray], preprocessing: Preprocessing) -> Pixels:
    size = preprocessing.image_size
    return np.stack(pixels) if pixels else np.empty((0, size, size, preprocessing.channels), np.uint8)
