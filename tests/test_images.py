import contextlib
import io
import os
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

from metalstm import images
from metalstm.data import load
from metalstm.errors import UserError
from metalstm.images import (
    LOOK_AT,
    Preprocessing,
    center_ink,
    dark_paper,
    find,
    is_drawing,
    open_image,
    read_image,
    show_drawings,
)

PHOTO = Preprocessing(16, 3, drawing=False)
DRAWING = Preprocessing(16, 1, drawing=True)
LEFT_RED = np.repeat(np.array([[[200, 0, 0]] * 8 + [[0, 0, 200]] * 8], np.uint8), 16, axis=0)  # the left half is red


def write(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def letter(ink: str | int = "black", paper: str | int = "white", size=(60, 60), mode="RGB") -> Image.Image:
    image = Image.new(mode, size, paper)
    ImageDraw.Draw(image).line([(15, 10), (15, 50), (45, 50)], fill=ink, width=4)
    return image


# Files of every kind


def test_exif_turns_an_image_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    turned = Image.fromarray(LEFT_RED).rotate(90)
    path = write(tmp_path / "turned.png", turned, exif=exif)
    assert (PHOTO(path) == LEFT_RED).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_colors_of_every_mode(tmp_path, mode):
    image = Image.fromarray(LEFT_RED)
    image = image.quantize() if mode == "P" else image.convert(mode)
    path = write(tmp_path / f"image.{'tif' if mode == 'CMYK' else 'png'}", image)
    assert np.abs(PHOTO(path).astype(int) - LEFT_RED).max() <= 1


@pytest.mark.parametrize("mode", ["L", "1", "LA", "I;16", "I", "F"])
def test_grays_of_every_mode(tmp_path, mode):
    gray = np.repeat(np.array([[255] * 8 + [0] * 8], np.uint8), 16, axis=0)
    wide = gray.astype(np.int32)
    values = {"I;16": (wide * 257).astype(np.uint16), "I": wide * 1000, "F": (wide / 255).astype(np.float32)}
    image = Image.fromarray(values[mode]) if mode in values else Image.fromarray(gray).convert(mode)
    assert image.mode == mode
    path = write(tmp_path / f"image.{'tif' if mode in values else 'png'}", image)
    assert (PHOTO(path) == gray[..., None]).all()


def test_transparency_is_white_and_the_first_frame_of_an_animation_counts(tmp_path):
    assert (PHOTO(write(tmp_path / "a.png", Image.new("RGBA", (9, 9), (0, 0, 0, 0)))) == 255).all()
    palette = Image.new("P", (9, 9), 0)
    assert (PHOTO(write(tmp_path / "b.gif", palette, transparency=0)) == 255).all()
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "lime")]
    path = write(tmp_path / "c.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (PHOTO(path) == [255, 0, 0]).all()


def test_tall_transparent_images_lie_on_white(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (600, 10, 4)).astype(np.uint8)
    image = Image.fromarray(pixels)
    expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    for source in (image, write(tmp_path / "x.png", image)):
        with open_image(source, 16) as opened:
            assert opened.tobytes() == expected.tobytes()
    assert (np.asarray(image) == pixels).all(), "the image of the caller is not changed"


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jpg", b"", "it is empty): remove it"),
        ("x.heic", b"what", "no format that is known here): save it as JPEG or PNG, or remove it"),
        (
            "x.png",
            png(Image.fromarray(LEFT_RED).resize((200, 200)))[:100],
            "image file is truncated): repair or remove it",
        ),
        (None, b"", "No such file or directory): check its name and permissions"),
    ],
)
def test_messages_name_files_that_are_not_images(tmp_path, name, content, message):
    path = tmp_path / (name or "nowhere.png")
    if name:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        PHOTO(path)
    assert str(error.value) == f"cannot read {path} as an image ({message}"


def test_unusual_modes_of_files(tmp_path):
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "16bit.png")
    assert read_image(tmp_path / "16bit.png", 2).tolist() == [[[128] * 3] * 2] * 2
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "transparent.png")
    assert read_image(tmp_path / "transparent.png", 2, channels=1).tolist() == [[[255]] * 2] * 2
    Image.new("1", (4, 4), 1).save(tmp_path / "1bit.png")
    assert read_image(tmp_path / "1bit.png", 2).tolist() == [[[255] * 3] * 2] * 2


# Files that must not be decoded


def header(width: int, height: int) -> bytes:
    """The start of a PNG file that promises so many pixels, and has none."""
    size = b"IHDR" + width.to_bytes(4) + height.to_bytes(4) + bytes([8, 6, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4) + size + zlib.crc32(size).to_bytes(4) + b"\0\0\0\1IDAT"


@pytest.mark.parametrize(
    ("width", "height", "what"),
    [
        (9400, 9400, "9,400 x 9,400 pixels"),
        (1, 40_000_000, "1 x 40,000,000 pixels"),
        (2**20, 2**20, "more pixels than Pillow reads"),
    ],
)
def test_large_images_are_refused_before_they_are_decoded(tmp_path, recwarn, width, height, what):
    path = tmp_path / "x.png"
    path.write_bytes(header(width, height))
    with pytest.raises(UserError) as error:
        PHOTO(path)
    assert str(error.value) == (
        f"cannot read {path} as an image ({what}): scale it down to 50 million pixels and sides of at most 65,535, or "
        "remove it"
    )
    assert not recwarn.list


def test_threads_share_the_pixels_that_may_be_decoded(tmp_path, monkeypatch):
    taken = []

    class Recorder(images.Budget):
        def take(self, n: int):
            taken.append(n)
            return super().take(n)

    monkeypatch.setattr(images, "DECODED", Recorder(10**6))
    photo = Image.new("RGB", (800, 600))
    PHOTO(write(tmp_path / "x.png", photo))
    PHOTO(write(tmp_path / "x.jpg", photo))
    assert taken == [800 * 600, 800 * 600 // 3], "a JPEG of which an eighth is decoded may be in memory whole"

    budget, held, most = images.Budget(10), [], []

    def work(n: int) -> None:
        with budget.take(n):
            held.append(n)
            most.append(sum(held))
            held.remove(n)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [1, 3, 10, 7, 5] * 200))
    assert len(most) == 1000
    assert max(most) <= 10


def test_many_large_images_are_not_in_memory_at_once(tmp_path, monkeypatch):
    opened = []
    plain = images._plain

    def count(image, in_place=False):
        result = plain(image, in_place)
        opened.append(weakref.ref(result))
        assert sum(ref() is not None for ref in opened) <= 2
        return result

    monkeypatch.setattr(images, "_plain", count)
    path = write(tmp_path / "letter.png", letter())
    assert show_drawings([path] * LOOK_AT)
    assert len(opened) == LOOK_AT


def test_formats_that_nobody_needs_are_not_read(tmp_path):
    path = write(tmp_path / "x.eps", letter())  # PostScript is a program
    with pytest.raises(UserError, match=r"x\.eps as an image \(no format that is known here\): save it as JPEG or PNG"):
        PHOTO(path)
    with pytest.raises(UserError, match="has no images"):
        find([str(tmp_path)], [])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_pipes_devices_and_loops_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(UserError) as error:
            PHOTO(tmp_path / name)
        assert str(error.value) == (
            f"cannot read {tmp_path}/{name} as an image (it is a pipe or a device): save it as a file"
        )
    with pytest.raises(UserError) as error:
        PHOTO(tmp_path / "loop.png")
    assert str(error.value) == (
        f"cannot read {tmp_path}/loop.png as an image (Too many levels of symbolic links): check its name and "
        "permissions"
    )
    with pytest.raises(UserError, match="has no images"):
        find([str(tmp_path)], [])


# Images that are not files


def test_arrays_and_tensors_give_the_pixels_of_their_files(tmp_path):
    expected = PHOTO(write(tmp_path / "image.png", Image.fromarray(LEFT_RED)))
    floats = LEFT_RED / 255
    tensor = torch.from_numpy(LEFT_RED).movedim(-1, 0)
    learned = (tensor / 255).requires_grad_()
    for source in (
        LEFT_RED,
        floats,
        tensor,
        tensor / 255,
        learned,
        Image.fromarray(LEFT_RED),
        str(tmp_path / "image.png"),
    ):
        assert (PHOTO(source) == expected).all()
    assert PHOTO((tensor / 255).bfloat16()).shape == expected.shape
    gray = LEFT_RED[..., 0]
    for source in (gray, gray[..., None], torch.from_numpy(gray), torch.from_numpy(gray)[None], gray > 100):
        with open_image(source, 16) as image:
            assert np.asarray(image).astype(bool).tolist() == (gray > 100).tolist()
    clear = np.concatenate([LEFT_RED, np.zeros_like(LEFT_RED[..., :1])], -1)
    assert (PHOTO(clear) == 255).all(), "the fourth channel is how opaque it is"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            np.zeros((3, 4, 5), np.uint8),
            "image 7 is (3, 4, 5): give a path, a PIL image, or (height, width) or (height, width, channels) with 1, 3 "
            "or 4 channels",
        ),
        (
            torch.zeros(5, 4, 3),
            "image 7 is (5, 4, 3): give a path, a PIL image, or (channels, height, width) with 1, 3 or 4 channels",
        ),
        (np.full((4, 4), 255.0), "image 7 has values from 255 to 255: floats must lie in 0..1"),
        (np.full((4, 4), np.nan), "image 7 has values from nan to nan: floats must lie in 0..1"),
        ([np.zeros((9, 9, 5))], "image 7 is [array([[[0., 0., 0., 0., 0.], [0., 0., 0., 0., 0.], [0.,"),
        ([[1], [2, 3]], "cannot read image 7 as an image (setting an array element with a sequence. "),
        (torch.zeros(3, 4, 4, device="meta"), "cannot read image 7 as an image ("),
        (Image.new("F", (0, 4)), "cannot read image 7 as an image (zero-size array"),
        (np.zeros((4, 4), np.int64), "image 7 is of type int64: give uint8, or floats in 0..1"),
    ],
)
def test_messages_number_arrays_that_are_not_images(source, message):
    with pytest.raises(UserError) as error:
        PHOTO(source, "image 7")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_numbers_of_32_bits_that_are_none_have_a_tone(recwarn):
    pixels = PHOTO(Image.fromarray(np.array([[np.nan, np.inf], [-np.inf, 0]], np.float32)))
    assert pixels.min() == 0
    assert pixels.max() == 255
    assert not recwarn.list


def test_what_pillow_reads_nevertheless_is_read_without_a_word(tmp_path, recwarn):
    content = io.BytesIO()
    Image.fromarray(LEFT_RED).save(content, "TIFF")
    damaged = bytearray(content.getvalue())
    start = int.from_bytes(damaged[4:8], "little") + 2
    damaged[start + 2 : start + 4] = (99).to_bytes(2, "little")  # a tag's type, which there is not
    (tmp_path / "image.tif").write_bytes(damaged)
    with contextlib.suppress(UserError):
        PHOTO(tmp_path / "image.tif")
    assert not recwarn.list


# Drawings


def test_drawings_differ_from_photos():
    noise = np.random.RandomState(0).randint(0, 256, (40, 40, 3)).astype(np.uint8)
    gradient = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (40, 1))
    for drawing in (letter(), letter("white", "black"), letter("#333", "#bbb"), letter(0, 1, mode="1")):
        assert is_drawing(drawing)
    for photo in (Image.fromarray(noise), Image.fromarray(gradient), letter("red"), Image.fromarray(LEFT_RED)):
        assert not is_drawing(photo)


def test_contrast_is_stretched_and_no_part_of_a_drawing_is_cut_off():
    faint = letter("#777777", "#aaaaaa")
    assert (DRAWING(faint) == DRAWING(letter())).all()
    wide = letter(size=(180, 60))
    pixels = DRAWING(wide)[..., 0]
    assert (pixels[:5] == 255).all()
    assert (pixels[-5:] == 255).all()
    assert pixels[5:-5, :5].min() < 200, "the letter is still there"


def test_a_sample_decides_whether_many_images_are_drawings(tmp_path):
    photo = np.random.RandomState(0).randint(0, 256, (40, 40, 3)).astype(np.uint8)
    path = write(tmp_path / "letter.png", letter())
    assert show_drawings([path, letter(), photo])
    assert not show_drawings([letter(), photo])
    seen = []

    class Sources(list):
        def __getitem__(self, k):
            seen.append(int(k))
            return super().__getitem__(k)

    assert not show_drawings([letter(), letter("red")]), "half of them are not most"
    show_drawings(Sources([letter()] * 1000))
    assert len(seen) == LOOK_AT
    assert (seen[0], seen[-1]) == (0, 999)
    assert show_drawings([letter(), tmp_path / "missing.png"]), "what cannot be read does not count"
    assert not show_drawings([tmp_path / "missing.png"])


def test_centered_ink():
    image = letter()
    gray = ImageOps.autocontrast(image.convert("L"))
    centered = center_ink(gray)
    assert centered.size == (max(gray.size),) * 2, "square, and no larger than needed"
    ink = 255.0 - np.asarray(centered)
    assert ink.sum() == (255.0 - np.asarray(gray)).sum(), "nothing is cut off"
    for axis, line in enumerate((ink.sum(0), ink.sum(1))):
        assert abs(np.average(np.arange(len(line)) + 0.5, weights=line) - centered.size[axis] / 2) <= 0.6
    again = center_ink(centered)
    assert (np.asarray(again) == np.asarray(centered)).all()


def test_paper_is_added_where_ink_would_be_cut_off():
    pixels = np.full((40, 40), 255, np.uint8)
    pixels[:20, :20] = 0  # most of the ink
    pixels[35:, 35:] = 0
    centered = np.asarray(center_ink(Image.fromarray(pixels)))
    assert centered.shape[0] > 40
    assert (centered == 0).sum() == (pixels == 0).sum()


def test_a_blank_drawing_and_uneven_paper():
    blank = Image.new("L", (30, 20), 255)
    assert center_ink(blank) is blank
    pixels = np.full((41, 41), 255, np.uint8)
    pixels[5:10, 5:10] = 0
    shadow = pixels.copy()
    shadow[25:, 25:] -= 50
    one, other = (np.asarray(center_ink(Image.fromarray(each))) < 128 for each in (pixels, shadow))
    assert (one == other).all(), "a shadow is no ink"
    assert one[18:23, 18:23].all()


def test_dark_and_light_paper_are_centered_alike():
    light, dark = (
        Preprocessing(16, 1, drawing=True, centered=True)(letter(*pair))
        for pair in (("black", "white"), ("white", "black"))
    )
    assert (dark_paper(light) == dark).all()
    assert (light != DRAWING(letter())).any()


def test_dark_paper():
    light, dark = (
        Preprocessing(16, 1, drawing=True)(letter(*pair)) for pair in (("black", "white"), ("white", "black"))
    )
    assert (dark_paper(light) == 255 - light).all()
    assert (dark_paper(dark) == dark).all()
    assert (dark_paper(light) == dark).all()


@pytest.mark.data
def test_a_drawing_in_a_file_gives_the_pixels_of_the_data_set(data_root, tmp_path):
    import zipfile

    preprocessing = Preprocessing(28, 1, drawing=True, centered=True)
    drawings = load("omniglot", data_root).splits["meta-test"]
    with zipfile.ZipFile(data_root / "omniglot" / "images_evaluation.zip") as archive:
        for k in (0, 100, 600):
            folder = f"images_evaluation/{drawings.classes[k]}/"
            member = min(name for name in archive.namelist() if name.startswith(folder) and name.endswith(".png"))
            path = tmp_path / "x.png"
            path.write_bytes(archive.read(member))
            assert (255 - preprocessing(path) == drawings.images[drawings.spans[k, 0]]).all()


# Names of files


def test_find_takes_files_folders_and_lines(tmp_path):
    for name in ("b.PNG", "a.jpg", "notes.txt", ".hidden.png", "deep/er/c.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find(["x.png", str(tmp_path), "-"], ["one.png\n", "\n", " two.png \r\n"])
    inside = [tmp_path / "a.jpg", tmp_path / "b.PNG", tmp_path / "deep/er/c.webp"]
    assert found == [Path("x.png"), *inside, Path("one.png"), Path(" two.png ")]
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError) as error:
        find([str(tmp_path / "none")], [])
    assert str(error.value) == f"{tmp_path}/none has no images: name a folder with files such as .jpg or .png in it"
