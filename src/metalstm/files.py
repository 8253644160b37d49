"""Files that are written whole or not at all."""

import contextlib
import os
from pathlib import Path

from metalstm.errors import UserError, is_full


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: under a temporary name, synced, then renamed.

    Raises:
        UserError: The disk is full, or the place cannot be written to.
    """
    path = path.resolve()  # the target of a link
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe or a device cannot be renamed over
            path.write_bytes(content)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, len(content), error) from error


def cannot_write(path: Path, size: int, error: OSError) -> UserError:
    """The error for a file of `size` bytes that the system refuses to write."""
    mend = "free some space or choose another folder" if is_full(error) else "choose another folder"
    return UserError(f"cannot write {path} ({size:,} bytes): {error.strerror}: {mend}")


def remove_temporary(folder: Path, *names: str) -> None:
    """Remove what a run that was killed while it wrote these files left behind."""
    for name in names:
        for left in folder.glob(f".{name}.*.tmp"):
            left.unlink(missing_ok=True)
