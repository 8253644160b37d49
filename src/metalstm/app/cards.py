"""Images on their way between the browser and Python."""

import base64
import io
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from jaxtyping import UInt8
from msgspec import Meta
from PIL import Image

from metalstm import data
from metalstm.errors import UserError
from metalstm.images import decoding

# The example: characters of meta-test, from scripts that are not in Omniglot either.
CHARACTERS = ("Lao/U+0E81", "Lao/U+0EA1", "Lao/U+0EA7", "Old Italic/U+1030E", "Old Italic/U+10318")
N_SHOT = 3  # drawings of each to learn from; the next one is to be classified

Cards = list[dict[str, Any]]  # {"name": ..., "images": [{"url": ...} or {"url": ..., "path": ...}]}, as in app.js


class CardImage(msgspec.Struct, omit_defaults=True):
    """An image of a card as the browser sends it: a drawing in a data URL, or an uploaded file."""

    url: Annotated[str, Meta(max_length=2**20)]
    path: Annotated[str, Meta(max_length=2**12)] | None = None


class Card(msgspec.Struct):
    """A card as the browser sends it."""

    name: Annotated[str, Meta(max_length=255)]
    images: Annotated[list[CardImage], Meta(max_length=2000)]


def example_cards() -> tuple[Cards, Cards]:
    """Drawings of characters that no shipped meta-learner was trained on: cards to learn from, a card to classify."""
    meta_test = data.load("glyphs").splits["meta-test"]
    support, query = [], []
    for name in CHARACTERS:
        script, _, point = name.partition("/U+")
        start = meta_test.spans[meta_test.classes.index(name), 0]
        images = [{"url": data_url(255 - ink[..., 0])} for ink in meta_test.images[start : start + N_SHOT + 1]]
        letter = unicodedata.name(chr(int(point, 16))).split()[-1].lower()
        support.append({"name": f"{script} {letter}", "images": images[:-1]})
        query.append(images[-1])
    return support, [{"name": "", "images": query}]


def read(image: Mapping[str, str]) -> Image.Image | Path:
    """A drawing, or the path of an uploaded file.

    Raises:
        UserError: The drawing is not an image, or the path is outside the folder of uploads.
    """
    if "path" not in image:
        try:
            with decoding(io.BytesIO(base64.b64decode(image["url"].partition(",")[2]))) as drawing:
                return drawing.convert("L")
        except Exception as error:  # Pillow raises nearly anything on broken files
            raise UserError("This drawing cannot be read.") from error
    try:
        path = Path(image["path"]).resolve()
    except (OSError, ValueError) as error:  # too long, or with a byte 0
        raise UserError("This file was not uploaded.") from error
    if not path.is_relative_to(Path(os.environ["GRADIO_TEMP_DIR"]).resolve()):
        raise UserError("This file was not uploaded.")
    return path


def data_url(pixels: UInt8[np.ndarray, "height width"]) -> str:
    """A picture as a PNG in a data URL."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
