"""The cache of decoded images. An entry is an .npy file of all images and a .json file of their classes."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np

from metalstm.console import track
from metalstm.data.base import ImagesByClass, Stored, spans
from metalstm.data.places import cache_root
from metalstm.data.reading import reason
from metalstm.errors import UserError, is_full

# Raise it when the decoded pixels or the form of an entry change: all older entries are then ignored.
FORMAT = 2

# The class of every image, in order, and the images: uint8 (height, width, channels), None for one that is broken.
Decoded = tuple[Sequence[str], Iterable[np.ndarray | None]]


def cached(kind: str, content: object, shape: tuple[int, int, int], decode: Callable[[], Decoded]) -> Stored:
    """Decoded images from the cache. They are decoded now if the cache lacks them or its entry is damaged.

    Args:
        kind: What is decoded, for people who look into the cache.
        content: What identifies the source, for example a checksum; anything that JSON can write.
        shape: (height, width, channels) of an image.
        decode: Reads the source; called only if there is no entry.

    Raises:
        UserError: The cache cannot be written.
    """
    import PIL

    key = hashlib.sha256(json.dumps([FORMAT, PIL.__version__, content, shape]).encode()).hexdigest()[:20]
    entry = cache_root() / f"{kind}-{key}"
    stored = _read(entry)
    if stored is None:
        labels, images = decode()
        try:
            _write(entry, labels, images, shape)
        except OSError as error:
            need = f"{-(-len(labels) * int(np.prod(shape)) // 1_000_000)} MB"
            if is_full(error):
                raise UserError(
                    f"no space left in {entry.parent} for the decoded images, which need {need}: "
                    "free some, or set METALSTM_CACHE to another folder"
                ) from error
            raise UserError(
                f"cannot write the decoded images to {entry.parent} ({reason(error)}): "
                f"set METALSTM_CACHE to a folder with {need} of space"
            ) from error
        stored = _read(entry)
    if stored is None:
        raise UserError(
            f"the decoded images in {entry.parent} cannot be read back: set METALSTM_CACHE to another folder"
        )
    return stored


def _read(entry: Path) -> Stored | None:
    try:
        index = json.loads(entry.with_suffix(".json").read_text("utf-8"))
        names, counts, sums = zip(*index["classes"], strict=True) if index["classes"] else ((), (), ())
        # Mapping fails if the file is shorter than its header says.
        images = np.load(entry.with_suffix(".npy"), mmap_mode="r" if names else None).view(np.ndarray)
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != sum(counts):
            return None
        return Stored(
            ImagesByClass(images, names, spans(counts)), dict(zip(names, sums, strict=True)), (*index["broken"],)
        )
    except (OSError, EOFError, ValueError, TypeError, KeyError, SyntaxError, TokenError):  # the last of NumPy's header
        return None


def _write(
    entry: Path, labels: Sequence[str], images: Iterable[np.ndarray | None], shape: tuple[int, int, int]
) -> None:
    """Write an entry. It appears as a whole or not at all, even if several processes write it at the same time."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(entry.parent)
    sums = {label: hashlib.sha256() for label in labels}
    counts = dict.fromkeys(labels, 0)
    broken: list[int] = []
    with tempfile.TemporaryDirectory(prefix=".decoding-", dir=entry.parent) as scratch:
        # Written in sequence: on a full disk, a signal would end a process that writes to a memory map.
        with open(Path(scratch) / "images.npy", "wb") as file:
            _write_header(file, len(labels), shape)
            shown = track(images, f"decoding {entry.name.rpartition('-')[0]}", total=len(labels))
            for number, (label, image) in enumerate(zip(labels, shown, strict=True)):
                if image is None:
                    broken.append(number)
                    continue
                pixels = image.tobytes()
                file.write(pixels)
                sums[label].update(pixels)
                counts[label] += 1
            file.seek(0)
            _write_header(file, len(labels) - len(broken), shape)
            _sync(file)
        with open(Path(scratch) / "index.json", "wb") as file:
            classes = [[label, counts[label], sums[label].hexdigest()] for label in sums if counts[label]]
            file.write(json.dumps({"classes": classes, "broken": broken}).encode())
            _sync(file)
        # If another process was faster, its entry holds the same bytes and may be in use.
        if _read(entry) is None:
            os.replace(Path(scratch) / "images.npy", entry.with_suffix(".npy"))
            os.replace(Path(scratch) / "index.json", entry.with_suffix(".json"))


def _write_header(file: IO[bytes], n: int, shape: tuple[int, int, int]) -> None:
    """The header of an .npy file; NumPy pads it so that it is equally long for any `n`."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)})


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _remove_stale(directory: Path) -> None:
    """Remove what killed processes left behind: scratch folders that nothing was written to for a day."""
    for scratch in directory.glob(".decoding-*"):
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in (scratch, *scratch.iterdir()))
            if time.time() - newest > 24 * 3600:
                shutil.rmtree(scratch, ignore_errors=True)
