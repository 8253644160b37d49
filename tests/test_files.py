"""Files that are written whole or not at all."""

import errno
import json
import math
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from metalstm import files
from metalstm.errors import UserError


@pytest.fixture
def no_room():
    """Files may not grow above 1,000 bytes, which the system reports as it does a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_write_replaces_a_file_and_makes_its_folder(tmp_path):
    target = tmp_path / "new" / "folder" / "file"
    for text in (b"first", b"second, longer", b"3"):
        files.write(target, text)
        assert target.read_bytes() == text
    assert os.listdir(target.parent) == ["file"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, no_room):
    target = tmp_path / "file"
    files.write(target, b"old")
    with pytest.raises(UserError) as error:
        files.write(target, b"x" * 1001)
    assert str(error.value) == (
        f"cannot write {target} (1,001 bytes): {os.strerror(errno.EFBIG)}: free some space or choose another folder"
    )
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_write_follows_a_link_and_fills_a_pipe_instead_of_replacing_them(tmp_path):
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(target)
    files.write(link, b"content")
    assert link.is_symlink()
    assert target.read_bytes() == b"content"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
    files.write(pipe, b"content")
    assert reader.communicate(timeout=20)[0] == b"content"
    assert pipe.is_fifo()


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for target, reason in (
        (tmp_path / "file" / "below", errno.ENOTDIR),
        (tmp_path / "file" / "below" / "deeper", errno.ENOTDIR),
        (tmp_path / "folder", errno.EISDIR),
    ):
        with pytest.raises(UserError) as error:
            files.write(target, b"x")
        assert str(error.value).startswith(f"cannot write {target} (1 bytes): ")
        assert any(os.strerror(code) in str(error.value) for code in (reason, errno.EEXIST))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_shown(tmp_path, name):
    with pytest.raises(UserError) as error:
        files.write(tmp_path / name, b"x")
    assert str(error.value).startswith(f"cannot write {str(tmp_path / name)!r} (")
    assert str(error.value).endswith("): choose another name")
    assert not files.exists(tmp_path / name)


def test_a_path_that_the_system_does_not_look_up_is_named(tmp_path):
    assert files.exists(tmp_path)
    assert not files.exists(tmp_path / "x")
    path = tmp_path / ("x" * 300)
    with pytest.raises(UserError) as error:
        files.exists(path)
    reason = os.strerror(errno.ENAMETOOLONG)
    assert str(error.value) == f"cannot read {path} ({reason}): check its name and permissions"


@pytest.mark.parametrize(
    ("code", "mend"),
    [
        (errno.ENOSPC, "free some space or choose another folder"),
        (errno.EDQUOT, "free some space or choose another folder"),
        (errno.EROFS, "choose another folder"),
        (errno.EACCES, "choose another folder"),
    ],
)
def test_the_error_says_what_can_be_done(code, mend):
    error = files.cannot_write(Path("/some/file"), 1234, OSError(code, os.strerror(code)))
    assert str(error) == f"cannot write /some/file (1,234 bytes): {os.strerror(code)}: {mend}"


def test_leftovers_of_the_named_files_and_of_no_others_are_removed(tmp_path):
    left, others = [".a.json.12.tmp", ".a.json.7.tmp"], ["a.json", ".b.json.12.tmp", ".a.tmp", "a.json.12.tmp"]
    for name in (*left, *others):
        (tmp_path / name).write_text("")
    files.remove_temporary(tmp_path, "a.json", "c.json")
    assert sorted(os.listdir(tmp_path)) == sorted(others)


# JSON.


def test_json_has_no_nan():
    values = {"a": [1, 0.5, math.nan, (math.inf, "NaN")], "b": {"c": -math.inf, "d": None, "e": True}}
    assert json.loads(files.to_json(values), parse_constant=pytest.fail) == {
        "a": [1, 0.5, None, [None, "NaN"]],
        "b": {"c": None, "d": None, "e": True},
    }
    assert files.to_json({"a": 1}, indent=1) == '{\n "a": 1\n}'


# Locks.


def test_a_lock_is_one_s_at_a_time_names_its_holder_and_leaves_nothing(tmp_path):
    folder = tmp_path / "new" / "folder"
    with files.lock(folder / "lock"):
        holder = (folder / "lock").read_text()
        assert re.fullmatch(rf"process {os.getpid()} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC", holder)
        with pytest.raises(UserError) as error, files.lock(folder / "lock"):
            pytest.fail("locked twice")
        assert str(error.value) == f"{folder} is in use by {holder}: wait until it ends, or choose another folder"
        with files.lock(folder / "other"):
            pass
    assert not folder.exists(), "it was made for the lock and nothing else is in it"
    tmp_path.joinpath("file").write_text("")
    with files.lock(tmp_path / "lock"):
        pass
    assert os.listdir(tmp_path / "new") == []


TAKE = """
import os, sys, time
from pathlib import Path
from metalstm import files
path, counter = Path(sys.argv[1]) / "lock", Path(sys.argv[1]) / "counter"
for _ in range(30):
    with files.lock(path, wait=lambda holder: None):
        value = int(counter.read_text())
        time.sleep(0.001)
        counter.write_text(str(value + 1))
"""


def test_many_processes_take_turns(tmp_path):
    (tmp_path / "counter").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", TAKE, tmp_path]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "counter").read_text() == "90"
    assert os.listdir(tmp_path) == ["counter"]


def test_a_lock_ends_with_a_process_that_is_killed(tmp_path):
    hold = "import sys, time; from pathlib import Path; from metalstm import files\n"
    hold += "with files.lock(Path(sys.argv[1])): print(flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", hold, tmp_path / "lock"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    waited = []

    def kill(holder: str) -> None:
        waited.append(holder)
        process.kill()

    with files.lock(tmp_path / "lock", wait=kill):
        assert [holder.split()[1] for holder in waited] == [str(process.pid)]
    process.communicate()


def test_a_folder_that_cannot_be_locked_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"^cannot write {tmp_path / 'file'} "), files.lock(tmp_path / "file" / "lock"):
        pytest.fail("locked")
