"""Image files: broken, huge, animated, turned, of any format and mode, and what only looks like one."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from hostile.mutations import Random, mutated_bytes
from metalstm.geometry import FRAMINGS, Cropped
from metalstm.images import FORMATS, Preprocessing, find, show_drawings

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16", "PA")
OTHERS = ("ICO", "TGA", "PCX", "SGI", "DDS", "ICNS", "IM", "MSP", "XBM", "EPS", "PDF", "JPEG2000", "MPO", "SPIDER")
SUFFIXES = (".png", ".jpg", ".gif", ".tif", ".bmp", ".webp", ".ppm", ".avif", ".eps", ".txt", "", ".PNG", ".exe")
SIDES = [0, 1, 2, 255, 4096, 7071, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**32 - 1]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(canary) (w) file closefile showpage\n"
XMP = b"<x:xmpmeta><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>&b;</x:xmpmeta>"


class Cases:
    """Files that are read as an image.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, random: Random, number: int) -> None:
        path = self.folder / f"image{SUFFIXES[random.randint(len(SUFFIXES))]}"
        remove(path)
        place(path, random)
        size, channels, framing = int(random.choice([16, 28, 84])), int(random.choice([1, 3])), FRAMINGS[number % 3]
        read = Preprocessing(size, channels, *(random.rand(2) < 0.5), framing=framing)
        if number % 10 == 0:
            show_drawings([*find([str(self.folder)], []), path])
        box = tuple(random.randint(-1, 40, 4).tolist())
        pixels = read(Cropped(path, box) if random.rand() < 0.3 else path)
        channels = 1 if read.drawing else read.channels
        assert (pixels.dtype, pixels.shape) == (np.uint8, (read.image_size, read.image_size, channels))


def remove(path: Path) -> None:
    """Remove what an earlier case has left."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)


def place(path: Path, random: Random) -> None:
    """Put something under a path that may be taken for an image."""
    match random.randint(24):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to([path.name, "/dev/zero", "/dev/null", "/dev/tty", "missing", "/etc/passwd", "."][
                random.randint(7)
            ])  # fmt: skip
        case 2:
            path.mkdir()
        case 3:
            path.write_bytes([b"", b"\0", b"\xff" * 1000, EPS, b"%PDF-1.4\n", b"#!/bin/sh\ntouch canary\n", b"MZ", XMP][
                random.randint(8)
            ])  # fmt: skip
        case 4:
            path.write_bytes(b"")
            path.chmod(0)
        case 5 | 6 | 7:
            path.write_bytes(huge(random))
        case 8 | 9 | 10 | 11:
            path.write_bytes(image(random))
        case _:
            path.write_bytes(mutated_bytes(image(random), random))


def image(random: Random) -> bytes:
    """A file of a format and a mode, with one of the things that formats can do."""
    mode, wanted = MODES[random.randint(len(MODES))], random.rand() < 0.85
    names = FORMATS if wanted else OTHERS
    size = [(1, 1), (1, 300), (300, 1), (33, 21), (120, 90)][random.randint(5)]
    pixels = Image.fromarray(random.randint(0, 256, (size[1], size[0], 3), np.uint8))
    picture = Image.new(mode, size) if mode in ("PA", "HSV", "LAB", "I;16") else pixels.convert(mode)
    compressions = ["tiff_lzw", "tiff_deflate", "packbits"]
    if mode not in ("I", "F", "I;16"):  # writing these as JPEG corrupts the memory of Pillow 12
        compressions.insert(1, "jpeg")
    options: dict = [
        {}, {}, {"exif": exif(random)}, {"transparency": int(random.randint(256))}, {"icc_profile": random.bytes(200)},
        {"progressive": True}, {"compression": compressions[random.randint(len(compressions))]},
        {"save_all": True, "append_images": [pixels] * 30}, {"xmp": XMP}, {"dpi": (1e9, 0)}, {"lossless": True},
    ][random.randint(11)]  # fmt: skip
    for each in (options, {}):
        for kind in (names[random.randint(len(names))], "PNG"):
            file = io.BytesIO()
            try:
                picture.save(file, kind, **each)
                return file.getvalue()
            except Exception:  # this format has no such mode or option
                continue
    return EPS


def exif(random: Random) -> bytes:
    """An orientation, also one that there is not, among damaged tags."""
    values = Image.Exif()
    values[274] = int(random.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65535]))
    content = values.tobytes()
    return mutated_bytes(content, random) if random.rand() < 0.3 else content


def huge(random: Random) -> bytes:
    """A file that claims, or has, many pixels."""
    width, height = (int(random.choice(SIDES)) for _ in range(2))
    match random.randint(6):
        case 0:
            bits, kind = int(random.choice([1, 8, 16])), int(random.choice([0, 2, 3, 4, 6]))
            return png(width, height, bits, kind, zlib.compress(bytes(1000)))
        case 1:
            return png(
                side := int(random.choice([300, 900, 3000, 7000])),
                side,
                8,
                0,
                zlib.compress(bytes(side * (side + 1)), 1),
            )
        case 2:
            return b"GIF89a" + struct.pack("<HH", width % 2**16, height % 2**16) + b"\xf7\0\0" + random.bytes(900)
        case 3:
            head = struct.pack("<IiiHHIIiiII", 40, width % 2**31, -(height % 2**31), 1, 24, 0, 0, 0, 0, 0, 0)
            return b"BM" + struct.pack("<IHHI", 10**6, 0, 0, 54) + head + bytes(100)
        case 4:
            return f"P6 {width} {height} {random.choice([1, 255, 65535])}\n".encode() + bytes(100)
    file = io.BytesIO()
    Image.new("L", (60, 60)).save(file, "TIFF")
    content = bytearray(file.getvalue())
    start = struct.unpack("<I", content[4:8])[0] + 2
    struct.pack_into("<I", content, start + 8, width)
    struct.pack_into("<I", content, start + 20, height)
    return bytes(content)


def png(width: int, height: int, bits: int, kind: int, data: bytes) -> bytes:
    """A PNG with right checksums."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    chunks = chunk(b"IHDR", head), chunk(b"PLTE", bytes(768)), chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks[: 1 if kind != 3 else 2] + chunks[2:])
