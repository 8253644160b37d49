import sys

import pytest

from metalstm.cli import process


@pytest.fixture
def launched(monkeypatch):
    """Sets the variables that torchrun sets; returns how, by rank and number of processes."""

    def launch(rank: int, world_size: int) -> None:
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", world_size)):
            monkeypatch.setenv(name, str(value))

    for name in process.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return launch


def test_a_rank_is_that_of_several_processes(launched):
    assert process.rank() is None
    assert process.is_first_of_machine()
    launched(0, 1)
    assert process.rank() is None
    launched(1, 2)
    assert process.rank() == 1
    assert not process.is_first_of_machine()
    launched(0, 2)
    assert process.rank() == 0
    assert process.is_first_of_machine()


def test_a_failure_is_said_on_stderr_with_the_list_below_it_and_is_the_exit_status(launched, capsys):
    with pytest.raises(SystemExit) as end:
        process.fail("a\n  b", 2)
    assert end.value.code == 2
    assert capsys.readouterr() == ("", "metalstm: a\n  b\n")


def test_of_several_processes_the_others_wait_for_the_first_to_speak(launched, capsys, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(process.time, "sleep", waits.append)
    monkeypatch.setattr(process.os, "_exit", sys.exit)
    launched(1, 2)
    for message, status in (("wrong", 2), ("interrupted", 130)):
        with pytest.raises(SystemExit) as end:
            process.fail(message, status)
        assert end.value.code == status
    assert waits == [5, 1]
    assert capsys.readouterr().err == "metalstm: process 1: wrong\n", "an interruption is reported once"
