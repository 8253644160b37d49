import zipfile

import pytest

from metalstm.data import load
from metalstm.errors import UserError

from .makers import make_omniglot


def test_truncated_zip(tmp_path):
    path = make_omniglot(tmp_path) / "omniglot" / "images_evaluation.zip"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError) as error:
        load("omniglot", tmp_path)
    assert str(error.value) == (
        f"{path} is damaged (File is not a zip file): delete it and run 'metalstm data fetch omniglot'"
    )


def test_zip_with_a_changed_byte(tmp_path, cache):
    path = make_omniglot(tmp_path) / "omniglot" / "images_background.zip"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load("omniglot", tmp_path)
    assert str(error.value) == (
        f"{path} is damaged (Bad CRC-32 for file 'images_background/Abc3/character12/0012_02.png'): "
        "delete it and run 'metalstm data fetch omniglot'"
    )
    assert list(cache.iterdir()) == []


def test_zip_with_a_broken_image(tmp_path):
    path = make_omniglot(tmp_path) / "omniglot" / "images_background.zip"
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("images_background/Abc/character99/0099_01.png", b"no image")
    with pytest.raises(UserError, match=r"images_background\.zip is damaged \(cannot identify image file"):
        load("omniglot", tmp_path)


def test_zip_of_another_layout(tmp_path):
    path = make_omniglot(tmp_path) / "omniglot" / "images_background.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("images/0001.png", b"")
    with pytest.raises(UserError) as error:
        load("omniglot", tmp_path)
    assert str(error.value) == (
        f"{path} has no images images_*/<alphabet>/<character>/*.png: delete it and run 'metalstm data fetch omniglot'"
    )
