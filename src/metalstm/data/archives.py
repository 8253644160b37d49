"""Archives, which nobody vouches for: zip archives of images in class folders, and gzip files, within bounds."""

import gzip
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from metalstm.data.reading import reading
from metalstm.errors import UserError
from metalstm.images import Preprocessing, decoding

MAX_UNPACKED = 2**29  # bytes of an archive; the largest, that of CIFAR-100, has 186 million
MAX_MEMBER = 2**24  # bytes of an image in an archive


def decode_zip(
    path: Path, layout: str, preprocessing: Preprocessing, remedy: str
) -> tuple[list[str], Iterator[np.ndarray]]:
    """Read the PNG images of a zip archive, ordered by class and file name.

    Args:
        path: The archive.
        layout: Where the images are, for example "cifar100/<class>/*.png". Only its depth is checked: the first folder
            is left out, and the folders between it and the file are the class.
        preprocessing: Makes the pixels of an image.
        remedy: What the user can do if the archive is damaged.

    Raises:
        UserError: The archive is damaged or too large, or has no such images.
    """
    depth = layout.count("/") + 1
    with reading(path, remedy), zipfile.ZipFile(path) as archive:
        found = [(info.filename.split("/"), info) for info in archive.infolist() if info.filename.endswith(".png")]
    entries = sorted(
        ("/".join(parts[1:-1]), parts[-1], info.filename, info.file_size)
        for parts, info in found
        if len(parts) == depth and not parts[-1].startswith(".")
    )
    if not entries:
        raise UserError(f"{path} has no images {layout}: {remedy}")
    sizes = [size for *_, size in entries]  # zipfile reads no more than these
    if max(sizes) > MAX_MEMBER or sum(sizes) > MAX_UNPACKED:
        raise UserError(
            f"{path} unpacks to {sum(sizes):,} bytes, the largest image to {max(sizes):,}; at most {MAX_UNPACKED:,} "
            f"and {MAX_MEMBER:,} are read: {remedy}"
        )

    def images() -> Iterator[np.ndarray]:
        with reading(path, remedy), zipfile.ZipFile(path) as archive:
            for _, _, member, _ in entries:
                with decoding(io.BytesIO(archive.read(member)), name=f"{path}/{member}") as image:
                    pixels = preprocessing(image)
                yield pixels

    return [label for label, *_ in entries], images()


class BoundedGzip(gzip.GzipFile):
    """A gzip file that is read up to `MAX_UNPACKED` bytes. Beyond, it raises ValueError before anything is unpacked."""

    def read(self, size: int | None = -1) -> bytes:
        """As GzipFile, but never all that is left: `size` must be given."""
        self._check(self.tell() + (MAX_UNPACKED + 1 if size is None or size < 0 else size))
        return super().read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As GzipFile; only `offset` from the start is checked, as tarfile passes it."""
        if whence == os.SEEK_SET:
            self._check(offset)
        return super().seek(offset, whence)

    def _check(self, end: int) -> None:
        if end > MAX_UNPACKED:
            raise ValueError(f"it unpacks to more than {MAX_UNPACKED:,} bytes")
