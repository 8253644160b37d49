import hashlib
import os
import subprocess
import sys

import numpy as np
import PIL
import pytest

from metalstm.data import glyph_drawings


@pytest.fixture(scope="module")
def rendered():
    return glyph_drawings.render()


@pytest.fixture(scope="module")
def drawings(rendered):
    """Images by class: (classes, 20, 28, 28)."""
    images, names, _ = rendered
    return images.reshape(len(names), 20, 28, 28)


def scripts(names):
    return {name.partition("/")[0] for name in names}


def test_shapes_and_names(rendered):
    images, names, _ = rendered
    assert images.dtype == np.uint8
    assert images.shape == (len(names) * 20, 28, 28, 1)
    assert len(names) >= 1500
    assert list(names) == sorted(set(names))
    assert "Georgian/U+10D0" in names


def test_key_names_what_the_pixels_depend_on():
    assert str(glyph_drawings.VERSION) in glyph_drawings.KEY
    assert PIL.__version__ in glyph_drawings.KEY


def test_splits_share_no_class_and_no_script_and_leave_none_out(rendered):
    _, names, splits = rendered
    assert list(splits) == ["meta-train", "meta-val", "meta-test"]
    assert sorted(name for split in splits.values() for name in split) == list(names)
    assert sum(len(scripts(split)) for split in splits.values()) == len(scripts(names))


def test_splits_are_large_enough(rendered):
    _, names, splits = rendered
    assert len(splits["meta-train"]) >= 0.6 * len(names)
    assert len(splits["meta-val"]) >= 150
    assert len(splits["meta-test"]) >= 300
    assert len(scripts(splits["meta-test"])) >= 6


def test_every_process_draws_the_same_pixels(rendered):
    code = (
        "import hashlib; from metalstm.data import glyph_drawings; images, names, splits = glyph_drawings.render();"
        "print(hashlib.sha256(images.tobytes() + repr((names, splits)).encode()).hexdigest())"
    )
    # Neither the order of sets nor the number of threads may matter.
    environment = os.environ | {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    images, names, splits = rendered
    digest = hashlib.sha256(images.tobytes() + repr((names, splits)).encode()).hexdigest()
    assert other.stdout.strip() == digest


def test_no_drawing_is_blank_or_a_blob(drawings):
    ink = drawings.mean((2, 3)) / 255
    assert ink.min() > 0.005
    assert ink.max() < 0.5
    assert (drawings.max((2, 3)) > 200).all()


def test_no_drawing_is_cut_off(drawings):
    border = np.ones((28, 28), bool)
    border[1:-1, 1:-1] = False
    assert (drawings[..., border] > 127).sum(-1).max() <= 2


def test_no_two_classes_look_the_same(rendered):
    classes = glyph_drawings._distinct()
    assert tuple(sorted(classes)) == rendered[1]
    clean = np.stack([in_fonts[0] for in_fonts in classes.values()])[:, ::4, ::4].reshape(len(classes), -1)
    clean = clean / np.linalg.norm(clean.astype(np.float32), axis=1, keepdims=True)
    similarity = clean @ clean.T
    np.fill_diagonal(similarity, 0)
    assert similarity.max() < 0.97


def test_look_alikes_stay_in_one_split_only(rendered):
    names = rendered[1]
    assert "Armenian/U+0555" in names  # Օ
    assert not {"Latin/U+004F", "Greek/U+039F", "Cyrillic/U+041E", "Latin/U+006F"} & set(names)


def test_accented_letters_and_marks_are_left_out(rendered):
    assert not {"Latin/U+00E9", "Cyrillic/U+0439", "Arabic/U+064B"} & set(rendered[1])


def test_hands_differ_but_less_than_classes_do(drawings):
    assert all(len({drawing.tobytes() for drawing in of_class}) == 20 for of_class in drawings)
    flat = drawings.reshape(*drawings.shape[:2], -1).astype(np.float32) / 255
    within = np.square(flat[:, :10] - flat[:, 10:]).sum(-1).mean()
    between = np.square(flat - np.roll(flat, len(flat) // 2, axis=0)).sum(-1).mean()
    assert within < 0.9 * between
