"""Damaged checkpoints, classifiers and run folders end in one clear line.

METALSTM_HOSTILE_CASES is the number of cases, 300 by default; METALSTM_HOSTILE_FIRST is the number of the first one.
Case k is the same in every run.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hostile.mutations import mutated

CASES, FIRST = int(os.environ.get("METALSTM_HOSTILE_CASES", 300)), int(os.environ.get("METALSTM_HOSTILE_FIRST", 0))
HERE = Path(__file__).parent


def test_each_is_read_or_refused_in_one_line_in_bounded_time_and_memory(tmp_path):
    # Not in this process, where arguments of a wrong type are caught before they do harm.
    command = [sys.executable, HERE / "reading.py", tmp_path, str(FIRST), str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    ends = json.loads(done.stdout)
    assert ends["refused"] + ends["read"] == CASES
    assert ends["refused"] > ends["read"] > 0, ends


@pytest.mark.parametrize("content", [b"", b"12345678", b"\x02\0\0\0\0\0\0\0{}"])
def test_whatever_is_mutated_a_file_comes_of_it_and_always_the_same(content):
    for number in range(200):
        one, other = (mutated(content, np.random.RandomState(number)) for _ in range(2))
        assert one == other
