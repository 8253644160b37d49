"""From the images that people have, files of any kind or arrays, to the pixels that a learner takes."""

import contextlib
import io
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metalstm.errors import UserError, shown
from metalstm.geometry import MAX_CROPS, Cropped, Framing, border_color, framed, is_whole

if TYPE_CHECKING:
    from PIL import Image

JUDGED = 64  # height and width in pixels of the copy that decides whether an image is a drawing
LOOK_AT = 20  # images that decide whether many images are drawings
INK = 64  # gray levels between paper and ink; paper is never quite even
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # of files; no format that runs programs
MAX_PIXELS = 50_000_000  # decoded at the same time, by all threads together; one takes up to 16 bytes
MAX_SIDE = 2**16 - 1  # pixels; the filter of the resizing needs memory for each pixel of a side
ROWS = 256  # of an image that are put on white paper at a time
FAR = 3.4e38  # what stands for an infinite number, about the largest in 32 bits
JPEG_SHARE = 3  # a JPEG is decoded at a fraction of its size, but may be in memory whole: 6 bytes for each pixel


class Budget:
    """A number of things that all threads together may have at the same time.

    Args:
        total: The number.
    """

    def __init__(self, total: int):
        self._free, self._changed = total, threading.Condition()

    @contextlib.contextmanager
    def take(self, n: int) -> Iterator[None]:
        """Have `n` of them, at most the total; waits until so many are free."""
        with self._changed:
            self._changed.wait_for(lambda: self._free >= n)
            self._free -= n
        try:
            yield
        finally:
            with self._changed:
                self._free += n
                self._changed.notify_all()


DECODED = Budget(MAX_PIXELS)


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before a learner sees it.

    Attributes:
        image_size: Height and width in pixels of the result. The filter is Lanczos.
        channels: 3 for RGB, 1 for gray; drawings are always gray.
        drawing: The image is ink on paper. Contrast is stretched.
        centered: The ink of a drawing is moved to the middle before the image is resized.
        framing: How an image that is not square becomes one, as `metalstm.geometry.framed` says. None is `crop` for
            photos and `letterbox`, which means more paper, for drawings.
    """

    image_size: int
    channels: int
    drawing: bool
    centered: bool = False
    framing: Framing | None = None

    def __post_init__(self):
        if self.framing is None:
            object.__setattr__(self, "framing", "letterbox" if self.drawing else "crop")

    def __call__(self, source: Any, name: str = "the image") -> np.ndarray:
        """The pixels of an image.

        Args:
            source: A path, a PIL image, an array or a tensor, as `open_image` takes them.
            name: What messages call it if it is not a file.

        Returns:
            uint8 (image_size, image_size, channels). Light paper stays light: see `dark_paper`.

        Raises:
            UserError: It cannot be read.
        """
        return self.views(source, 1, name)[0]

    def check_crops(self, crops: Any) -> None:
        """Whether `views` can give so many crops.

        Raises:
            UserError: It cannot.
        """
        if not is_whole(crops) or not 1 <= crops <= MAX_CROPS:
            raise UserError(f"--crops {shown(crops)}: must be a whole number, at least 1 and at most {MAX_CROPS}")
        if crops > 1 and self.framing != "crop":
            raise UserError(
                f"--crops {crops}: this classifier looks at whole images (framing {self.framing}): leave it out, or "
                "adapt anew with --framing crop"
            )

    def views(self, source: Any, crops: int, name: str = "the image") -> np.ndarray:
        """The pixels of several crops of an image: squares in even steps along the longer side, from end to end.

        Args:
            source: As above.
            crops: How many. One lies in the middle; more need `framing` to be `crop`.
            name: As above.

        Returns:
            uint8 (crops, image_size, image_size, channels).

        Raises:
            UserError: It cannot be read.
        """
        from PIL import ImageOps

        with open_image(source, 2 * self.image_size, name) as image:
            if self.drawing:
                image = ImageOps.autocontrast(image.convert("L"))
                image = center_ink(image) if self.centered else image
            else:
                image = image.convert("L" if self.channels == 1 else "RGB")
            places = [k / (crops - 1) for k in range(crops)] if crops > 1 else [0.5]
            squares = [framed(image, self.image_size, self.framing or "crop", at) for at in places]
            return np.stack([np.asarray(each).reshape(*each.size, -1) for each in squares])


def read_image(path: Path, image_size: int, channels: int = 3) -> np.ndarray:
    """Read an image file: turn it upright, crop it to its central square, resize it; transparent pixels become white.

    Args:
        path: A file of one of `FORMATS`.
        image_size: Height and width of the result in pixels.
        channels: 3 for RGB, 1 for gray.

    Returns:
        uint8 (image_size, image_size, channels).

    Raises:
        UserError: The file cannot be read as an image.
    """
    return Preprocessing(image_size, channels, drawing=False)(path)


@contextlib.contextmanager
def decoding(file: str | Path | io.BytesIO, least: int | None = None, name: str = "") -> Iterator["Image.Image"]:
    """Open an image file. All threads together decode at most `MAX_PIXELS` at the same time; others wait.

    Args:
        file: A file of one of `FORMATS`.
        least: Height and width in pixels that are needed. A JPEG is decoded at a fraction of its size, which is several
            times faster for photos. None decodes all pixels.
        name: What messages call it; by default its path.

    Raises:
        UserError: It is a pipe or a device, or has too many pixels. Nothing has been decoded.
        Exception: Nearly any other, if the file is broken.
    """
    from PIL import Image

    # Pillow warns of what it reads nevertheless, and of files below its own limit; the limits here are lower.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    if isinstance(file, str | Path):
        mode = Path(file).stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # reading may wait forever, or never end
            raise UserError(f"cannot read {file} as an image (it is a pipe or a device): save it as a file")
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(name or file, "more pixels than Pillow reads") from error
    with image:
        width, height = image.size
        if least is not None:
            image.draft(None, (least, least))
        cost = image.width * image.height
        if image.format in ("JPEG", "MPO"):
            cost = max(cost, width * height // JPEG_SHARE)
        if cost > MAX_PIXELS or max(width, height) > MAX_SIDE:
            raise _too_large(name or file, f"{width:,} x {height:,} pixels")
        with DECODED.take(cost):
            yield image


def _too_large(name: object, what: str) -> UserError:
    return UserError(
        f"cannot read {name} as an image ({what}): scale it down to {MAX_PIXELS // 1_000_000} million pixels and sides "
        f"of at most {MAX_SIDE:,}, or remove it"
    )


@contextlib.contextmanager
def open_image(source: Any, least: int | None, name: str = "the image") -> Iterator["Image.Image"]:
    """An image with 8 bits per channel, upright, on white if it is transparent.

    The first frame stands for an animated image.

    Args:
        source: A path; a PIL image; an array (height, width) or (height, width, channels) or a tensor (channels,
            height, width), of bytes or of floats in 0..1, with 1, 3 or 4 channels; or a part of one of these.
        least: Height and width in pixels that are needed. Larger files may be decoded at a fraction of their size. None
            decodes all pixels.
        name: What messages call it if it is not a file.

    Raises:
        UserError: It cannot be read as an image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        if isinstance(source, Image.Image):
            yield _plain(source)
        elif isinstance(source, Cropped):
            name = str(source) if isinstance(source.image, str | Path) else name
            with open_image(source.image, None, name) as whole:
                yield source.cut(whole, name)
        elif isinstance(source, str | Path):
            name = str(source)
            with decoding(source, least) as image:
                yield _plain(image, in_place=True)
        else:
            yield _plain(_from_array(source, name))
    except UserError:
        raise
    except Exception as error:  # Pillow raises nearly anything on broken files, NumPy on odd values
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = "repair or remove it"
        if isinstance(error, UnidentifiedImageError):
            empty = Path(name).is_file() and not Path(name).stat().st_size
            reason = "it is empty" if empty else "no format that is known here"
            remedy = "remove it" if empty else "save it as JPEG or PNG, or remove it"
        elif isinstance(error, OSError) and error.strerror:  # without the path, which the message already has
            reason, remedy = error.strerror, "check its name and permissions"
        raise UserError(f"cannot read {name} as an image ({reason}): {remedy}") from error


def square(image: "Image.Image", size: int, channels: int) -> np.ndarray:
    """The pixels of the central square of an image, resized: uint8 (size, size, channels)."""
    image = image.convert("L" if channels == 1 else "RGB")
    return np.asarray(framed(image, size, "crop")).reshape(size, size, channels)


def center_ink(image: "Image.Image") -> "Image.Image":
    """A gray drawing on square paper, with the center of mass of its ink in the middle.

    The paper is as large as the longer side of the image, or larger if ink would be cut off. A blank image stays as it
    is.
    """
    from PIL import Image

    paper = int(border_color(image)[0])
    ink = np.abs(np.asarray(image).astype(int) - paper)
    ink[ink < INK] = 0
    if not ink.any():
        return image
    across_and_down = ink.sum(0), ink.sum(1)
    middle = [float(np.average(np.arange(len(line)) + 0.5, weights=line)) for line in across_and_down]
    ends = [np.flatnonzero(line)[[0, -1]] + (0, 1) for line in across_and_down]
    reach = max(float(np.abs(end - at).max()) for end, at in zip(ends, middle, strict=True))
    side = max(*image.size, ceil(2 * reach) + 1)  # 1 more, because the corner is rounded
    left, top = (round(side / 2 - at) for at in middle)
    square = Image.new("L", (side, side), paper)
    square.paste(image, (left, top))
    return square


def is_drawing(image: "Image.Image") -> bool:
    """Whether an image looks like ink on paper: gray, and at least half of it has the tone of its border."""
    from PIL import Image

    small = image.convert("RGB").resize((JUDGED, JUDGED), Image.Resampling.NEAREST)
    pixels, paper = np.asarray(small).astype(int), border_color(small)
    is_paper = (np.abs(pixels - paper) < 40).all(-1)
    tint = np.ptp(pixels, axis=-1)
    return bool(is_paper.mean() >= 0.5 and np.percentile(tint, 95) < 48)


def find(names: Iterable[str], lines: Iterable[str]) -> list[Path]:
    """The image files that a person names: files, folders, or `-` for the paths on `lines`.

    A folder stands for all images in it and in the folders below it, known by their file extensions; hidden files are
    left out.

    Raises:
        UserError: A folder has no images.
    """
    paths = []
    for name in names:
        if name == "-":
            paths += [Path(line.rstrip("\r\n")) for line in lines if line.strip()]
        elif Path(name).is_dir():
            files = [path for path in sorted(Path(name).rglob("*")) if is_image_name(path) and path.is_file()]
            if not files:
                raise UserError(f"{name} has no images: name a folder with files such as .jpg or .png in it")
            paths += files
        else:
            paths.append(Path(name))
    return paths


def is_image_name(path: Path) -> bool:
    """Whether the name of a file is that of an image: it ends as `FORMATS` do, and is not hidden."""
    return not path.name.startswith(".") and path.suffix.lower() in _suffixes()


@cache
def _suffixes() -> frozenset[str]:
    from PIL import Image

    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS)


def show_drawings(sources: Sequence[Any]) -> bool:
    """Whether most of many images are drawings. A sample decides, which is always the same for the same images.

    Images that cannot be read do not count: the error comes up when all images are read.

    Args:
        sources: Images as `open_image` takes them.
    """
    votes = []
    for k in np.linspace(0, len(sources) - 1, min(LOOK_AT, len(sources))).astype(int):
        with contextlib.suppress(UserError), open_image(sources[k], 2 * JUDGED) as image:
            votes.append(is_drawing(image))
    return sum(votes) > len(votes) / 2


def dark_paper(pixels: np.ndarray) -> np.ndarray:
    """A drawing with dark paper: inverted if the mean of its border is light.

    Args:
        pixels: uint8 (height, width, channels).
    """
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return 255 - pixels if 2 * int(border.sum()) > 255 * border.size else pixels


def _plain(image: "Image.Image", in_place: bool = False) -> "Image.Image":
    """As `open_image` says. `in_place` changes the image itself, without a copy of its pixels."""
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image, in_place=in_place) or image
    if upright.mode.startswith("I;16"):
        # Pillow clips 16 bits to 8 instead of scaling them.
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    elif upright.mode in ("I", "F"):  # 32 bits, where no value is known to be white
        numbers = np.nan_to_num(np.asarray(upright).astype(float), copy=False, posinf=FAR, neginf=-FAR)
        low, high = numbers.min(), numbers.max()
        numbers -= low  # in place: a large image takes gigabytes otherwise
        numbers /= max(high - low, 1e-9)
        numbers *= 255
        upright = Image.fromarray(numbers.astype(np.uint8))
    if upright.has_transparency_data:
        upright = upright if in_place and upright.mode == "RGBA" else upright.convert("RGBA")
        for top in range(0, upright.height, ROWS):  # a whole image of white paper would need as much memory again
            rows = upright.crop((0, top, upright.width, min(top + ROWS, upright.height)))
            upright.paste(Image.alpha_composite(Image.new("RGBA", rows.size, "white"), rows), (0, top))
    return upright


def _from_array(source: Any, name: str) -> "Image.Image":
    from PIL import Image

    is_tensor = hasattr(source, "detach")
    if is_tensor and source.is_floating_point():
        source = source.float()  # NumPy has no bfloat16
    array = source.detach().cpu().numpy() if is_tensor else np.asarray(source)
    if is_tensor and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    shape = "(channels, height, width)" if is_tensor else "(height, width) or (height, width, channels)"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        got = tuple(source.shape) if hasattr(source, "shape") else shown(source)
        raise UserError(f"{name} is {got}: give a path, a PIL image, or {shape} with 1, 3 or 4 channels")
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):
            raise UserError(f"{name} has values from {array.min():g} to {array.max():g}: floats must lie in 0..1")
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise UserError(f"{name} is of type {array.dtype}: give uint8, or floats in 0..1")
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array))
