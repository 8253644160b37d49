"""From what a user passes, images of any kind and labels, to pixels and a support set."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped

from metalstm.backbones.cache import BATCH as EMBEDDED
from metalstm.classifier.network import BATCH, to_x
from metalstm.console import progress
from metalstm.episodes import Support
from metalstm.errors import UserError, shown
from metalstm.geometry import Cropped
from metalstm.images import Preprocessing

MAX_WAY = 200  # classes
MAX_SUPPORT = 2000  # images that are learned from, of all classes together: adapting takes time and memory for each

Pixels = Shaped[np.ndarray, "n height width channels"]  # bytes; floats are features, (n, 1, n_features, 1)
Embed = Callable[[Pixels], Pixels]  # from pixels to features


class Task(NamedTuple):
    """What a meta-learner adapts to."""

    support: Support
    classes: np.ndarray  # the labels, sorted
    counts: list[int]  # images of each class
    rows: np.ndarray  # which image each of the support set is; some may stand there more than once


class Examples(NamedTuple):
    """Images to learn from."""

    pixels: Pixels
    labels: np.ndarray  # one for each image
    names: list[str]  # what messages call the images: the paths of files


class Read(NamedTuple):
    """What came of reading some images."""

    good: list[int]  # numbers of those that could be read, from 0
    pixels: Pixels  # of these
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


def names(images: Sequence[Any]) -> list[str]:
    """What messages call some images."""
    wholes = [image.image if isinstance(image, Cropped) else image for image in images]
    return [
        str(image) if isinstance(image, str | Path) else f"image {number}" for number, image in enumerate(wholes, 1)
    ]


def as_labels(labels: Any, n_images: int) -> np.ndarray:
    """Labels as an array.

    Args:
        labels: As the user passed them.
        n_images: How many there must be.

    Raises:
        UserError: There is not one label for each image, or the number of classes is wrong.
    """
    labels = one_for_each(labels, n_images)
    classes = np.unique(labels)
    if not 2 <= len(classes) <= MAX_WAY:
        raise UserError(f"{len(classes)} {'class' if len(classes) == 1 else 'classes'}: give 2 to {MAX_WAY}")
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


def read_images(
    images: Sequence[Any], preprocessing: Preprocessing, crops: int = 1, embed: Embed | None = None
) -> Read:
    """The pixels of all images that can be read; arguments as for `read_batches`."""
    parts = list(read_batches(images, preprocessing, "reading", crops, embed))
    return Read(
        [number for part in parts for number in part.good],
        np.concatenate([_stack([], preprocessing, embed), *(part.pixels for part in parts)]),
        [fault for part in parts for fault in part.faults],
    )


def read_batches(
    images: Sequence[Any],
    preprocessing: Preprocessing,
    description: str,
    crops: int = 1,
    embed: Embed | None = None,
) -> Iterator[Read]:
    """The pixels of many images, a batch at a time, with a progress bar. Some may be broken.

    Args:
        images: Of any kind.
        preprocessing: Makes the pixels.
        description: What the progress bar says.
        crops: Of each image; their pixels follow one another.
        embed: Makes features of the pixels, which are then taken for these.
    """
    size = BATCH if embed is None else EMBEDDED  # a backbone is slow, and progress is to be seen

    def read(number: int) -> np.ndarray | UserError:
        try:
            return preprocessing.views(images[number], crops, f"image {number + 1}")
        except UserError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool, progress() as bar:
        task = bar.add_task(description, total=len(images), visible=len(images) > size)
        for start in range(0, len(images), size):
            batch = range(start, min(start + size, len(images)))
            results = list(zip(batch, pool.map(read, batch), strict=True))
            good = [(number, result) for number, result in results if not isinstance(result, UserError)]
            faults = [str(result) for _, result in results if isinstance(result, UserError)]
            pixels = _stack([pixels for _, pixels in good], preprocessing, embed)
            yield Read([number for number, _ in good], pixels, faults)
            bar.advance(task, len(batch))


def make_task(pixels: Pixels, labels: np.ndarray, drawing: bool, seed: int, device: torch.device | str = "cpu") -> Task:
    """The support set of some images, in random order; images of smaller classes are repeated.

    It has at most `MAX_SUPPORT` images, and as many of each class. Of larger classes they are drawn at random.

    Args:
        pixels: Of the images.
        labels: One for each image.
        drawing: Whether they are drawings.
        seed: Of the order, and of what is drawn.
        device: Where to put the support set.
    """
    classes, y = np.unique(labels, return_inverse=True)
    n_way, counts = len(classes), np.bincount(y)
    n_shot = min(int(counts.max()), max(1, MAX_SUPPORT // n_way))
    rng = np.random.RandomState(seed)
    own = [np.flatnonzero(y == k) for k in range(n_way)]
    rows = np.concatenate([np.resize(rng.permutation(each) if len(each) > n_shot else each, n_shot) for each in own])
    rows = rows[rng.permutation(len(rows))]
    x = to_x(torch.from_numpy(pixels[rows]).to(device), drawing)
    support = Support(x, torch.from_numpy(y[rows]).to(device), n_way)
    return Task(support, classes, counts.tolist(), rows)


def _stack(pixels: list[np.ndarray], preprocessing: Preprocessing, embed: Embed | None = None) -> Pixels:
    size = preprocessing.image_size
    stacked = np.concatenate(pixels) if pixels else np.empty((0, size, size, preprocessing.channels), np.uint8)
    return stacked if embed is None else embed(stacked)
