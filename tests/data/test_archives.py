import gzip
import tarfile
import zipfile

import pytest

from metalstm.data import archives, load
from metalstm.errors import UserError

from .makers import make_omniglot, write_tar


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


def test_a_small_zip_of_large_members(tmp_path, monkeypatch):
    path = make_omniglot(tmp_path) / "omniglot" / "images_background.zip"
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images_background/Abc/character99/0099_01.png", bytes(20_000_000))
    assert path.stat().st_size < 50_000
    with pytest.raises(UserError) as error:
        load("omniglot", tmp_path)
    said = str(error.value)
    assert said.startswith(f"{path} unpacks to 20,00")
    assert said.endswith(
        " bytes, the largest image to 20,000,000; at most 536,870,912 and 16,777,216 are read: delete it and run "
        "'metalstm data fetch omniglot'"
    )
    path = make_omniglot(tmp_path / "many") / "omniglot" / "images_background.zip"
    monkeypatch.setattr(archives, "MAX_UNPACKED", 1000)
    with pytest.raises(UserError, match="at most 1,000 and "):
        load("omniglot", tmp_path / "many")


def test_a_small_tar_of_large_members(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_UNPACKED", 10_000_000)
    path = write_tar(tmp_path, {"meta": b"", "test": bytes(8_000_000), "train": bytes(8_000_000)})
    assert path.stat().st_size < 200_000
    with pytest.raises(UserError) as error:
        load("fc100", tmp_path)
    assert str(error.value) == (
        f"{path} is damaged (it unpacks to more than 10,000,000 bytes): delete it and run 'metalstm data fetch fc100'"
    )
    # A name of so many bytes, which tarfile would read at once.
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 2**40
    path.write_bytes(gzip.compress(name.tobuf(tarfile.GNU_FORMAT) + bytes(1024)))
    with pytest.raises(UserError, match="it unpacks to more than 10,000,000 bytes"):
        load("fc100", tmp_path)


def test_a_bounded_gzip_file_reads_what_is_within_its_bounds(tmp_path, monkeypatch):
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(range(100))))
    monkeypatch.setattr(archives, "MAX_UNPACKED", 100)
    with archives.BoundedGzip(tmp_path / "x.gz") as file:
        assert file.read(3) == bytes([0, 1, 2])
        file.seek(5)
        assert file.read(95) == bytes(range(5, 100))
        file.seek(0)
        for read in (lambda: file.read(101), file.read, lambda: file.seek(101)):
            with pytest.raises(ValueError, match="it unpacks to more than 100 bytes"):
                read()


def test_a_message_holds_little_of_what_a_zip_holds(tmp_path):
    root = make_omniglot(tmp_path)
    path = root / "omniglot" / "images_background.zip"
    content = bytearray(path.read_bytes())
    content[26:28] = (60_000).to_bytes(2, "little")  # length of the first member's name, in its own header
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged") as caught:
        load("omniglot", root)
    assert len(str(caught.value)) < 1000
