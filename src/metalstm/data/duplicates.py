"""Images that show the same: if they are in two splits, what is tested was seen in training."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from metalstm.data.base import ImagesByClass

SIDE = 8  # pixels of the thumbnails that are compared
ALIKE = 0.99  # correlation of two thumbnails from which the images are nearly the same
BLOCK = 1000  # images that are compared with all others at a time

Pixels = UInt8[np.ndarray, "n height width channels"]


class Place(NamedTuple):
    """Where an image is."""

    split: str  # its name
    label: str  # of the class
    number: int  # within the class, from 0, in the order of file names
    row: int  # in `ImagesByClass.images`


def across_splits(splits: Mapping[str, ImagesByClass]) -> list[list[Place]]:
    """The places of each picture that is in more than one split, as decoded for training.

    Args:
        splits: `MetaSets.splits`.
    """
    places: dict[bytes, list[Place]] = {}
    for split, images in splits.items():
        for label, (start, stop) in zip(images.classes, images.spans.tolist(), strict=True):
            for row in range(start, stop):
                key = hashlib.sha256(images.images[row].tobytes()).digest()
                places.setdefault(key, []).append(Place(split, label, row - start, row))
    return [group for group in places.values() if len({place.split for place in group}) > 1]


def identical(pixels: Pixels) -> list[list[int]]:
    """The numbers of images that are the same pixel for pixel, in groups."""
    groups: dict[bytes, list[int]] = {}
    for number, image in enumerate(pixels):
        groups.setdefault(hashlib.sha256(image.tobytes()).digest(), []).append(number)
    return [group for group in groups.values() if len(group) > 1]


def near(pixels: Pixels) -> list[tuple[int, int]]:
    """Pairs of images that are nearly but not quite the same: their gray 8x8 thumbnails correlate by 0.99 or more.

    This finds copies in another quality, size or brightness, and few that are cropped or mirrored.
    """
    from PIL import Image

    resized = [Image.fromarray(_gray(image)).resize((SIDE, SIDE), Image.Resampling.BOX) for image in pixels]
    thumbnails = np.stack([np.asarray(image, np.float32).ravel() for image in resized])
    thumbnails -= thumbnails.mean(1, keepdims=True)
    thumbnails /= np.maximum(np.linalg.norm(thumbnails, axis=1, keepdims=True), 1e-3)  # an even image is like no other
    pairs = []
    for start in range(0, len(thumbnails), BLOCK):
        alike = thumbnails[start : start + BLOCK] @ thumbnails[start:].T >= ALIKE
        pairs += [(start + one, start + other) for one, other in np.argwhere(np.triu(alike, 1)).tolist()]
    return [(one, other) for one, other in pairs if not np.array_equal(pixels[one], pixels[other])]


def _gray(image: UInt8[np.ndarray, "height width channels"]) -> UInt8[np.ndarray, "height width"]:
    return image.mean(-1).astype(np.uint8)


def replaced(images: ImagesByClass, rows: Iterable[int]) -> ImagesByClass:
    """A copy with each of these rows overwritten by the next image of its class that is not one of them.

    So the same episodes can be drawn without these images.

    Args:
        images: A split.
        rows: Rows of `images.images`. Each class has other images too.
    """
    unwanted = set(rows)
    pixels = np.array(images.images)
    for start, stop in images.spans.tolist():
        for row in unwanted.intersection(range(start, stop)):
            others = (*range(row + 1, stop), *range(start, row))
            pixels[row] = images.images[next(other for other in others if other not in unwanted)]
    pixels.flags.writeable = False
    return replace(images, images=pixels)
