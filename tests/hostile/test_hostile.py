"""Hostile input is read or refused in one line; nothing is executed, written elsewhere, or waited for.

METALSTM_HOSTILE_CASES is the number of cases, 600 by default. Case k of a kind is the same in every run.
"""

import os

import numpy as np
import pytest

from hostile import KINDS, shares
from hostile.mutations import mutated
from hostile.soak import cases
from hostile.watch import Watch

SHARES = shares(int(os.environ.get("METALSTM_HOSTILE_CASES", 600)), KINDS)


def ends_of(folder, kinds):
    """How often the cases of each kind were read and refused; none may fail."""
    lines = list(cases(folder, *(f"{kind}:0:{SHARES[kind]}" for kind in kinds)))
    assert not [line for line in lines if "failure" in line]
    assert {line["kind"]: line["read"] + line["refused"] for line in lines} == {kind: SHARES[kind] for kind in kinds}
    return lines


def test_what_others_give_is_read_or_refused_in_one_line_in_bounded_time_and_memory(tmp_path):
    # Not in this process, where arguments of a wrong type are caught before they do harm.
    for line in ends_of(tmp_path, [kind for kind in KINDS if kind != "requests"]):
        assert line["refused"] > 0 < line["read"], line


def test_requests_to_the_page_are_answered_or_refused_in_one_line(tmp_path):
    pytest.importorskip("gradio", reason="needs the extra app")
    ends_of(tmp_path, ["requests"])


def test_a_request_is_the_same_whatever_came_before(tmp_path):
    pytest.importorskip("gradio", reason="needs the extra app")
    assert not [line for line in cases(tmp_path, "requests:749:2") if "failure" in line]


@pytest.mark.parametrize("content", [b"", b"12345678", b"\x02\0\0\0\0\0\0\0{}"])
def test_whatever_is_mutated_a_file_comes_of_it_and_always_the_same(content):
    for number in range(200):
        one, other = (mutated(content, np.random.RandomState(number)) for _ in range(2))
        assert one == other


def test_what_is_done_outside_the_folder_is_seen(tmp_path):
    (tmp_path / "inside").mkdir()
    with Watch(tmp_path / "inside") as watch:
        (tmp_path / "inside" / "a").write_text("")
        (tmp_path / "inside" / "a").rename(tmp_path / "inside" / "b")
        assert not watch.take()
        (tmp_path / "c").write_text("")
        assert watch.take() == [f"open {tmp_path / 'c'}"]
        (tmp_path / "inside" / "link").symlink_to(tmp_path / "d")
        (tmp_path / "inside" / "link").write_text("")
        assert watch.take() == [f"open {tmp_path / 'd'}"]
        os.system("true")
        assert watch.take() == ["os.system (b'true',)"]
