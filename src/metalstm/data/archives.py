"""Zip archives of images in class folders."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from metalstm.data.cache import Decoded
from metalstm.data.reading import reading
from metalstm.errors import UserError
from metalstm.images import Preprocessing, decoding


def decode_zip(path: Path, layout: str, preprocessing: Preprocessing, remedy: str) -> Decoded:
    """Read the PNG images of a zip archive, ordered by class and file name.

    Args:
        path: The archive.
        layout: Where the images are, for example "cifar100/<class>/*.png". Only its depth is checked: the first folder
            is left out, and the folders between it and the file are the class.
        preprocessing: Makes the pixels of an image.
        remedy: What the user can do if the archive is damaged.

    Raises:
        UserError: The archive is damaged, or has no such images.
    """
    depth = layout.count("/") + 1
    with reading(path, remedy), zipfile.ZipFile(path) as archive:
        found = [(member.split("/"), member) for member in archive.namelist() if member.endswith(".png")]
    entries = sorted(
        ("/".join(parts[1:-1]), parts[-1], member)
        for parts, member in found
        if len(parts) == depth and not parts[-1].startswith(".")
    )
    if not entries:
        raise UserError(f"{path} has no images {layout}: {remedy}")

    def images() -> Iterator[np.ndarray]:
        with reading(path, remedy), zipfile.ZipFile(path) as archive:
            for _, _, member in entries:
                with decoding(io.BytesIO(archive.read(member)), name=f"{path}/{member}") as image:
                    pixels = preprocessing(image)
                yield pixels

    return [label for label, _, _ in entries], images()
