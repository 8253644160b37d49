"""Compile the kernels for this machine's CPU, once, and load them.

The build is kept in METALSTM_CACHE or, by default, in the user's cache directory. DERIVATION.md, section "Build", gives
the reasons for compiling it this way.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from platformdirs import user_cache_path

_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-fPIC",
    "-shared",
)
_SOURCES = [Path(__file__).with_name(name) for name in ("cell.cpp", "blocks.cpp", "residual.cpp")]
_FILES = [*_SOURCES, *(Path(__file__).with_name(name) for name in ("vectors.h", "images.h"))]
_log = logging.getLogger(__name__)
_switched_off = False


def build() -> bool:
    """Compile the kernels for this machine, unless a build exists.

    This takes some seconds, once. Nothing else ever waits for it.

    Returns:
        Whether the kernels can be used.
    """
    if library() is None and _compile(_path()):
        library.cache_clear()
        if library() is None:
            _log.info("the kernels were compiled into %s, but do not load: training runs in plain PyTorch", _path())
    return library() is not None


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, if a build for this machine exists."""
    try:
        return ctypes.CDLL(str(_path()))
    except OSError:  # no build, or one that does not load here: `build` replaces it
        return None


def available() -> bool:
    """Whether a build is loaded and not switched off."""
    return not _switched_off and library() is not None


@contextmanager
def disabled() -> Iterator[None]:
    """Compute in plain PyTorch inside this context, in the whole process: for comparisons."""
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


def _path() -> Path:
    """Where the build of this source for this kind of CPU is kept."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    kind = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    parts = [*(path.read_bytes() for path in _FILES), repr((_FLAGS, platform.machine(), kind)).encode()]
    key = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    root = Path(os.environ.get("METALSTM_CACHE") or user_cache_path("metalstm", appauthor=False))
    return root / "kernels" / f"{platform.system().lower()}-{key}.so"


@cache
def _compile(path: Path) -> bool:
    """Compile into `path`, completely or not at all. Tries and reports once per process."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))), None)
    if compiler is None:
        _log.info("found no C++ compiler (c++, g++, clang++): training runs in plain PyTorch, which is slower")
        return False
    _log.info("compiling the kernels for this machine: this takes some seconds, once")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            output = Path(folder) / path.name
            for threads in (["-fopenmp"], []):
                command = [compiler, *_FLAGS, *threads, *map(str, _SOURCES), "-o", str(output)]
                result = subprocess.run(command, capture_output=True, text=True)
                if result.returncode == 0:
                    with output.open("rb") as file:
                        os.fsync(file.fileno())
                    os.replace(output, path)
                    if not threads:
                        _log.info("%s has no OpenMP: the kernels use one thread", compiler)
                    return True
        lines = result.stderr.strip().splitlines() or [f"status {result.returncode}"]
        reason = f"{compiler} cannot compile them: {next((line for line in lines if 'error' in line), lines[0])}"
    except OSError as error:
        reason = f"they cannot be kept in {path.parent} ({error}): set METALSTM_CACHE to another folder"
    _log.info("no kernels, training runs in plain PyTorch, which is slower; %s", reason)
    return False
