import numpy as np
import pytest
from PIL import Image

from metalstm.data import SPLITS, load
from metalstm.errors import UserError
from metalstm.images import center_ink
from metalstm.settings import Traits

from .makers import drawing, images_of, make_omniglot

EARLIER = Traits(drawing=True, mirrors=False, rotations=True)


def test_omniglot(tmp_path):
    sets = load("omniglot", make_omniglot(tmp_path))
    assert sets.name == "omniglot"
    assert sets.traits == Traits(drawing=True, mirrors=False, rotations=True, centered=True)
    assert (sets.tasks, sets.group_tasks) == (((5, 1), (5, 5), (20, 1), (20, 5)), ((20, 1),))
    assert sets.licence == "MIT, Copyright (c) 2015 Brenden Lake"
    assert {split: len(part.classes) for split, part in sets.splits.items()} == {
        "meta-train": 9,
        "meta-val": 3,  # one alphabet of four, near to the share 161 of 964
        "meta-test": 3,
    }
    assert sets.splits["meta-test"].classes == ("Xyz0/character01", "Xyz0/character02", "Xyz0/character03")
    assert all(list(part.classes) == sorted(part.classes) for part in sets.splits.values())
    assert all(part.image_shape == (1, 28, 28) for part in sets.splits.values())
    # The last character was written first, with its second image before its first: ink is 255.
    images = images_of(sets, "meta-test")["Xyz0/character03"]
    assert images.dtype == np.uint8
    assert images.shape == (2, 28, 28, 1)
    for image, seed in zip(images, (25, 24), strict=True):
        expected = center_ink(drawing(seed).convert("L")).resize((28, 28), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(image[:, :, 0], 255 - np.asarray(expected))
        assert image.max() == 255
        assert np.median(image) == 0
        assert abs(image[:, :, 0] - image[::-1, ::-1, 0].astype(int)).mean() < 12, "the square is in the middle"


def test_meta_val_is_whole_alphabets(tmp_path):
    sets = load("omniglot", make_omniglot(tmp_path, n_background=30))
    train, val = (set(sets.splits[split].groups) for split in ("meta-train", "meta-val"))
    assert (len(train), len(val)) == (8, 2)
    assert not train & val
    with pytest.raises(UserError) as error:
        load("omniglot", make_omniglot(tmp_path / "one", n_background=3))
    assert str(error.value) == (
        f"{tmp_path}/one/omniglot/images_background.zip has 1 alphabet, but needs at least 2: delete it and run "
        "'metalstm data fetch omniglot'"
    )


def test_checkpoints_of_before_find_their_data(tmp_path):
    """Not centered, and with single characters of all alphabets in meta-val."""
    root = make_omniglot(tmp_path)
    before, now = load("omniglot", root, traits=EARLIER), load("omniglot", root)
    assert before.traits == EARLIER
    assert before.digest != now.digest
    assert [len(part.classes) for part in before.splits.values()] == [10, 2, 3]
    assert load("omniglot", root).digest == now.digest
    for image, seed in zip(images_of(before, "meta-test")["Xyz0/character03"], (25, 24), strict=True):
        expected = drawing(seed).convert("L").resize((28, 28), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(image[:, :, 0], 255 - np.asarray(expected))


def test_image_size(tmp_path, cache):
    root = make_omniglot(tmp_path)
    assert load("omniglot", root, image_size=20).splits["meta-val"].image_shape == (1, 20, 20)
    assert load("omniglot", root).splits["meta-val"].image_shape == (1, 28, 28)
    assert len(list(cache.glob("*.npy"))) == 4


def test_missing_omniglot(tmp_path):
    with pytest.raises(UserError) as error:
        load("omniglot", tmp_path)
    assert str(error.value) == (
        f"omniglot needs images_background.zip, which is not in {tmp_path}/omniglot: "
        "run 'metalstm data fetch omniglot', or pass --data-root DIR"
    )


def test_the_same_zip_twice(tmp_path):
    folder = make_omniglot(tmp_path) / "omniglot"
    (folder / "images_evaluation.zip").write_bytes((folder / "images_background.zip").read_bytes())
    with pytest.raises(UserError) as error:
        load("omniglot", tmp_path)
    assert str(error.value) == (
        f"{folder}: class 'Abc0/character01' is in meta-train and in meta-test: keep one of them"
    )


@pytest.mark.data
@pytest.mark.slow
def test_real_images(real_data):
    sets = load("omniglot", real_data)
    assert sets.digest == "6a3caa8f0a9c5cfd4623f07b4074b3e91c2c4e20a765d296fbd99b3f560cf937"
    before = "8db1d96c9e09bde0e152851b7122fe0ec180771278daca25dbfe30b48543b50e"
    assert load("omniglot", real_data, traits=EARLIER).digest == before
    for split in SPLITS:
        assert (np.diff(sets.splits[split].spans) == 20).all()
        assert sorted(sets.splits[split].classes) == list(sets.splits[split].classes)
