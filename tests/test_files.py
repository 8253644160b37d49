"""Files that are written whole or not at all."""

import errno
import os
import resource
import subprocess
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
