"""Many processes: the same run as in one, and an end for all when one ends."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import helpers
from helpers import TINY, assert_same_tensors, flags, metrics, tiny_config
from metalstm import checkpoint, recipes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds the processes that torchrun starts in /proc"),
]

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]

# Runs one after another in the same processes, in float64, where another order of summation changes next to nothing.
JOBS = """
import dataclasses, json, os, sys
from pathlib import Path
import torch
from metalstm import distributed, episodes, errors, recipes, training
from metalstm.data import load

torch.set_default_dtype(torch.float64)
load_float32 = episodes._Pixels.load
episodes._Pixels.load = lambda self, rows: load_float32(self, rows).double()
jobs, rank = json.loads(Path(sys.argv[1]).read_text()), int(os.environ["RANK"])
if os.environ["WORLD_SIZE"] != "1":
    distributed.join("cpu")
said = {}
for name, job in jobs.items():
    config = recipes.from_dict(job["config"])
    if name == "seeds":
        config = dataclasses.replace(config, seed=rank)
    if name == "nan":  # in float64 it takes more than settings allow
        torch.set_default_dtype(torch.float32)
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, lr=1e9, optimizer_lr=1e9))
    try:
        training.train(config, load(config.data, image_size=16), Path(job["out"]), job["resume"])
    except errors.UserError as error:
        said[name] = str(error)
Path(f"{sys.argv[1]}.{rank}").write_text(json.dumps(said))
sys.stderr.flush()
os._exit(0)
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return helpers.make_folder(tmp_path_factory.mktemp("images") / "patterns")


def environment(cache: Path) -> dict[str, str]:
    return os.environ | {"METALSTM_CACHE": str(cache), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def run_jobs(n: int, jobs: dict[str, Any], directory: Path, cache: Path) -> list[dict[str, str]]:
    """What each of `n` processes says that does these jobs."""
    file = directory / f"jobs-{n}.json"
    file.write_text(json.dumps(jobs))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    there = environment(cache) | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n)}
    processes = [
        subprocess.Popen([sys.executable, "-c", JOBS, file], env=there | {"RANK": str(k), "LOCAL_RANK": str(k)})
        for k in range(n)
    ]
    try:
        assert [process.wait(120) for process in processes] == [0] * n
    finally:
        for process in processes:
            process.kill()
    return [json.loads(Path(f"{file}.{k}").read_text()) for k in range(n)]


def start(n: int, *words: object, cache: Path, restarts: int = 0) -> subprocess.Popen[str]:
    """Start the real command by the real torchrun."""
    return subprocess.Popen(
        [*TORCHRUN, f"--nproc-per-node={n}", f"--max-restarts={restarts}", "-m", "metalstm", *map(str, words)],
        env=environment(cache),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[str, list[str]]:
    """Wait for the end, which must come; gives stdout, and what metalstm itself says on stderr when it fails."""
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.terminate()  # torchrun ends the others
    return out, [line for line in err.splitlines() if line.startswith(("metalstm: ", "going on"))]


def process_of_rank(torchrun: subprocess.Popen[str], rank: int) -> int:
    for pid in Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0"):
            return int(pid)
    raise AssertionError(f"torchrun started no process {rank}")


def wait_for_lines(run: Path, n: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_bytes().count(b"\n") < n:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_one_two_and_four_processes_make_the_same_run(folder, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("METALSTM_CACHE", str(cache))
    meta_sets = helpers.load_folder(folder)

    def job(recipe: str, meta_batch: int, steps: int = 20, out: str = "", resume: bool = False) -> dict[str, Any]:
        length: dict[str, Any] = {"episodes": steps * meta_batch, "meta_batch": meta_batch, "val_every": 30}
        # The outer loop of `paper` for both: what is compared is the sum of gradients, not the schedule.
        config = tiny_config(meta_sets, recipe="paper", **length)
        if recipe == "best":
            best = tiny_config(meta_sets, recipe="best", order=2, moves="all")
            config = replace(best, training=config.training, recipe="paper")
        return {"config": recipes.to_dict(config), "out": str(tmp_path / out), "resume": resume}

    def assert_near(run: str, other: str) -> None:
        one, two = (load_file(tmp_path / name / "last.safetensors") for name in (run, other))
        assert one.keys() == two.keys()
        for name in one:
            assert (one[name] - two[name]).abs().max() < 1e-8, (run, other, name)

    for n in (1, 2, 4):
        jobs = {f"{r}-{m}-{n}": job(r, m, out=f"{r}-{m}-{n}") for r in ("paper", "best") for m in (3, 4) if m >= n}
        jobs |= {f"half-{n}": job("best", 4, 8, out=f"half-{n}")}
        if n == 4:
            shutil.copytree(tmp_path / "half-1", tmp_path / "other-number")
            jobs |= {f"{run} again": job("best", 4, out=run, resume=True) for run in ("half-4", "other-number")}
        assert run_jobs(n, jobs, tmp_path, cache) == [{}] * n
        for run in ("paper-3", "paper-4", "best-3", "best-4"):
            if f"{run}-{n}" in jobs:
                assert_near(f"{run}-1", f"{run}-{n}")
                for line, other in zip(*(metrics(tmp_path / f"{run}-{k}") for k in (1, n)), strict=True):
                    assert line == pytest.approx(other, rel=1e-6)
    assert_near("best-4-1", "other-number")
    assert_same_tensors(tmp_path / "best-4-4" / "last.safetensors", tmp_path / "half-4" / "last.safetensors")


def test_what_ends_one_process_ends_all_with_the_same_words(folder, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("METALSTM_CACHE", str(cache))
    meta_sets = helpers.load_folder(folder)
    (tmp_path / "file").write_text("")
    fine = tiny_config(meta_sets, episodes=4, meta_batch=2)
    jobs = {
        "fine": (fine, "run"),
        "there": (fine, "run"),
        "file": (fine, "file"),
        "seeds": (fine, "seeds"),
        "few": (tiny_config(meta_sets, episodes=4), "few"),
        "nan": (tiny_config(meta_sets, episodes=8, meta_batch=2, input_bias=(200.0, 200.0)), "nan"),
    }
    done = {
        name: {"config": recipes.to_dict(c), "out": str(tmp_path / out), "resume": False}
        for name, (c, out) in jobs.items()
    }
    first, second = run_jobs(2, done, tmp_path, cache)
    assert first == second
    assert first.keys() == jobs.keys() - {"fine"}
    assert first["there"].endswith("run already holds a run: pass --resume to go on with it, or another --out")
    assert first["file"].startswith(f"cannot write {tmp_path / 'file'} (")
    assert first["seeds"] == (
        "process 1 was given another run than process 0 (seed 0 there, 1 now): "
        "start all with the same command, data and versions"
    )
    assert first["few"] == (
        "--meta-batch 1: 2 processes need an episode each in every step: "
        "pass --meta-batch 2 or more, or start at most 1"
    )
    assert first["nan"].startswith("the loss is no longer finite at episode 8 (loss nan, gradient nan, weights ")
    assert not (tmp_path / "few").exists()
    assert not (tmp_path / "seeds").exists()


@pytest.fixture(scope="module")
def command(folder) -> list[str]:
    options = {"data": f"folder:{folder}", "meta_batch": 2, "val_every": 20, "val_episodes": 3, "episodes": 400}
    return ["train", *TINY, *flags(**options)]


@pytest.fixture(scope="module")
def whole(command, cache, tmp_path_factory) -> Path:
    """A run of two processes that nothing came in the way of."""
    run = tmp_path_factory.mktemp("whole") / "run"
    process = start(2, *command, "--out", run, cache=cache)
    assert (*end(process), process.returncode) == ("", [], 0)
    return run


def test_a_run_of_two_processes_is_a_run(whole):
    names = {"config.json", "metrics.jsonl", "best.safetensors", "last.safetensors", "curve.png", "gates.png"}
    names |= {"report.html", "run.json"}
    assert {path.name for path in whole.iterdir()} == names
    assert [line["episode"] for line in metrics(whole)] == sorted({*range(20, 401, 20), *range(50, 401, 50)})
    assert not any("module." in name for name in load_file(whole / "last.safetensors"))
    checkpoint.load_method(whole)


def test_a_killed_worker_is_started_again_and_the_run_ends_with_the_same_bits(command, whole, cache, tmp_path):
    run = tmp_path / "run"
    process = start(2, *command, "--resume", "--out", run, cache=cache, restarts=1)
    wait_for_lines(run, 4, process)
    os.kill(process_of_rank(process, 1), signal.SIGKILL)
    before = len(metrics(run))
    end(process)
    assert process.returncode == 0
    assert before < len(metrics(whole)), "killed after its end"
    assert metrics(run) == metrics(whole)
    assert_same_tensors(run / "last.safetensors", whole / "last.safetensors")
    assert_same_tensors(run / "best.safetensors", whole / "best.safetensors")


@pytest.mark.parametrize("to", ["one process", "torchrun"])
def test_a_signal_stops_all_processes_after_the_same_step(command, cache, tmp_path, to):
    run = tmp_path / "run"
    process = start(2, *command, "--out", run, cache=cache)
    wait_for_lines(run, 2, process)
    if to == "torchrun":
        process.send_signal(signal.SIGINT)
    else:
        os.kill(process_of_rank(process, 1), signal.SIGTERM)
    _, said = end(process)
    assert process.returncode != 0
    episode = metrics(run)[-1]["episode"]
    assert said == [f"metalstm: saved after episode {episode}; go on with the same command and --resume"]
    assert checkpoint.load(run / "last.safetensors")[1]["episode"] == episode < 400


def test_a_mistake_is_reported_once(command, whole, cache):
    process = start(2, *command, "--out", whole, cache=cache)
    out, said = end(process)
    assert out == ""
    assert process.returncode != 0
    assert said == [f"metalstm: {whole} already holds a run: pass --resume to go on with it, or another --out"]


def test_sharded_evaluation_is_that_of_one_process(whole, cache):
    words = ["evaluate", whole, *flags(n_query=3, episodes=9, json="-")]
    process = start(2, *words, cache=cache)
    out, _ = end(process)
    assert process.returncode == 0
    two, one = json.loads(out), json.loads(helpers.metalstm(*words, cache=cache).stdout)
    assert len(two["per_episode"]) == 9
    assert {k: v for k, v in two.items() if k != "seconds"} == {k: v for k, v in one.items() if k != "seconds"}


def test_other_commands_run_in_one_process(cache):
    there = environment(cache) | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "metalstm", "data", "list"], env=there, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (
        2,
        "metalstm: data runs in one process, unlike train and evaluate: start it without torchrun\n",
    )
