import errno
import json
import os
import signal
import time
from collections import Counter

import numpy as np
import pytest

from metalstm import images as images_module
from metalstm.data import load
from metalstm.errors import UserError, is_full

from .makers import make_omniglot, start

LOAD_OMNIGLOT = "print(data.load('omniglot', Path(sys.argv[1])).digest)"


def test_images_are_mapped_and_read_only(tmp_path):
    images = load("omniglot", make_omniglot(tmp_path)).splits["meta-test"].images
    assert isinstance(images.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_second_load_decodes_nothing(tmp_path, monkeypatch):
    root = make_omniglot(tmp_path)
    digest = load("omniglot", root).digest
    monkeypatch.setattr(images_module, "open_image", None)
    assert load("omniglot", root).digest == digest


def test_cache_is_keyed_by_content_not_by_place(tmp_path, cache):
    first, second = make_omniglot(tmp_path / "1"), make_omniglot(tmp_path / "2")
    before = first.stat().st_mtime
    assert load("omniglot", first).digest == load("omniglot", second).digest
    assert len(list(cache.iterdir())) == 4
    assert first.stat().st_mtime == before


@pytest.mark.parametrize("suffix", [".npy", ".json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c[:-20],
        lambda c: c[:5],
        lambda c: b"",
        lambda c: b"\0" * len(c),
        lambda c: c.replace(b"}", b"("),  # no end of the header
        lambda c: c.replace(b"':", b'"""'),
    ],
)
def test_a_damaged_entry_is_noticed_and_written_again(tmp_path, cache, suffix, damage):
    root = make_omniglot(tmp_path)
    digest = load("omniglot", root).digest
    whole = {path: path.read_bytes() for path in cache.iterdir()}
    for path in cache.glob(f"*{suffix}"):
        path.write_bytes(damage(whole[path]))
    assert load("omniglot", root).digest == digest
    assert {path: path.read_bytes() for path in cache.iterdir()} == whole


@pytest.mark.parametrize("index", [[], {}, [["a", 1]], [["a", 1, "x"]], [["a", "b", "c"]], 3])
def test_an_entry_with_a_wrong_index_is_written_again(tmp_path, cache, index):
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
    assert len(sets.splits["meta-train"].classes) == 82
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
        "try: data.load('omniglot', Path(sys.argv[1]))\n"
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
