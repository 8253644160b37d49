"""What made a result: machine, versions, commit; no host name and no path."""

import os
import platform
import re
import shlex
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def machine(threads: int) -> dict[str, Any]:
    """Processor, system, cores and memory."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cpu": _cpu(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(memory / 2**30, 1),
        "governor": governor.read_text().strip() if governor.exists() else None,
    }


def versions() -> dict[str, Any]:
    """Of Python and the packages, and where this one runs from a git checkout, its commit."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "metalstm": version("metalstm"),
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": len(_git("status", "--porcelain", "--untracked-files=no").splitlines()),
    }


def command() -> str:
    """The command that this process runs."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.stem == "__main__" else program.name
    return shlex.join([name, *sys.argv[1:]])


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.processor()


@cache
def _git(*words: str) -> str:
    """What git says of the folder of this file; nothing where that is no checkout, or there is no git."""
    here = Path(__file__).parent
    try:
        return subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
