"""Sees what a process does that it must not do: Python reports each file, program and connection that is opened."""

import os
import sys
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {  # which arguments are paths
    "os.remove": (0,), "os.rename": (0, 1), "os.mkdir": (0,), "os.rmdir": (0,), "os.link": (0, 1), "os.symlink": (1,),
    "os.truncate": (0,), "os.chmod": (0,), "os.utime": (0,), "shutil.rmtree": (0,),
}  # fmt: skip
RUNS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen", "pty.spawn"}
DEVICES = ("/dev/null", "/dev/full", "/dev/tty")
LOCAL = ("127.0.0.1", "localhost", "::1", None)


class Watch:
    """What was done outside a folder since it was last asked.

    Args:
        folder: Where a process may write.
    """

    def __init__(self, folder: Path):
        self.folder, self.seen, self._on = os.path.realpath(folder), [], False
        sys.addaudithook(self._hook)  # for ever

    def __enter__(self) -> "Watch":
        self._on = True
        return self

    def __exit__(self, *error: object) -> None:
        self._on = False

    def take(self) -> list[str]:
        """What was seen; forgets it."""
        seen, self.seen = self.seen, []
        return seen

    def _hook(self, event: str, arguments: Any) -> None:
        if not self._on:
            return
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, (str, bytes)) and (flags & WRITING or set(mode or "") & set("wax+")):
                self._check(event, path)
        elif event in CHANGES:
            for place in CHANGES[event]:
                self._check(event, arguments[place])
        elif event in RUNS:
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in LOCAL:
            self.seen.append(f"{event} {arguments[1]!r}")
        elif event == "pickle.find_class" and not arguments[0].startswith("numpy"):
            self.seen.append(f"{event} {arguments!r}")

    def _check(self, event: str, path: Any) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return  # a file that is open already
        folder, name = os.path.split(os.fsdecode(path))
        real = os.path.join(os.path.realpath(folder), name)  # what is removed or renamed is the link itself
        if event == "open":
            real = os.path.realpath(real)
        elif event == "os.remove" and not os.path.lexists(real):
            return
        if not (real + "/").startswith(self.folder + "/") and not real.startswith(DEVICES):
            self.seen.append(f"{event} {real}")
