"""Images that are in more than one split, pixel for pixel: what is tested was then seen in training."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from metalstm.data.base import ImagesByClass


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
