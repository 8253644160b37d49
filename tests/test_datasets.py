import errno
import functools
import hashlib
import http.server
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metalstm import datasets, glyphs
from metalstm.datasets import SPLITS, ImagesByClass, check, describe, fetch, load, read_image
from metalstm.errors import UserError, is_full

REAL = Path(os.environ.get("METALSTM_DATA") or Path(__file__).parents[2] / "shared" / "data")
needs_data = pytest.mark.skipif(not (REAL / "omniglot").is_dir(), reason=f"the real data is not in {REAL}")
CIFAR_CLASSES = sorted(name for names in datasets._class_lists("cifar-fs").values() for name in names)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv("METALSTM_CACHE", str(path))
    return path


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("real-cache")


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def drawing(seed: int) -> Image.Image:
    """White paper with a black square somewhere, 1 bit, as Omniglot's."""
    pixels = np.full((105, 105), True)
    row, column = np.random.RandomState(seed).randint(0, 60, 2)
    pixels[row : row + 40, column : column + 40] = False
    return Image.fromarray(pixels)


def make_omniglot(root: Path, n_background: int = 12, n_evaluation: int = 3, n_images: int = 2) -> Path:
    (root / "omniglot").mkdir(parents=True)
    seed = 0
    for archive, alphabet, n in (("background", "Abc", n_background), ("evaluation", "Xyz", n_evaluation)):
        with zipfile.ZipFile(root / "omniglot" / f"images_{archive}.zip", "w") as file:
            # Written in reverse order, as loading must not depend on it.
            for k in reversed(range(n)):
                for image in reversed(range(n_images)):
                    buffer = io.BytesIO()
                    drawing(seed).save(buffer, "png")
                    seed += 1
                    name = f"images_{archive}/{alphabet}/character{k + 1:02}/{k + 1:04}_{image + 1:02}.png"
                    file.writestr(zipfile.ZipInfo(name), buffer.getvalue())  # the same bytes at any time
            file.writestr(zipfile.ZipInfo(f"__MACOSX/images_{archive}/{alphabet}/._character01.png"), b"no image")
    return root


class Python2Pickler(pickle._Pickler):
    """Writes bytes and NumPy's names as Python 2 did, which pickled the real CIFAR-100."""

    dispatch: Any = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_bytes(self: Any, obj: bytes):
        self.write(pickle.BINSTRING + len(obj).to_bytes(4, "little") + obj)
        self.memoize(obj)

    dispatch[bytes] = save_bytes


def python2_pickle(value: object) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def write_tar(root: Path, parts: dict[str, bytes]) -> Path:
    path = root / "cifar100" / "cifar-100-python.tar.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for part, content in parts.items():
            info = tarfile.TarInfo(f"cifar-100-python/{part}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@functools.cache
def cifar_images() -> list[tuple[str, str, np.ndarray]]:
    """(class, file, pixels) of three images a class, in no order."""
    random = np.random.RandomState(0)
    names = [(label, f"{label}_s_{k}.png") for label in CIFAR_CLASSES for k in range(3)]
    return [(*names[k], random.randint(0, 256, (32, 32, 3), dtype=np.uint8)) for k in random.permutation(len(names))]


def make_cifar_tar(root: Path, write=python2_pickle) -> Path:
    meta = {b"fine_label_names": [label.encode() for label in CIFAR_CLASSES]}
    parts = {"meta": write(meta)}
    for part, images in (("train", cifar_images()[:200]), ("test", cifar_images()[200:])):
        rows = np.stack([pixels.transpose(2, 0, 1).reshape(-1) for _, _, pixels in images])
        labels = [CIFAR_CLASSES.index(label) for label, _, _ in images]
        files = [file.encode() for _, file, _ in images]
        parts[part] = write({b"data": rows, b"fine_labels": labels, b"filenames": files})
    return write_tar(root, parts)


def make_cifar_zip(root: Path) -> Path:
    path = root / "cifar100" / "cifar100.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for label, name, pixels in cifar_images():
            file.writestr(f"cifar100/{label}/{name}", png(pixels))
    return path


def make_folder(path: Path, n_classes: int = 5, n_images: int = 3, size: tuple[int, int] = (40, 50)) -> Path:
    random = np.random.RandomState(1)
    for k in range(n_classes):
        (path / f"class{k}").mkdir(parents=True)
        for image in range(n_images):
            pixels = random.randint(0, 256, (*size, 3), dtype=np.uint8)
            (path / f"class{k}" / f"{image}.png").write_bytes(png(pixels))
    return path


def images_of(sets, split: str) -> dict[str, np.ndarray]:
    part = sets.splits[split]
    return {name: part.images[start:stop] for name, (start, stop) in zip(part.classes, part.spans, strict=True)}


def start(code: str, *arguments: object, cache: Path) -> subprocess.Popen[str]:
    """A Python process of its own; it starts when a line comes on its stdin."""
    code = "import sys; from pathlib import Path; from metalstm import datasets; sys.stdin.readline();" + code
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "METALSTM_CACHE": str(cache)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


LOAD_OMNIGLOT = "print(datasets.load('omniglot', Path(sys.argv[1])).digest)"


# Images by class


def toy() -> ImagesByClass:
    images = np.arange(5 * 2 * 2, dtype=np.uint8).reshape(5, 2, 2, 1)
    return ImagesByClass(images, ("a", "b"), np.array([[0, 2], [2, 5]]))


def test_image_shape_has_channels_first():
    assert ImagesByClass(np.zeros((1, 4, 5, 3), np.uint8), ("a",), np.array([[0, 1]])).image_shape == (3, 4, 5)


def test_subset_shares_images_and_keeps_the_order():
    whole = toy()
    part = whole.subset(["b"])
    assert part.classes == ("b",)
    assert part.spans.tolist() == [[2, 5]]
    assert part.images is whole.images
    assert whole.subset(["b", "a"]).classes == ("a", "b")


def test_subset_with_an_unknown_class():
    with pytest.raises(UserError) as error:
        toy().subset(["a", "bb"])
    assert str(error.value) == "unknown class 'bb', did you mean 'b'? allowed: a, b"


def test_rotated_makes_new_classes_of_the_own_images_only():
    turned = toy().subset(["b"]).rotated()
    assert turned.classes == ("b", "b@90", "b@180", "b@270")
    assert turned.spans.tolist() == [[0, 3], [3, 6], [6, 9], [9, 12]]
    assert not turned.images.flags.writeable
    for turns in range(4):
        expected = np.rot90(toy().images[2:5], turns, axes=(1, 2))
        np.testing.assert_array_equal(turned.images[3 * turns : 3 * turns + 3], expected)


def test_mirrored_doubles_the_own_images_of_each_class():
    both = toy().subset(["b"]).mirrored()
    assert both.classes == ("b",)
    assert both.spans.tolist() == [[0, 6]]
    assert not both.images.flags.writeable
    np.testing.assert_array_equal(both.images[:3], toy().images[2:5])
    np.testing.assert_array_equal(both.images[3:], toy().images[2:5, :, ::-1])


# Names


def test_unknown_data_set():
    with pytest.raises(UserError) as error:
        load("omniglott")
    assert str(error.value) == (
        "unknown data set 'omniglott', did you mean 'omniglot'? allowed: cifar-fs, fc100, folder:DIR, glyphs, "
        "mini-imagenet, omniglot"
    )


def test_image_size_below_one():
    with pytest.raises(UserError) as error:
        load("omniglot", image_size=0)
    assert str(error.value) == "image size 0 is too small: pass 1 or more pixels"


def test_importing_is_light():
    code = "import sys, metalstm.datasets; print({'torch', 'PIL.Image', 'pooch'}.intersection(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_class_lists_partition_cifar_100():
    for name, sizes in (("cifar-fs", [64, 16, 20]), ("fc100", [60, 20, 20])):
        lists = datasets._class_lists(name)
        assert [len(lists[split]) for split in SPLITS] == sizes
        assert sorted(label for labels in lists.values() for label in labels) == CIFAR_CLASSES


# Omniglot


def test_omniglot(tmp_path):
    sets = load("omniglot", make_omniglot(tmp_path))
    assert sets.name == "omniglot"
    assert sets.licence == "MIT, Copyright (c) 2015 Brenden Lake"
    assert {split: len(part.classes) for split, part in sets.splits.items()} == {
        "meta-train": 10,  # 2 of 12 is the share 164 of 964
        "meta-val": 2,
        "meta-test": 3,
    }
    assert sets.splits["meta-test"].classes == ("Xyz/character01", "Xyz/character02", "Xyz/character03")
    assert all(list(part.classes) == sorted(part.classes) for part in sets.splits.values())
    assert all(part.image_shape == (1, 28, 28) for part in sets.splits.values())
    # The last character was written first, with its second image before its first: ink is 255.
    images = images_of(sets, "meta-test")["Xyz/character03"]
    assert images.dtype == np.uint8
    assert images.shape == (2, 28, 28, 1)
    for image, seed in zip(images, (25, 24), strict=True):
        expected = drawing(seed).convert("L").resize((28, 28), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(image[:, :, 0], 255 - np.asarray(expected))
        assert image.max() == 255
        assert np.median(image) == 0


def test_omniglot_split_is_seeded():
    names = [f"{k:03}" for k in range(964)]
    val = sorted(datasets._permuted(names)[: datasets.OMNIGLOT_VAL])
    assert len(val) == 164
    assert val[:5] == ["005", "008", "014", "027", "030"]


def test_images_are_mapped_and_read_only(tmp_path):
    images = load("omniglot", make_omniglot(tmp_path)).splits["meta-test"].images
    assert isinstance(images.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_image_size(tmp_path, cache):
    root = make_omniglot(tmp_path)
    assert load("omniglot", root, image_size=20).splits["meta-val"].image_shape == (1, 20, 20)
    assert load("omniglot", root).splits["meta-val"].image_shape == (1, 28, 28)
    assert len(list(cache.glob("*.npy"))) == 4


def test_data_root_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("METALSTM_DATA", str(make_omniglot(tmp_path / "elsewhere")))
    assert load("omniglot").digest == load("omniglot", tmp_path / "elsewhere").digest


def test_missing_omniglot(tmp_path):
    with pytest.raises(UserError) as error:
        load("omniglot", tmp_path)
    assert str(error.value) == (
        f"omniglot needs images_background.zip, which is not in {tmp_path}/omniglot: "
        "run 'metalstm data fetch omniglot', or pass --data-root DIR"
    )


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
        f"{path} is damaged (Bad CRC-32 for file 'images_background/Abc/character12/0012_02.png'): "
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


def test_the_same_zip_twice(tmp_path):
    folder = make_omniglot(tmp_path) / "omniglot"
    (folder / "images_evaluation.zip").write_bytes((folder / "images_background.zip").read_bytes())
    with pytest.raises(UserError) as error:
        load("omniglot", tmp_path)
    assert str(error.value) == (
        f"{folder}: class 'Abc/character01' is in meta-train and in meta-test: keep one of them"
    )


# CIFAR-100


def test_cifar_is_the_same_from_tar_zip_and_folder(tmp_path):
    make_cifar_tar(tmp_path / "tar")
    make_cifar_zip(tmp_path / "zip")
    for label, name, pixels in cifar_images():
        (tmp_path / "folder" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / label / name).write_bytes(png(pixels))
    for split, labels in datasets._class_lists("cifar-fs").items():
        (tmp_path / "folder" / f"{split}.txt").write_text("\n".join(labels))
    tar, zipped = load("cifar-fs", tmp_path / "tar"), load("cifar-fs", tmp_path / "zip")
    folder = load(f"folder:{tmp_path / 'folder'}")
    assert tar.digest == zipped.digest == folder.digest
    for split in SPLITS:
        assert tar.splits[split].classes == zipped.splits[split].classes == folder.splits[split].classes
        np.testing.assert_array_equal(tar.splits[split].images, zipped.splits[split].images)
        for label, images in images_of(tar, split).items():
            own = sorted((name, pixels.tobytes()) for own, name, pixels in cifar_images() if own == label)
            assert [image.tobytes() for image in images] == [pixels for _, pixels in own]


def test_cifar_fs_and_fc100_share_one_entry_of_the_cache(tmp_path, cache):
    make_cifar_zip(tmp_path)
    one, other = load("cifar-fs", tmp_path), load("fc100", tmp_path)
    assert [len(one.splits[split].classes) for split in SPLITS] == [64, 16, 20]
    assert [len(other.splits[split].classes) for split in SPLITS] == [60, 20, 20]
    assert one.digest != other.digest
    assert len(list(cache.glob("*.npy"))) == 1


def test_tar_of_python_3_is_read_as_well(tmp_path):
    make_cifar_tar(tmp_path / "2")
    make_cifar_tar(tmp_path / "3", write=functools.partial(pickle.dumps, protocol=4))
    assert load("fc100", tmp_path / "2").digest == load("fc100", tmp_path / "3").digest


def test_tar_goes_before_zip(tmp_path):
    make_cifar_tar(tmp_path)
    (tmp_path / "cifar100" / "cifar100.zip").write_bytes(b"not read")
    load("cifar-fs", tmp_path)


class Evil:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_malicious_pickle_is_refused_and_not_run(tmp_path):
    path = write_tar(tmp_path, {"meta": pickle.dumps({b"fine_label_names": Evil(tmp_path / "pwned")})})
    with pytest.raises(UserError) as error:
        load("cifar-fs", tmp_path)
    assert str(error.value) == (
        f"{path} is damaged (its pickle asks for {os.system.__module__}.system, which is refused): "
        "delete it and run 'metalstm data fetch cifar-fs'"
    )
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["builtins.eval", "numpy.load", "numpy.ndarray.tofile", "numpy.core.multiarray.x"])
def test_no_other_name_is_unpickled(name):
    module, _, attribute = name.rpartition(".")
    with pytest.raises(pickle.UnpicklingError, match="which is refused"):
        datasets._unpickle(f"c{module}\n{attribute}\n.".encode())


def test_truncated_tar(tmp_path):
    path = make_cifar_tar(tmp_path)
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(UserError) as error:
        load("fc100", tmp_path)
    assert str(error.value) == (
        f"{path} is damaged (Compressed file ended before the end-of-stream marker was reached): "
        "delete it and run 'metalstm data fetch fc100'"
    )


def test_tar_with_labels_missing(tmp_path):
    empty = {b"data": np.zeros((3, 3072), np.uint8), b"fine_labels": [0, 0], b"filenames": [b"1", b"2", b"3"]}
    write_tar(
        tmp_path,
        {
            "meta": pickle.dumps({b"fine_label_names": [b"a"]}),
            "train": pickle.dumps(empty),
            "test": pickle.dumps(empty),
        },
    )
    with pytest.raises(UserError, match=r"is damaged \(4 labels, 6 names, 6 images of uint8\): delete it"):
        load("fc100", tmp_path)


def test_missing_cifar(tmp_path):
    with pytest.raises(UserError) as error:
        load("fc100", tmp_path)
    assert str(error.value) == (
        f"fc100 needs cifar-100-python.tar.gz, which is not in {tmp_path}/cifar100: "
        "run 'metalstm data fetch fc100', or pass --data-root DIR"
    )


def test_cifar_without_a_class(tmp_path):
    path = tmp_path / "cifar100" / "cifar100.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("cifar100/apple/1.png", png(np.zeros((32, 32, 3), np.uint8)))
    with pytest.raises(UserError) as error:
        load("cifar-fs", tmp_path)
    assert str(error.value) == (
        f"{path} has no class 'aquarium_fish', so it is not CIFAR-100: delete it and run 'metalstm data fetch cifar-fs'"
    )


# Folders


def test_folder_without_lists(tmp_path):
    sets = load(f"folder:{make_folder(tmp_path / 'birds', n_classes=25)}")
    assert [len(sets.splits[split].classes) for split in SPLITS] == [16, 4, 5]
    assert len({name for part in sets.splits.values() for name in part.classes}) == 25
    assert sets.splits["meta-train"].image_shape == (3, 32, 32)
    assert sets.licence == "terms of the owner of the images"


def test_folder_with_three_classes_has_one_in_each_split(tmp_path):
    sets = load(f"folder:{make_folder(tmp_path / 'birds', n_classes=3)}")
    assert [len(sets.splits[split].classes) for split in SPLITS] == [1, 1, 1]


def test_folder_with_lists_leaves_other_classes_out(tmp_path):
    folder = make_folder(tmp_path / "birds")
    for split, text in zip(SPLITS, ("class3\nclass0\n", "\nclass1\r\n", "class4"), strict=True):
        (folder / f"{split}.txt").write_text(text)
    sets = load(f"folder:{folder}")
    assert [sets.splits[split].classes for split in SPLITS] == [("class0", "class3"), ("class1",), ("class4",)]
    assert len(sets.splits["meta-train"].images) == 12


def test_folder_image_is_cropped_upright_and_resized(tmp_path):
    folder = make_folder(tmp_path / "birds", size=(30, 50))
    # The left half of the stored picture is red; turned upright (orientation 6), it is the upper half.
    picture = Image.new("RGB", (60, 90), "blue")
    picture.paste("red", (0, 0, 30, 90))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "class0" / "a.jpg", exif=exif, quality=95)
    sets = load(f"folder:{folder}", image_size=16)
    stored = next(images_of(sets, split)["class0"] for split in SPLITS if "class0" in sets.splits[split].classes)
    assert stored.shape == (4, 16, 16, 3)
    expected = Image.open(folder / "class0" / "0.png").resize((16, 16), Image.Resampling.LANCZOS, box=(10, 0, 40, 30))
    np.testing.assert_array_equal(stored[0], np.asarray(expected))
    assert stored[3, 1, :, 0].min() > 240
    assert stored[3, -2, :, 2].min() > 240


def test_hidden_files_are_ignored(tmp_path):
    folder = make_folder(tmp_path / "birds")
    digest = load(f"folder:{folder}").digest
    (folder / ".git").mkdir()
    (folder / "class0" / ".DS_Store").write_bytes(b"hidden")
    assert load(f"folder:{folder}").digest == digest


def test_folder_is_decoded_anew_where_a_file_has_changed(tmp_path, cache):
    folder = make_folder(tmp_path / "birds")
    digest = load(f"folder:{folder}").digest
    assert load(f"folder:{folder}").digest == digest
    assert len(list(cache.glob("*.npy"))) == 1
    (folder / "class0" / "0.png").write_bytes((folder / "class1" / "0.png").read_bytes())
    assert load(f"folder:{folder}").digest != digest


def test_digest_tells_splits_and_names(tmp_path):
    folder = make_folder(tmp_path / "birds")
    digests = set()
    for train, val in (("class0", "class1"), ("class1", "class0")):
        for split, label in zip(SPLITS, (train, val, "class2"), strict=True):
            (folder / f"{split}.txt").write_text(label)
        digests.add(load(f"folder:{folder}").digest)
    (folder / "class2").rename(folder / "class9")
    (folder / "meta-test.txt").write_text("class9")
    digests.add(load(f"folder:{folder}").digest)
    assert len(digests) == 3


def write_lists(folder: Path, train: str | None = "class0", val: str | None = "class1", test: str | None = "class2"):
    for split, text in zip(SPLITS, (train, val, test), strict=True):
        if text is not None:
            (folder / f"{split}.txt").write_text(text)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (
            lambda d: d.rename(d.parent / "gone"),
            "{d} is not a folder: name one with images in <class>/",
        ),
        (
            lambda d: [c.rename(d / f".{c.name}") for c in list(d.iterdir())],
            "{d} has no class folders: put the images of each class into {d}/<class>/",
        ),
        (
            lambda d: [(d / f"class{k}").rename(d / f".class{k}") for k in range(3)],
            "{d} has 2 classes, but the three splits need at least 3: add 1",
        ),
        (lambda d: (d / "class9").mkdir(), "class folder {d}/class9 has no images: add some, or remove it"),
        (
            lambda d: write_lists(d, val=None, test=None),
            "{d} has meta-train.txt but not meta-val.txt, meta-test.txt: write all three lists, or none",
        ),
        (
            lambda d: write_lists(d, val="class1\nclas2"),
            "{d}/meta-val.txt names 'clas2', but {d} has no such folder: mend it",
        ),
        (
            lambda d: write_lists(d, val="../birds"),
            "{d}/meta-val.txt names '../birds', but {d} has no such folder: mend it",
        ),
        (lambda d: write_lists(d, test="\n"), "{d}/meta-test.txt names no class: write one class name a line"),
        (
            lambda d: write_lists(d, test="class0"),
            "{d}: class 'class0' is in meta-train and in meta-test: keep one of them",
        ),
        (
            lambda d: write_lists(d, val="class1\nclass1"),
            "{d}: class 'class1' is in meta-val and in meta-val: keep one of them",
        ),
        (
            lambda d: (d / "class1" / "notes.txt").write_text("no image"),
            "cannot read {d}/class1/notes.txt as an image (no format that is known here): save it as JPEG or PNG, or "
            "remove it",
        ),
        (
            lambda d: (d / "class1" / "1.png").write_bytes((d / "class1" / "1.png").read_bytes()[:2000]),
            "cannot read {d}/class1/1.png as an image (image file is truncated): mend or remove it",
        ),
    ],
)
def test_faults_of_a_folder(tmp_path, prepare, message):
    folder = make_folder(tmp_path / "birds")
    prepare(folder)
    with pytest.raises(UserError) as error:
        load(f"folder:{folder}")
    assert str(error.value) == message.format(d=folder)


def test_decompression_bomb(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "birds", n_classes=3, size=(40, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    with pytest.raises(UserError) as error:
        load(f"folder:{folder}")
    assert str(error.value) == (
        f"cannot read {folder}/class0/0.png as an image (Image size (2000 pixels) exceeds limit of 1800 pixels, "
        "could be decompression bomb DOS attack.): mend or remove it"
    )


def test_read_image_of_unusual_modes(tmp_path):
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "16bit.png")
    assert read_image(tmp_path / "16bit.png", 2).tolist() == [[[128] * 3] * 2] * 2
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "transparent.png")
    assert read_image(tmp_path / "transparent.png", 2, channels=1).tolist() == [[[255]] * 2] * 2
    Image.new("1", (4, 4), 1).save(tmp_path / "1bit.png")
    assert read_image(tmp_path / "1bit.png", 2).tolist() == [[[255] * 3] * 2] * 2


# The cache


def test_second_load_decodes_nothing(tmp_path, monkeypatch):
    root = make_omniglot(tmp_path)
    digest = load("omniglot", root).digest
    monkeypatch.setattr(datasets, "square", None)
    assert load("omniglot", root).digest == digest


def test_cache_is_keyed_by_content_not_by_place(tmp_path, cache):
    first, second = make_omniglot(tmp_path / "1"), make_omniglot(tmp_path / "2")
    before = first.stat().st_mtime
    assert load("omniglot", first).digest == load("omniglot", second).digest
    assert len(list(cache.iterdir())) == 4
    assert first.stat().st_mtime == before


@pytest.mark.parametrize("suffix", [".npy", ".json"])
@pytest.mark.parametrize("damage", [lambda c: c[:-20], lambda c: c[:5], lambda c: b"", lambda c: b"\0" * len(c)])
def test_damaged_cache_is_noticed_and_made_anew(tmp_path, cache, suffix, damage):
    root = make_omniglot(tmp_path)
    digest = load("omniglot", root).digest
    whole = {path: path.read_bytes() for path in cache.iterdir()}
    for path in cache.glob(f"*{suffix}"):
        path.write_bytes(damage(whole[path]))
    assert load("omniglot", root).digest == digest
    assert {path: path.read_bytes() for path in cache.iterdir()} == whole


@pytest.mark.parametrize("index", [[], {}, [["a", 1]], [["a", 1, "x"]], [["a", "b", "c"]], 3])
def test_cache_with_a_wrong_index_is_made_anew(tmp_path, cache, index):
    root = make_omniglot(tmp_path)
    digest = load("omniglot", root).digest
    for path in cache.glob("*.json"):
        path.write_text(json.dumps(index))
    assert load("omniglot", root).digest == digest


def test_two_processes_at_once(tmp_path, cache):
    root = make_omniglot(tmp_path, n_background=40, n_images=20)
    both = [start(LOAD_OMNIGLOT, root, cache=cache) for _ in range(2)]
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    results = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert results[0][0] == results[1][0] == load("omniglot", root).digest + "\n"
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".json", ".npy", ".npy"]


def test_killed_decode_leaves_nothing_broken(tmp_path, cache):
    root = make_omniglot(tmp_path, n_background=100, n_images=20)
    process = start(LOAD_OMNIGLOT, root, cache=cache)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    while not list(cache.glob(".decoding-*/images.npy")):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert [path.name.partition("-")[0] for path in cache.iterdir()] == [".decoding"]
    sets = load("omniglot", root)
    assert len(sets.splits["meta-train"].classes) == 83
    assert Counter(path.suffix for path in cache.iterdir() if path.is_file()) == {".json": 2, ".npy": 2}


def test_old_leftovers_are_removed_and_young_ones_kept(tmp_path, cache):
    for name, age in ((".decoding-old", 48), (".decoding-young", 1)):
        (cache / name).mkdir(parents=True)
        (cache / name / "images.npy").write_bytes(b"")
        then = time.time() - age * 3600
        os.utime(cache / name / "images.npy", (then, then))
        os.utime(cache / name, (then, then))
    load("omniglot", make_omniglot(tmp_path))
    assert [path.name for path in cache.glob(".decoding-*")] == [".decoding-young"]


def test_full_disk(tmp_path, cache):
    pytest.importorskip("resource")
    root = make_omniglot(tmp_path, n_background=40, n_images=20)
    # A limit on the size of files fails a write as a full disk does.
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: datasets.load('omniglot', Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    output, errors = start(code, root, cache=cache).communicate("\n", timeout=60)
    assert errors == ""
    assert output == (
        f"UserError no space left in {cache} for the decoded images, which need 1 MB: "
        "free some, or set METALSTM_CACHE to another folder\n"
    )
    assert list(cache.iterdir()) == []
    load("omniglot", root)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_way_to_be_full(number):
    assert is_full(OSError(number, ""))
    assert not is_full(OSError(errno.EACCES, ""))


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("METALSTM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError) as error:
        load("omniglot", make_omniglot(tmp_path))
    assert str(error.value) == (
        f"cannot write the decoded images to {tmp_path}/file/cache "
        f"([Errno 20] Not a directory: '{tmp_path}/file/cache'): set METALSTM_CACHE to a folder with 1 MB of space"
    )


# Files: fetch, check, describe


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server with an Omniglot of its own, whose checksums are made known."""
    root = make_omniglot(tmp_path / "served")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):  # quiet
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=root / "omniglot"))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("_BACKGROUND", "_EVALUATION"):
        path = f"omniglot/images_{name[1:].lower()}.zip"
        md5 = hashlib.md5((root / path).read_bytes()).hexdigest()
        url = f"http://127.0.0.1:{web.server_port}/{Path(path).name}"
        monkeypatch.setattr(datasets, name, datasets._Archive(path, url=url, md5=md5))
    yield root
    web.shutdown()
    web.server_close()


def test_fetch(tmp_path, server, monkeypatch):
    root = tmp_path / "root"
    assert [state for _, state in check("omniglot", root)] == ["missing", "missing"]
    paths = fetch("omniglot", root)
    assert paths == [root / "omniglot" / "images_background.zip", root / "omniglot" / "images_evaluation.zip"]
    assert check("omniglot", root) == [(path, "original") for path in paths]
    assert load("omniglot", root).digest == load("omniglot", server).digest
    # Files that are there are not fetched again; a damaged one is.
    paths[0].write_bytes(b"damaged")
    monkeypatch.setattr(datasets, "_EVALUATION", datasets._Archive(**{**vars(datasets._EVALUATION), "url": "http://x"}))
    assert fetch("omniglot", root) == paths
    assert [state for _, state in check("omniglot", root)] == ["original", "original"]


def test_fetch_shows_progress(tmp_path, server, monkeypatch):
    seen: dict[str, Any] = {}

    class Bar(datasets._DownloadBar):
        def close(self):
            super().close()
            task = self._bar.tasks[self._task]
            seen[task.description] = (task.completed, task.total)

    monkeypatch.setattr(datasets, "_DownloadBar", Bar)
    for path in fetch("omniglot", tmp_path / "root"):
        size = path.stat().st_size // 1024
        assert seen[f"{path.name} (kB)"] == (size, size)


def test_fetch_with_a_wrong_checksum_leaves_no_file(tmp_path, server):
    (server / "omniglot" / "images_background.zip").write_bytes(b"something else")
    with pytest.raises(UserError) as error:
        fetch("omniglot", tmp_path / "root")
    path = tmp_path / "root" / "omniglot" / "images_background.zip"
    assert str(error.value).startswith(f"cannot download {datasets._BACKGROUND.url} to {path} (MD5 hash of downloaded")
    assert str(error.value).endswith("): try again, or put the file there yourself")
    assert "\n" not in str(error.value)
    assert list(path.parent.iterdir()) == []


def test_fetch_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(
        datasets, "_CIFAR_TAR", datasets._Archive("cifar100/x.tar.gz", "http://127.0.0.1:1/x", "0" * 32)
    )
    with pytest.raises(UserError, match=r"^cannot download http://127.0.0.1:1/x to .*/x.tar.gz \(.*\): try again, or"):
        fetch("fc100", tmp_path)


def test_fetch_and_check_of_what_has_no_files(tmp_path):
    assert fetch("glyphs", tmp_path) == []
    assert check("glyphs", tmp_path) == []
    for function in (fetch, check):
        with pytest.raises(UserError, match=r"^unknown data set 'cifar', did you mean 'cifar-fs'"):
            function("cifar", tmp_path)
        with pytest.raises(UserError) as error:
            function("folder:birds", tmp_path)
        assert str(error.value) == "'folder:birds' is a folder of your own: there is nothing to fetch or check"


def test_check_of_cifar(tmp_path):
    tar, zipped = (tmp_path / archive.path for archive in datasets._archives("fc100"))
    assert check("fc100", tmp_path) == [(tar, "missing")]
    make_cifar_zip(tmp_path)
    assert check("fc100", tmp_path) == [(zipped, "unknown checksum")]
    make_cifar_tar(tmp_path)
    assert check("fc100", tmp_path) == [(tar, "unknown checksum"), (zipped, "unknown checksum")]


def test_describe(tmp_path):
    records = {record.name: record for record in describe(tmp_path)}
    assert list(records) == list(datasets.NAMES)
    assert {name: record.present for name, record in records.items()} == {
        "glyphs": True,
        "omniglot": False,
        "cifar-fs": False,
        "fc100": False,
        "mini-imagenet": False,
    }
    assert records["omniglot"].classes == {"meta-train": 800, "meta-val": 164, "meta-test": 659}
    assert records["fc100"].classes == {"meta-train": 60, "meta-val": 20, "meta-test": 20}
    assert records["cifar-fs"].image_shape == (3, 32, 32)
    make_omniglot(tmp_path)
    make_cifar_zip(tmp_path)
    assert [record.name for record in describe(tmp_path) if not record.present] == ["mini-imagenet"]


def test_glyphs(cache, monkeypatch):
    # Drawing the real ones takes a minute.
    images = np.random.RandomState(0).randint(0, 256, (80, 28, 28, 1), dtype=np.uint8)
    members = {"meta-train": ("b", "a"), "meta-val": ("d",), "meta-test": ("c",)}
    calls = []
    monkeypatch.setattr(glyphs, "render", lambda: calls.append(1) or (images, ("b", "a", "d", "c"), members))
    sets = load("glyphs")
    assert load("glyphs").digest == sets.digest
    assert len(calls) == 1
    assert [sets.splits[split].classes for split in SPLITS] == [("a", "b"), ("d",), ("c",)]
    np.testing.assert_array_equal(images_of(sets, "meta-train")["a"], images[20:40])
    np.testing.assert_array_equal(images_of(sets, "meta-train")["b"], images[:20])
    np.testing.assert_array_equal(images_of(sets, "meta-test")["c"], images[60:])
    monkeypatch.setattr(glyphs, "KEY", "another")
    load("glyphs")
    assert len(calls) == 2


@pytest.mark.slow
def test_described_glyphs_are_those_drawn():
    described = next(record for record in describe() if record.name == "glyphs")
    splits = load("glyphs").splits
    assert {split: len(part.classes) for split, part in splits.items()} == described.classes
    assert splits["meta-train"].image_shape == described.image_shape


# The real data


@needs_data
@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n_classes", "n_images", "digest"),
    [
        ("omniglot", [800, 164, 659], 20, "8db1d96c9e09bde0e152851b7122fe0ec180771278daca25dbfe30b48543b50e"),
        ("cifar-fs", [64, 16, 20], 600, "b15440be340c968582ddf4f29e0f5f584cb27acf9ca5d318eef1d26278c3cd62"),
        ("fc100", [60, 20, 20], 600, "172b63af24a1c369b238394b3626c875001b60d63d6c88e5e5952ed9581fc5fa"),
    ],
)
def test_real_data(name, n_classes, n_images, digest, real_cache, monkeypatch):
    monkeypatch.setenv("METALSTM_CACHE", str(real_cache))
    sets = load(name, REAL)
    assert [len(sets.splits[split].classes) for split in SPLITS] == n_classes
    assert all((np.diff(part.spans) == n_images).all() for part in sets.splits.values())
    assert all(list(part.classes) == sorted(part.classes) for part in sets.splits.values())
    assert sets.digest == digest


@needs_data
@pytest.mark.data
@pytest.mark.slow
def test_real_cifar_has_the_published_mean(real_cache, monkeypatch):
    monkeypatch.setenv("METALSTM_CACHE", str(real_cache))
    images = load("cifar-fs", REAL).splits["meta-train"].images  # all 60,000: the classes share one array
    # The published mean is that of the 50,000 training images.
    np.testing.assert_allclose(images.mean((0, 1, 2)) / 255, [0.5071, 0.4865, 0.4409], atol=2e-3)


@needs_data
@pytest.mark.data
def test_real_files_are_known():
    assert {state for name in ("omniglot", "fc100") for _, state in check(name, REAL)} <= {"original", "rebuilt"}
