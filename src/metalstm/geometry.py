"""Which part of an image a network sees: how a whole image becomes a square, and boxes that users cut images with."""

import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from metalstm.errors import UserError, shown

if TYPE_CHECKING:
    from PIL import Image

Framing = Literal["crop", "letterbox", "squeeze"]
FRAMINGS: tuple[Framing, ...] = get_args(Framing)
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are the first ones outside

MAX_CROPS = 25  # of an image
MAX_BYTES = 50_000_000  # of a file of boxes
FORM = '{"cat/1.jpg": [left, top, right, bottom]}'


def framed(image: "Image.Image", size: int, framing: Framing, at: float = 0.5) -> "Image.Image":
    """A square image of `size` x `size` pixels. The filter is Lanczos.

    Args:
        image: Gray (L) or RGB.
        size: Height and width in pixels.
        framing: `crop` takes the largest square; `letterbox` the whole image, between bars of the median color of its
            border; `squeeze` the whole image, distorted.
        at: Where the square of `crop` lies along the longer side: from 0, at its left or top end, to 1.

    Raises:
        ValueError: For `letterbox`, the image is so narrow that nothing is left of it.
    """
    from PIL import Image, ImageOps

    lanczos = Image.Resampling.LANCZOS
    if framing == "squeeze":
        return image.resize((size, size), lanczos)
    if framing == "letterbox":
        color: list[int] = border_color(image).astype(int).tolist()
        return ImageOps.pad(image, (size, size), lanczos, color=tuple(color) if len(color) > 1 else color[0])
    return ImageOps.fit(image, (size, size), lanczos, centering=(at, at))


def border_color(image: "Image.Image") -> np.ndarray:
    """The median of the border, for each channel; of a drawing, its paper."""
    pixels = np.asarray(image)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return np.median(border, axis=0)


@dataclass(frozen=True)
class Cropped:
    """A part of an image. It is read as if it were a file of its own, saved without loss.

    Attributes:
        image: A path or another image that `metalstm.images.open_image` takes.
        box: Left, top, right and bottom in pixels of the upright image (after EXIF). Right and bottom are the first
            ones outside.
    """

    image: Any
    box: Sequence[int]

    def cut(self, image: "Image.Image", name: str) -> "Image.Image":
        """The part of the upright image.

        Raises:
            UserError: The box is empty, or reaches beyond the image.
        """
        left, top, right, bottom = check_box(self.box, name)
        if right > image.width or bottom > image.height:
            raise UserError(
                f"the box of {name} is {list(self.box)}, but the upright image has {image.width} x {image.height} "
                "pixels: give a box within them"
            )
        return image.crop((left, top, right, bottom))

    def __str__(self) -> str:
        """The path."""
        return str(self.image)


def is_whole(number: Any) -> bool:
    """Whether something is a whole number, of Python or NumPy."""
    return isinstance(number, Integral) and not isinstance(number, bool)


def check_box(box: Any, name: str) -> Box:
    """A box that is not empty.

    Args:
        box: What should be one.
        name: Of the image, for messages.

    Raises:
        UserError: It is none.
    """
    if not (isinstance(box, list | tuple) and len(box) == 4 and all(map(is_whole, box))):
        raise UserError(f"the box of {name} is {shown(box)}: give four whole numbers, [left, top, right, bottom]")
    left, top, right, bottom = map(int, box)
    if not (0 <= left < right and 0 <= top < bottom):
        raise UserError(
            f"the box of {name} is {shown(list(box))}: left must be at least 0 and below right, top at least 0 and "
            "below bottom"
        )
    return left, top, right, bottom


def cropped(images: Sequence[Path], boxes: Path) -> list[Path | Cropped]:
    """Images, cropped to the boxes that a file has for them.

    Args:
        images: Paths. Those without a box stay whole.
        boxes: As `read_boxes` takes it.

    Raises:
        UserError: As `read_boxes`.
    """
    found = read_boxes(boxes)
    keys = [os.path.realpath(path) for path in images]
    return [Cropped(path, found[key]) if key in found else path for path, key in zip(images, keys, strict=True)]


def read_boxes(file: Path) -> dict[str, Box]:
    """The boxes in a JSON file, {"cat/1.jpg": [left, top, right, bottom]}.

    Args:
        file: Its paths start at the folder that it lies in.

    Returns:
        For each real path, a box in pixels of the upright image.

    Raises:
        UserError: It cannot be read, is too large or no JSON of this form, names a file that does not exist or one file
            twice, or a box is empty. Whether boxes lie within the images is not known before these are read.
    """
    boxes: dict[str, Box] = {}
    for name, value in _read_pairs(file):
        path = os.path.join(file.parent, name)
        if not os.path.isfile(path):  # False for names that no file can have, too
            raise UserError(
                f"{file} has a box for {shown(name)}, but there is no such file: correct the path, which starts at "
                f"the folder of {file.name}"
            )
        box, key = check_box(value, f"{shown(name)} in {file}"), os.path.realpath(path)
        if key in boxes:
            raise UserError(f"{file} has two boxes for {shown(name)}: leave one")
        boxes[key] = box
    return boxes


def _read_pairs(file: Path) -> list[tuple[str, Any]]:
    """The names and values of the object in a JSON file; a name may stand there twice.

    Raises:
        UserError: There is no object, or it cannot be read.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # reading a pipe may wait forever
            raise UserError(f"cannot read {file} (it is no file): name a file of boxes, {FORM}")
        with open(file, "rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot read {file} ({reason}): check its name and permissions") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{file} has more than {MAX_BYTES:,} bytes: leave boxes out, or their digits and spaces")
    try:
        pairs = json.loads(content, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:  # bytes that are no text, numbers of thousands of digits
        raise UserError(f"{file} is no JSON ({shown(str(error))[1:-1]}): write {FORM}") from error
    if not isinstance(pairs, _Pairs):
        raise UserError(f"{file} holds {shown(pairs)}: write {FORM}")
    return list(pairs)


class _Pairs(list[tuple[str, Any]]):
    """The names and values of a JSON object."""
