"""Runs that are killed, interrupted or out of disk, and go on to the same end."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading

import pytest

from helpers import TINY, assert_same_tensors, flags, metalstm, metrics, start, stop_after, tiny_config
from metalstm import checkpoint
from metalstm.errors import Interrupted
from metalstm.training import loop, signals, train

# Killed and resumed: real processes.


def test_killed_again_and_again_a_run_ends_with_the_same_bits(folder, cache, tmp_path):
    command = ["train", *TINY, *flags(data=f"folder:{folder}", episodes=50, val_every=4, val_episodes=2, threads=1)]
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    done = metalstm(*command, "--out", whole, cache=cache)
    assert done.returncode == 0, done.stderr
    assert len(metrics(whole)) == 13  # each fourth episode, and the last

    for resume, n_lines, delay in (([], 2, 0.0), (["--resume"], 4, 0.06), (["--resume"], 8, 0.003)):
        process = start(*command, *resume, "--out", pieces, cache=cache)
        stop_after(process, pieces / "metrics.jsonl", n_lines, signal.SIGKILL, delay)
        assert process.returncode == -signal.SIGKILL
    done = metalstm(*command, "--resume", "--out", pieces, cache=cache)
    assert done.returncode == 0, done.stderr
    assert "going on after episode" in done.stderr

    assert_same_tensors(whole / "last.safetensors", pieces / "last.safetensors")
    assert_same_tensors(whole / "best.safetensors", pieces / "best.safetensors")
    assert metrics(whole) == metrics(pieces)


def test_an_interrupted_run_says_how_to_go_on_and_ends_with_the_same_bits(folder, cache, tmp_path):
    options = {"order": 2, "meta_batch": 2, "lr_decay": True, "query_norm": "support", "train_query_norm": "support"}
    episodes = 120
    options |= {"data": f"folder:{folder}", "episodes": episodes, "val_every": 4, "val_episodes": 2, "threads": 1}
    command = ["train", *TINY, *flags(**options)]
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    done = metalstm(*command, "--out", whole, cache=cache)
    assert done.returncode == 0, done.stderr

    for resume, more_lines, number in (
        ([], 1, signal.SIGINT),
        (["--resume"], 2, signal.SIGTERM),
        (["--resume"], 3, signal.SIGKILL),
    ):
        # Lines of this process: a signal that comes before it is ready for one would end it at once.
        n_lines = more_lines + (len(metrics(pieces)) if resume else 0)
        process = start(*command, *resume, "--out", pieces, cache=cache)
        said = stop_after(process, pieces / "metrics.jsonl", n_lines, number, delay=0.05)
        if number == signal.SIGKILL:
            continue
        assert process.returncode == 130
        _, meta = checkpoint.load(pieces / "last.safetensors")
        assert said.splitlines()[-1] == (
            f"metalstm: saved after episode {meta['episode']}; go on with the same command and --resume"
        )
        assert "Traceback" not in said
        assert meta["episode"] == metrics(pieces)[-1]["episode"] < episodes
    done = metalstm(*command, "--resume", "--out", pieces, cache=cache)
    assert done.returncode == 0, done.stderr

    assert_same_tensors(whole / "last.safetensors", pieces / "last.safetensors")
    assert_same_tensors(whole / "best.safetensors", pieces / "best.safetensors")
    # An interrupted run has a line more for each interruption.
    values = [{line["episode"]: line.get("meta_val") for line in metrics(run)} for run in (whole, pieces)]
    assert values[0].items() <= values[1].items()


@pytest.mark.parametrize("limit", [100, 7_000], ids=["configuration", "resume state"])
def test_a_full_disk_is_reported_in_one_line_and_a_run_goes_on_from_there(folder, meta_sets, cache, tmp_path, limit):
    out = tmp_path / "run"
    command = ["train", *TINY, *flags(data=f"folder:{folder}", recipe="paper", episodes=20, val_every=10, threads=1)]
    command += flags(val_episodes=2, out=out)

    def fill_the_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    full = metalstm(*command, cache=cache, preexec_fn=fill_the_disk)
    assert (full.returncode, full.stdout) == (2, "")
    assert full.stderr.count("\n") == 1, full.stderr
    file = "config.json" if limit == 100 else "last.safetensors"
    assert full.stderr.startswith(f"metalstm: cannot write {out / file} (")
    assert full.stderr.endswith("): File too large: free some space or choose another folder\n")
    assert not list(out.glob(".*")), "neither half a file nor a lock is left"

    train(tiny_config(meta_sets, episodes=20, val_every=10), meta_sets, out, resume=True)
    train(tiny_config(meta_sets, episodes=20, val_every=10), meta_sets, tmp_path / "whole")
    assert_same_tensors(tmp_path / "whole" / "last.safetensors", out / "last.safetensors")
    assert metrics(tmp_path / "whole") == metrics(out)


# In this process.


@pytest.fixture
def ctrl_c_while_validating(monkeypatch):
    """Sends a real SIGINT from within every validation."""

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*args)

    evaluate = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", interrupted)
    yield
    monkeypatch.undo()


def test_ctrl_c_while_validating_ends_a_run_one_step_later(meta_sets, tmp_path, request):
    config, whole, out = tiny_config(meta_sets, episodes=15, val_every=5), tmp_path / "whole", tmp_path / "run"
    train(config, meta_sets, whole)
    train(tiny_config(meta_sets, episodes=5, val_every=5), meta_sets, out)
    request.getfixturevalue("ctrl_c_while_validating")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"^saved after episode 11$"):
        train(config, meta_sets, out, resume=True)
    assert signal.getsignal(signal.SIGINT) is handler
    # The run is on its way to 15 episodes, and not there.
    values = json.loads((out / "config.json").read_text())
    assert values["training"]["episodes"] == 15
    # Interrupted again, at its very end: there is nothing left to go on with.
    train(config, meta_sets, out, resume=True)
    assert json.loads((out / "config.json").read_text()) == values
    assert_same_tensors(whole / "last.safetensors", out / "last.safetensors")
    assert_same_tensors(whole / "best.safetensors", out / "best.safetensors")
    assert [line["episode"] for line in metrics(out)] == [5, 10, 11, 15]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_the_handlers_come_back_after_an_error(number, capfd):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    noted = []
    with pytest.raises(ZeroDivisionError), signals.caught() as received:  # noqa: PT012
        os.kill(os.getpid(), number)
        noted += received
        raise ZeroDivisionError
    assert noted == [number]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    assert capfd.readouterr().err == "\nstopping after this step; once more to stop at once\n"


TWICE = """
import os, signal
from metalstm.training import signals
with signals.caught():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    print("still here")
"""


def test_the_second_signal_ends_the_process_at_once_and_shows_the_cursor():
    """A progress bar hides it."""
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.endswith("\x1b[?25h\n")


def test_in_another_thread_signals_are_left_to_whoever_started_it():
    """Python lets only the main thread handle them: a run in a web server's thread must not fail for that."""
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with signals.caught() as received:
            seen.append((received, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [([], before)]
