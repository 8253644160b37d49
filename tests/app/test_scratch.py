import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metalstm.app import scratch


def write(path: Path, size: int, age: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (1000 - age, 1000 - age))
    return path


def test_the_oldest_files_make_room(tmp_path, monkeypatch):
    paths = [write(tmp_path / f"folder {k}" / "x", 100, age) for k, age in enumerate((3, 1, 4, 2))]
    monkeypatch.setattr(scratch, "MAX_BYTES", 250)
    scratch.make_room(tmp_path)
    assert [path.exists() for path in paths] == [False, True, False, True]
    assert len(list(tmp_path.iterdir())) == 2, "folders without files are deleted too"
    scratch.make_room(tmp_path)
    assert [path.exists() for path in paths] == [False, True, False, True]
    monkeypatch.setattr(scratch, "MAX_FILES", 1)
    scratch.make_room(tmp_path)
    assert [path.exists() for path in paths] == [False, True, False, False]


CODE = """
import sys, time
from metalstm.app.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "x").write_text("x")
    print(folder, flush=True)
    if sys.argv[1] == "killed":
        time.sleep(1000)
    if sys.argv[1] == "fails":
        raise SystemExit(1)
"""


@pytest.mark.parametrize("end", ["returns", "fails", "killed"])
def test_nothing_is_left_after_any_end(tmp_path, end):
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, end], env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    folder = Path(process.stdout.readline().strip())
    assert folder.parent == tmp_path
    if end == "killed":
        assert (folder / "x").exists()
        process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while folder.exists():  # only after a kill it may take a moment
        assert end == "killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
