"""The folder of uploads and classifiers: bounded, and gone after any end of the process."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 2**30  # of all files together
MAX_FILES = 10_000
KEEP = "import shutil, sys; sys.stdin.read(); shutil.rmtree(sys.argv[1], ignore_errors=True)"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder, which is deleted at the end, even if this process is killed.

    Another process deletes it: once the pipe between the two is closed, which the system does at any end.
    """
    folder = tempfile.mkdtemp(prefix="metalstm-")
    command = [sys.executable, "-I", "-S", "-c", KEEP, folder]
    # In a session of its own, it gets no Ctrl-C, and does not end with the terminal.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True):
        yield Path(folder)


def make_room(folder: Path) -> None:
    """Delete the oldest files in a folder until the others are at most `MAX_BYTES` and `MAX_FILES`."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # moved or deleted meanwhile
            if path.is_file():
                state = path.stat()
                found.append((state.st_mtime, state.st_size, path))
    found.sort()
    total = sum(size for _, size, _ in found)
    for number, (_, size, path) in enumerate(found):
        if total <= MAX_BYTES and len(found) - number <= MAX_FILES:
            break
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it has other files
            path.parent.rmdir()
        total -= size
