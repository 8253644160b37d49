"""Runs hostile cases, one after another, in a process that has no other types checked than a user's.

    PYTHONPATH=tests python -m hostile.worker FOLDER KIND:FIRST:NUMBER ...

Case k of a kind is the same in every process. It may end well or be refused, by a `UserError` of one line. Anything
else is a failure: another error, more than 20 seconds, more than 1.5 GB, a file outside the folder that is opened for
writing, a program that is started, a connection to another machine. Prints a line of JSON for each kind, and one for
each failure. Ends with status 1 if there was any.
"""

import faulthandler
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from hostile import KINDS
from hostile.watch import Watch

SECONDS, MEGABYTES = 20, 1500
ADDRESSES = 2**33  # bytes


def main(folder: Path, parts: list[str]) -> int:
    """Run the cases, and print how they ended; gives the number of failures."""
    import torch

    os.environ["MPLCONFIGDIR"] = str(folder / "matplotlib")
    import matplotlib.font_manager  # starts a program once

    import metalstm.console
    from metalstm import kernels

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))  # what asks for more must not stop the machine
    torch.set_num_threads(1)
    kernels.build()
    assert matplotlib.font_manager
    metalstm.console.console.quiet = True
    os.environ["METALSTM_CACHE"] = str(folder / "cache")
    tempfile.tempdir = str(folder)
    os.chdir(folder)
    failures, watch = 0, Watch(folder)
    for part in parts:
        kind, first, number = part.split(":")
        shutil.rmtree(folder / kind, ignore_errors=True)
        (folder / kind).mkdir()
        cases = import_module(f"hostile.{kind}").Cases(folder / kind)
        ends = run(kind, cases, watch, range(int(first), int(first) + int(number)))
        getattr(cases, "close", int)()
        say(kind=kind, **ends)
        failures += ends["failed"]
    return failures


def run(kind: str, cases: Any, watch: Watch, numbers: range) -> dict[str, Any]:
    """How often the cases of a kind ended how."""
    from metalstm.errors import Problems, UserError

    ends, started, slowest, peak = Counter(read=0, refused=0, failed=0), time.monotonic(), 0.0, 0
    for number in numbers:
        say(kind=kind, case=number)  # who dies here is known by it
        began = time.monotonic()
        faulthandler.dump_traceback_later(SECONDS, exit=True)  # also of code in C
        peak_of_case()
        try:
            with watch:
                cases(np.random.RandomState([list(KINDS).index(kind), number]), number)
            end = "read"
        except UserError as error:
            end, text = "refused", str(error)
            too_many_lines = "\n" in text and not isinstance(error, Problems)  # a list of several has a line for each
            if too_many_lines or not 10 < len(text) < 3000:
                end = _failed(kind, number, f"a message of {len(text)} characters: {text[:500]!r}")
        except Exception as error:
            end = _failed(kind, number, f"{type(error).__name__}: {str(error)[:2000]}", error)
        faulthandler.cancel_dump_traceback_later()
        used = peak_of_case()
        if watch.seen or used > MEGABYTES:
            end = _failed(kind, number, "; ".join(watch.take()) or f"{used} MB")
        ends[end] += 1
        slowest, peak = max(slowest, time.monotonic() - began), max(peak, used)
    seconds = time.monotonic() - started
    return {**ends, "seconds": round(seconds, 1), "slowest": round(slowest, 1), "megabytes": peak}


def peak_of_case() -> int:
    """The most memory in MB since the last call."""
    try:
        status = Path("/proc/self/status").read_text()
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not on Linux
        return 0
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def _failed(kind: str, number: int, what: str, error: Exception | None = None) -> str:
    import traceback

    frames = traceback.extract_tb(error.__traceback__)[-6:] if error else []
    where = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    say(kind=kind, case=number, failure=what, where=where, again=f"{kind}:{number}:1")
    return "failed"


def say(**values: Any) -> None:
    """A line of JSON for who has started this process."""
    with suppress(BrokenPipeError):
        os.write(OUT, (json.dumps(values) + "\n").encode())


OUT = os.dup(1)

if __name__ == "__main__":
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # cases may print
    sys.exit(min(main(Path(sys.argv[1]).resolve(), sys.argv[2:]), 1))
