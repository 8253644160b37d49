"""What the tests of training, checkpoints and command line share: a small data set, a tiny learner, real processes."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from metalstm import data, recipes

KERNELS = Path(os.environ["METALSTM_CACHE"]) / "kernels"  # of the test session, before a test sets another cache
SIZE = 16  # pixels; the least that Conv4 takes
N_IMAGES = 8  # of a class
LISTS = {"meta-train": range(6), "meta-val": range(6, 9), "meta-test": range(9, 12)}

SETTINGS: dict[str, Any] = {"filters": 4, "hidden_size": 3, "epochs": 2, "order": 1}
TASK: dict[str, Any] = {"n_way": 2, "n_shot": 1, "n_query": 3}


def flags(**values: object) -> list[str]:
    """`flags(n_way=2, resume=True)` is `["--n-way", "2", "--resume"]`."""
    words = []
    for name, value in values.items():
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


# A learner so small that an episode takes milliseconds.
TINY = flags(**TASK, **SETTINGS, image_size=SIZE, pretrain=0, meta_batch=1, patience=1000)


def make_folder(directory: Path, seed: int = 0, noise: int = 60) -> Path:
    """Twelve classes of eight images, each a pattern below noise; six, three and three classes a split."""
    for k in range(12):
        (directory / f"class {k:02}").mkdir(parents=True)
        pattern = np.random.RandomState([seed, k]).randint(0, 256 - noise, (4, 4, 3))
        for image in range(N_IMAGES):
            grain = np.random.RandomState([seed, k, image]).randint(0, noise, (SIZE, SIZE, 3))
            pixels = np.kron(pattern, np.ones((SIZE // 4, SIZE // 4, 1), int)) + grain
            Image.fromarray(pixels.astype(np.uint8)).save(directory / f"class {k:02}" / f"{image}.png")
    for split, members in LISTS.items():
        (directory / f"{split}.txt").write_text("".join(f"class {k:02}\n" for k in members))
    return directory


def numbered(sizes: list[int]) -> data.ImagesByClass:
    """Classes of these sizes; an image's first pixels are its class and its number within the class."""
    images = np.zeros((sum(sizes), 16, 16, 1), np.uint8)
    stops = np.cumsum(sizes)
    spans = np.stack([stops - sizes, stops], 1)
    for label, (start, stop) in enumerate(spans):
        images[start:stop, 0, 0, 0] = label
        images[start:stop, 0, 1, 0] = np.arange(stop - start)
    return data.ImagesByClass(images, tuple(f"class {k}" for k in range(len(sizes))), spans)


def load_folder(directory: Path) -> data.MetaSets:
    return data.load(f"folder:{directory}", image_size=SIZE)


def tiny_config(meta_sets: data.MetaSets, method: str = "meta-lstm", recipe: str = "paper", **changes: Any):
    """The run of `train TINY --recipe paper`, of any method, with other settings where given."""
    named = recipes.named(method, recipe, meta_sets.traits, TASK["n_shot"])
    config = recipes.run_config(meta_sets, named, method, recipe, **TASK)
    small = {name: value for name, value in SETTINGS.items() if recipes.has_setting(config, name)}
    return recipes.with_changes(config, small | {"pretrain": 0, "val_episodes": 2, "patience": 1000} | changes)


def _environment(cache: Path) -> dict[str, str]:
    with contextlib.suppress(FileExistsError):  # so that no command compiles them anew
        (cache / "kernels").symlink_to(KERNELS)
    return os.environ | {"METALSTM_CACHE": str(cache), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def metalstm(*words: object, cache: Path, preexec_fn: Callable[[], object] | None = None):
    """Run the real command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "metalstm", *map(str, words)],
        env=_environment(cache),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=preexec_fn,
    )


def start(*words: object, cache: Path, module: str = "metalstm") -> subprocess.Popen[str]:
    """Start the real command, or another module."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, words)],
        env=_environment(cache),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop_after(process: subprocess.Popen[str], metrics: Path, n_lines: int, number: int, delay: float = 0.0) -> str:
    """Send a signal as soon as so many lines are logged, or `delay` seconds later; gives what it said on stderr."""
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < n_lines:
        if process.poll() is not None:
            raise AssertionError(f"ended by itself with {process.returncode}: {process.communicate()[1]}")
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"logged no {n_lines} lines in time: {process.communicate()[1]}")
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(number)
    return process.communicate(timeout=60)[1]


_SERVE = """
import contextlib, io, json, os, sys
from metalstm import cli
for line in sys.stdin:
    task = json.loads(line)
    os.chdir(task["cwd"])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(task["words"])
            status = 0
        except SystemExit as error:
            status = error.code or 0
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""


class Commands:
    """Commands one after another in one process, which imports torch once, and the package as users have it.

    In pytest's own process the package checks the type of every argument, so that faults show in other places.

    Args:
        cache: Where decoded images are kept.
        first: Code to run before.
    """

    def __init__(self, cache: Path, first: str = ""):
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"{first}\n{_SERVE}"],
            env=_environment(cache),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *words: object, cwd: Path | None = None) -> tuple[int, str, str]:
        """Exit status, stdout and stderr of a command."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        print(json.dumps({"words": [str(word) for word in words], "cwd": str(cwd or "/")}), file=stdin, flush=True)
        answer = stdout.readline()
        assert answer, "the command ended its process; what it said is on stderr"
        status, out, err = json.loads(answer)
        return status, out, err

    def refusal(self, *words: object, cwd: Path | None = None) -> str:
        """What a command says that refuses to run: one line on stderr, nothing on stdout, exit status 2."""
        status, out, err = self(*words, cwd=cwd)
        assert (status, out, err.count("\n")) == (2, "", 1), f"status {status}\n{out}\n{err}"
        assert err.startswith("metalstm: ")
        return err.removeprefix("metalstm: ").rstrip("\n")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def metrics(run: Path, *, timing: bool = False) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; without those values that no two runs share."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    if not timing:
        lines = [{k: v for k, v in line.items() if k not in ("seconds", "episodes_per_second")} for line in lines]
    return lines


def assert_same_tensors(one: Path, other: Path) -> None:
    """Whether two safetensors files hold the same names, types, shapes and bits."""
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert (tensor.dtype, tensor.shape) == (second[name].dtype, second[name].shape), name
        assert tensor.numpy().tobytes() == second[name].numpy().tobytes(), name


@contextlib.contextmanager
def one_thread():
    """One torch thread, as the started processes have; puts the number back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
