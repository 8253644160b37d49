"""Freed memory is kept: large tensors cause page faults once."""

import platform
import subprocess
import sys

import pytest

TRY = """
import resource, torch
from metalstm import kernels

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(2**24).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
without = faults()
kernels.keep_memory()
faults()
print(without, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_keep_memory():
    output = subprocess.run([sys.executable, "-c", TRY], capture_output=True, text=True, check=True).stdout
    without, with_it = map(int, output.split())
    assert with_it < without / 10


RETURN = """
from pathlib import Path
from metalstm import kernels
import torch

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

kernels.keep_memory()
before = resident()
large = torch.ones(2**26)  # 256 MB
del large
kept = resident() - before
kernels.return_memory()
print(kept, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_return_memory():
    output = subprocess.run([sys.executable, "-c", RETURN], capture_output=True, text=True, check=True).stdout
    kept, left = map(int, output.split())
    assert left < kept / 10
