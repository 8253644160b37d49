import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from metalstm.errors import UserError
from metalstm.geometry import FRAMINGS, MAX_BYTES, Cropped, cropped, framed, read_boxes
from metalstm.images import Preprocessing, show_drawings

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)
LANCZOS = Image.Resampling.LANCZOS


def bands(turned: bool = False) -> Image.Image:
    """Three squares of 16 pixels side by side, red, green and blue; or one above the other."""
    image = Image.new("RGB", (48, 16), GREEN)
    image.paste(RED, (0, 0, 16, 16))
    image.paste(BLUE, (32, 0, 48, 16))
    return image.transpose(Image.Transpose.ROTATE_270) if turned else image


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8))


# Framings


def test_crop_shows_the_middle_and_squeeze_all():
    assert (np.asarray(framed(bands(), 16, "crop")) == GREEN).all()
    squeezed = np.asarray(framed(bands(), 48, "squeeze"))
    assert (squeezed[:, 0], squeezed[:, 24], squeezed[:, 47]) == tuple(
        pytest.approx(np.tile(color, (48, 1)), abs=9) for color in (RED, GREEN, BLUE)
    )
    assert np.asarray(framed(noise(70, 20), 9, "squeeze")).tobytes() == noise(70, 20).resize((9, 9), LANCZOS).tobytes()


def test_a_letterbox_shows_all_between_bars_of_the_color_of_the_border():
    photo = Image.new("RGB", (60, 20), (10, 99, 30))
    photo.paste(RED, (5, 5, 55, 15))
    boxed = np.asarray(framed(photo, 30, "letterbox"))
    assert (boxed[[0, 9, 20, 29]] == (10, 99, 30)).all()
    assert (boxed[10:20] == np.asarray(photo.resize((30, 10), LANCZOS))).all()
    tall = np.asarray(framed(photo.transpose(Image.Transpose.ROTATE_90).convert("L"), 30, "letterbox"))
    assert (tall[:, [0, 9, 20, 29]] == tall[0, 0]).all()
    assert tall.shape == (30, 30)


@pytest.mark.parametrize("size", [(70, 40), (40, 70), (50, 50), (301, 7)])
def test_by_default_nothing_is_new(size):
    """Photos are cropped, and drawings get paper, as without the setting."""
    photo, drawing = noise(*size), ImageOps.invert(noise(*size).convert("L"))
    wanted = np.asarray(ImageOps.fit(photo, (28, 28), LANCZOS))
    assert (Preprocessing(28, 3, drawing=False)(photo) == wanted).all()
    ink = ImageOps.autocontrast(drawing)
    pixels = np.asarray(ink)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    wanted = np.asarray(ImageOps.pad(ink, (28, 28), LANCZOS, color=int(np.median(border))))
    assert (Preprocessing(28, 1, drawing=True)(drawing)[..., 0] == wanted).all()
    assert [Preprocessing(28, 1, drawing).framing for drawing in (False, True)] == ["crop", "letterbox"]


@pytest.mark.parametrize("drawing", [False, True])
def test_square_images_are_the_same_in_every_framing(drawing):
    every = [Preprocessing(28, 1, drawing, framing=framing)(noise(50, 50)) for framing in FRAMINGS]
    assert (every[0] == every[1]).all()
    assert (every[0] == every[2]).all()


# Several crops


@pytest.mark.parametrize("turned", [False, True])
def test_crops_go_from_end_to_end(turned):
    preprocessing = Preprocessing(8, 3, drawing=False)
    views = preprocessing.views(bands(turned), 3)
    assert views.shape == (3, 8, 8, 3)
    assert views[:, 4, 4].tolist() == [[*RED], [*GREEN], [*BLUE]]
    assert (preprocessing.views(bands(turned), 5)[[0, 2, 4]] == views).all()
    assert (preprocessing.views(bands(turned), 1)[0] == preprocessing(bands(turned))).all()
    assert (preprocessing.views(noise(40, 40), 3) == preprocessing(noise(40, 40))).all(), "a square image has one view"


@pytest.mark.parametrize(
    ("framing", "crops", "message"),
    [
        ("crop", 0, "--crops 0: must be a whole number, at least 1 and at most 25"),
        ("crop", 26, "--crops 26: must be a whole number, at least 1 and at most 25"),
        ("crop", True, "--crops True: must be a whole number, at least 1 and at most 25"),
        ("crop", 2.0, "--crops 2.0: must be a whole number, at least 1 and at most 25"),
        (
            "squeeze",
            3,
            "--crops 3: this classifier looks at whole images (framing squeeze): leave it out, or adapt anew with "
            "--framing crop",
        ),
    ],
)
def test_numbers_of_crops_that_cannot_be(framing, crops, message):
    with pytest.raises(UserError) as error:
        Preprocessing(8, 3, drawing=False, framing=framing).check_crops(crops)
    assert str(error.value) == message


# Boxes


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_box_is_a_part_of_the_upright_image(tmp_path, orientation):
    """A large JPEG is not decoded at a fraction of its size, because little of it is left."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = noise(9, 9).resize((900, 600), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "photo.jpg", exif=exif)
    with Image.open(tmp_path / "photo.jpg") as opened:
        ImageOps.exif_transpose(opened).crop((100, 200, 160, 240)).save(tmp_path / "part.png")
    for framing in FRAMINGS:
        preprocessing = Preprocessing(32, 3, drawing=False, framing=framing)
        part = preprocessing(Cropped(tmp_path / "photo.jpg", (100, 200, 160, 240)))
        assert (part == preprocessing(tmp_path / "part.png")).all()


def test_a_box_can_be_of_any_image_and_decides_whether_it_is_a_drawing():
    page = noise(80, 80)
    page.paste("white", (0, 0, 40, 40))
    ImageDraw.Draw(page).line([(10, 10), (30, 30)], fill="black", width=3)
    assert not show_drawings([page])
    assert show_drawings([Cropped(page, (0, 0, 40, 40))])
    preprocessing = Preprocessing(16, 3, drawing=False)
    part = preprocessing(page.crop((0, 0, 40, 30)))
    assert (preprocessing(Cropped(np.asarray(page), (0, 0, 40, 30))) == part).all()


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0, 0, 41, 30), "is [0, 0, 41, 30], but the upright image has 40 x 30 pixels: give a box within them"),
        ((0, 0, 40, 31), "is [0, 0, 40, 31], but the upright image has 40 x 30 pixels: give a box within them"),
        (
            (5, 0, 5, 9),
            "is [5, 0, 5, 9]: left must be at least 0 and below right, top at least 0 and below bottom",
        ),
        (
            (-1, 0, 5, 9),
            "is [-1, 0, 5, 9]: left must be at least 0 and below right, top at least 0 and below bottom",
        ),
        ((1, 2, 3), "is (1, 2, 3): give four whole numbers, [left, top, right, bottom]"),
    ],
)
def test_boxes_that_do_not_fit(tmp_path, box, message):
    noise(40, 30).save(tmp_path / "x.png")
    for image, name in ((tmp_path / "x.png", tmp_path / "x.png"), (noise(40, 30), "image 7")):
        with pytest.raises(UserError) as error:
            Preprocessing(16, 3, drawing=False)(Cropped(image, box), "image 7")
        assert str(error.value) == f"the box of {name} {message}"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """`photos/cat/1.png` and `2.png`, and a working folder elsewhere."""
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for k in (1, 2):
        noise(40, 30).save(tmp_path / "photos" / "cat" / f"{k}.png")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "photos"


def test_paths_of_boxes_start_at_the_folder_of_their_file(folder):
    boxes = folder / "boxes.json"
    boxes.write_text(json.dumps({"cat/1.png": [1, 2, 3, 4]}), "utf-8-sig")
    images = [folder / "cat" / "1.png", Path("../photos/cat/1.png"), folder / "cat" / "2.png"]
    assert cropped(images, boxes) == [*(Cropped(image, (1, 2, 3, 4)) for image in images[:2]), images[2]]
    boxes.write_text(json.dumps({str(images[2]): [0, 0, 9, 9]}))
    assert cropped(images, Path("../photos/boxes.json"))[2] == Cropped(images[2], (0, 0, 9, 9))
    assert [str(each) for each in cropped(images, boxes)] == list(map(str, images))
    boxes.write_text("{}")
    assert cropped(images, boxes) == images


FORM = '{"cat/1.jpg": [left, top, right, bottom]}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f" is no JSON (Expecting value: line 1 column 1 (char 0)): write {FORM}"),
        ("\xff", " is no JSON ("),
        ("[" * 10**6, " is no JSON ("),
        ("[1, 2]", f" holds [1, 2]: write {FORM}"),
        ("null", f" holds None: write {FORM}"),
        (
            '{"dog/1.png": [0, 0, 1, 1]}',
            " has a box for 'dog/1.png', but there is no such file: correct the path, which starts at the folder of "
            "boxes.json",
        ),
        ('{"cat": [0, 0, 1, 1]}', " has a box for 'cat', but there is no such file: "),
        ('{"cat/\\u0000": [0, 0, 1, 1]}', " has a box for 'cat/\\x00', but there is no such file: "),
        ('{"\\ud800": [0, 0, 1, 1]}', " has a box for '\\ud800', but there is no such file: "),
        ('{"cat/1.png": [0, 0, 1, 1], "cat/1.png": [0, 0, 2, 2]}', " has two boxes for 'cat/1.png': leave one"),
        ('{"cat/1.png": [0, 0, 1, 1], "./cat/1.png": [0, 0, 2, 2]}', " has two boxes for './cat/1.png': leave one"),
    ],
)
def test_files_of_boxes_that_are_wrong(folder, text, message):
    boxes = folder / "boxes.json"
    boxes.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as error:
        read_boxes(boxes)
    assert str(error.value).startswith(f"{boxes}{message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "box", ["[0, 0, 1]", "[0, 0, 1, 1.5]", "[0, 0, 1, true]", "[0, 0, 1, NaN]", '"abcd"', "{}", "null", "[[[[]]]]"]
)
def test_boxes_that_are_none(folder, box):
    boxes = folder / "boxes.json"
    boxes.write_text(f'{{"cat/1.png": {box}}}')
    with pytest.raises(UserError) as error:
        read_boxes(boxes)
    value = json.loads(box) if box != "{}" else []
    assert str(error.value) == (
        f"the box of 'cat/1.png' in {boxes} is {value!r}: give four whole numbers, [left, top, right, bottom]"
    )


def test_a_file_of_boxes_that_is_none_or_too_large(folder):
    with pytest.raises(UserError) as error:
        read_boxes(folder / "none.json")
    assert str(error.value) == (
        f"cannot read {folder / 'none.json'} (No such file or directory): check its name and permissions"
    )
    with pytest.raises(UserError) as error:
        read_boxes(folder)
    assert str(error.value) == f"cannot read {folder} (it is no file): name a file of boxes, {FORM}"
    with open(folder / "large.json", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError) as error:
        read_boxes(folder / "large.json")
    assert str(error.value) == (
        f"{folder / 'large.json'} has more than 50,000,000 bytes: leave boxes out, or their digits and spaces"
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_not_waited_for(folder):
    os.mkfifo(folder / "pipe.json")
    with pytest.raises(UserError, match="it is no file"):
        read_boxes(folder / "pipe.json")
