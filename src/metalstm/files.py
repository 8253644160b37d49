"""Files that are written whole or not at all, JSON without NaN, and locks."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None

from metalstm.errors import UserError, is_full


def exists(path: Path) -> bool:
    """Whether there is anything at a path that a user gave.

    Raises:
        UserError: The system does not say: a name in it is too long, or a folder is closed to the user.
    """
    try:
        return path.exists()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check its name and permissions") from error


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: under a temporary name, synced, then renamed.

    Raises:
        UserError: The disk is full, or the place cannot be written to.
    """
    try:
        path = path.resolve()  # the target of a link
    except (OSError, ValueError, RuntimeError) as error:  # characters that no name has, links in a circle
        raise UserError(f"cannot write {str(path)!r} ({error}): choose another name") from error
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


def to_json(value: Any, indent: int | None = None) -> str:
    """Plain values as JSON, which has no NaN and no infinity: such a number becomes null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def cannot_write(path: Path, size: int, error: OSError) -> UserError:
    """The error for a file of `size` bytes that the system refuses to write."""
    mend = "free some space or choose another folder" if is_full(error) else "choose another folder"
    return UserError(f"cannot write {path} ({size:,} bytes): {error.strerror}: {mend}")


def remove_temporary(folder: Path, *names: str) -> None:
    """Remove what a run that was killed while it wrote these files left behind."""
    for name in names:
        for left in folder.glob(f".{name}.*.tmp"):
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path: Path, wait: Callable[[str], object] | None = None) -> Iterator[None]:
    """Hold a lock that one process can have at a time. It ends with the process, even if that is killed.

    Args:
        path: A file that exists while the lock is held and names the holder. Its folder is made, and removed if it is
            still empty at the end.
        wait: Called with the holder if there is one; then the lock is waited for. Without it, that is an error.

    Raises:
        UserError: Another process holds the lock, or the file cannot be written.
    """
    is_new = not path.parent.exists()
    file = _locked(path, wait)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # before the lock ends: afterwards it may be another one's
            if is_new:
                path.parent.rmdir()
        os.close(file)


def _locked(path: Path, wait: Callable[[str], object] | None) -> int:
    """The file of a lock, open and locked."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise cannot_write(path.parent, 0, error) from error
        try:
            if fcntl and not _try(file):
                holder = os.read(file, 1000).decode(errors="replace").strip() or "another process"
                if wait is None:
                    raise UserError(
                        f"{path.parent} is in use by {holder}: wait until it ends, or choose another folder"
                    )
                wait(holder)
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file), os.stat(path)):
                with contextlib.suppress(OSError):  # a full disk does not matter here
                    os.ftruncate(file, 0)
                    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
                    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode(), 0)
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its holder has removed it: take the new one


def _try(file: int) -> bool:
    """Lock a file if no other process has; a file system that knows no locks lets everybody in."""
    assert fcntl
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if isfinite(value) else None
        case dict():
            return {name: _finite(each) for name, each in value.items()}
        case list() | tuple():
            return [_finite(each) for each in value]
    return value
