import contextlib
import functools
import os
import pickle
import resource
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from metalstm.data import DATASETS, SPLITS, check, load
from metalstm.data.cifar import class_lists, superclasses, unpickle
from metalstm.errors import UserError
from metalstm.settings import Traits

from .makers import (
    CIFAR_CLASSES,
    cifar_images,
    images_of,
    make_cifar_tar,
    make_cifar_zip,
    png,
    write_tar,
)


def test_class_lists_partition_cifar_100():
    for name, sizes in (("cifar-fs", [64, 16, 20]), ("fc100", [60, 20, 20])):
        lists = class_lists(name)
        assert [len(lists[split]) for split in SPLITS] == sizes
        assert sorted(label for labels in lists.values() for label in labels) == CIFAR_CLASSES


def test_cifar_is_the_same_from_tar_zip_and_folder(tmp_path):
    make_cifar_tar(tmp_path / "tar")
    make_cifar_zip(tmp_path / "zip")
    for label, name, pixels in cifar_images():
        (tmp_path / "folder" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / label / name).write_bytes(png(pixels))
    for split, labels in class_lists("cifar-fs").items():
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
    assert one.traits == other.traits == Traits(mirrors=True)
    assert [len(one.splits[split].classes) for split in SPLITS] == [64, 16, 20]
    assert [len(other.splits[split].classes) for split in SPLITS] == [60, 20, 20]
    assert one.digest != other.digest
    assert len(list(cache.glob("*.npy"))) == 1


def test_a_tar_of_python_3_is_read_too(tmp_path):
    make_cifar_tar(tmp_path / "2")
    make_cifar_tar(tmp_path / "3", write=functools.partial(pickle.dumps, protocol=4))
    assert load("fc100", tmp_path / "2").digest == load("fc100", tmp_path / "3").digest


def test_the_tar_comes_before_the_zip(tmp_path):
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
        unpickle(f"c{module}\n{attribute}\n.".encode())


def test_a_few_bytes_make_no_room_for_many():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in (
        b"I1\nr\xff\xff\xff\x0f.",  # a place of its memory, 2^28
        b"\x96" + (2**30).to_bytes(8, "little") + b".",  # a bytearray
        b"cnumpy\nndarray\n(I1073741824\nS'f8'\ntR.",
    ):
        with contextlib.suppress(Exception):
            unpickle(content)
    asked = unpickle(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1073741824\ntS'f8'\ntR.")
    assert asked.size == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < peak + 2**18  # kB


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


def test_check_of_cifar(tmp_path):
    tar, zipped = (tmp_path / archive.path for archive in DATASETS["fc100"].files)
    assert check("fc100", tmp_path) == [(tar, "missing")]
    make_cifar_zip(tmp_path)
    assert check("fc100", tmp_path) == [(zipped, "unknown checksum")]
    make_cifar_tar(tmp_path)
    assert check("fc100", tmp_path) == [(tar, "unknown checksum"), (zipped, "unknown checksum")]


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("cifar-fs", "b15440be340c968582ddf4f29e0f5f584cb27acf9ca5d318eef1d26278c3cd62"),
        ("fc100", "172b63af24a1c369b238394b3626c875001b60d63d6c88e5e5952ed9581fc5fa"),
    ],
)
def test_real_images(name, digest, real_data):
    sets = load(name, real_data)
    assert sets.digest == digest
    for split in SPLITS:
        assert (np.diff(sets.splits[split].spans) == 600).all()
        assert sorted(sets.splits[split].classes) == list(sets.splits[split].classes)


@pytest.mark.data
@pytest.mark.slow
def test_real_images_have_the_published_mean(real_data):
    images = load("cifar-fs", real_data).splits["meta-train"].images  # all 60,000: the classes share one array
    # The published mean is that of the 50,000 training images.
    np.testing.assert_allclose(images.mean((0, 1, 2)) / 255, [0.5071, 0.4865, 0.4409], atol=2e-3)


def test_superclasses():
    """CIFAR-100 has 20 superclasses of 5 classes; FC100 splits none of them."""
    assert sorted(superclasses()) == CIFAR_CLASSES
    assert set(Counter(superclasses().values()).values()) == {5}
    assert superclasses()["shrew"] == "small_mammals"
    for split, labels in class_lists("fc100").items():
        groups = Counter(map(superclasses().__getitem__, labels))
        assert set(groups.values()) == {5}, split
