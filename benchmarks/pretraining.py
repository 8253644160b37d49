"""A mini-batch of pre-training: this version against an older one, which lies in another checkout.

64 random images of 32x32x3 from 64 classes, Conv4 with 64 filters, SGD with momentum, crop and jitter: all that
`metalstm.training` does in a step. One process for each version and precision; they take turns, A B A B ..., one at
work at a time. Times are those of the CPU, so that other work on the machine disturbs them less.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import process_time
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.markdown import Markdown

import contenders
import record
from metalstm import kernels
from metalstm.augmentation import augmented
from metalstm.files import write
from metalstm.methods import Pretrained, RunConfig
from metalstm.recipes import build, named, with_changes
from metalstm.settings import Traits
from metalstm.training import outer_optimizer, outer_step

WARM_UP = 3  # mini-batches before the clock starts


def main(
    old: Path,
    out: Path = Path("results/speed/pretraining.json"),
    pooling: Literal["max", "average"] = "average",
    threads: int = 1,
    rounds: int = 9,
    batches: int = 10,
) -> None:
    """Measure, print the table and write it to OUT.

    Args:
        old: A checkout of the older version.
        out: JSON file of the result.
        pooling: Behind the last block.
        threads: CPU threads of every process.
        rounds: Turns of each version.
        batches: Mini-batches of a turn.
    """
    result = record.circumstances(threads) | {"pooling": pooling, "rounds": rounds, "batches": batches}
    checkouts = {"old": old, "new": record.ROOT}
    result["old_commit"] = subprocess.check_output(["git", "-C", old, "rev-parse", "HEAD"], text=True).strip()
    workers = {
        (version, precision): _start(path, precision, pooling, threads)
        for precision in contenders.PRECISIONS
        for version, path in checkouts.items()
    }
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in workers}
    for number in range(rounds + 1):
        for key, worker in workers.items():
            assert worker.stdin
            assert worker.stdout
            worker.stdin.write(f"{batches if number else WARM_UP}\n")
            worker.stdin.flush()
            took = float(worker.stdout.readline())
            if number:
                seconds[key].append(took / batches)
    for worker in workers.values():
        worker.communicate()
    result["seconds"] = {f"{version} {precision}": times for (version, precision), times in seconds.items()}
    write(out, (json.dumps(result, indent=1) + "\n").encode())
    rows = []
    for precision in contenders.PRECISIONS:
        before, now = seconds["old", precision], seconds["new", precision]
        ratios = [b / n for b, n in zip(before, now, strict=True)]
        times = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append([precision, 1e3 * median(before), 1e3 * median(now), times])
    Console().print(Markdown(record.table("precision|old, ms|new, ms|times as fast (range over rounds)", rows)))


def _start(checkout: Path, precision: str, pooling: str, threads: int) -> "subprocess.Popen[str]":
    """A process that trains with the version in a checkout."""
    paths = os.pathsep.join([str(checkout.resolve() / "src"), str(record.ROOT / "benchmarks")])
    command = [sys.executable, "-c", f"import pretraining; pretraining.work({precision!r}, {pooling!r}, {threads})"]
    environment = os.environ | {"PYTHONPATH": paths}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def config(precision: str, pooling: str) -> RunConfig:
    """The run."""
    run = RunConfig(
        **vars(named("pretrained", "best", Traits(), 1)),
        method="pretrained",
        recipe="best",
        data="random",
        image_shape=(3, 32, 32),
        n_classes=64,
    )
    changes = {"outer": "sgd", "lr": 0.05, "weight_decay": 5e-4, "crop": 4, "jitter": 0.4, "mirrors": True}
    return with_changes(run, changes | {"precision": precision, "pooling": pooling})


def work(precision: str, pooling: str, threads: int) -> None:
    """Train as many mini-batches as a line of the input says, and answer with the seconds of the CPU they took."""
    torch.set_num_threads(threads)
    run = config(precision, pooling)
    kernels.keep_memory()
    kernels.build()
    method = build(run)
    sampler = Pretrained.sampler(contenders.random_images(64, 600, (32, 32, 3)).mirrored(), run, "cpu")
    optimizer = outer_optimizer(method, run.training)
    number = 0
    for line in sys.stdin:
        start = process_time()
        for _ in range(int(line)):
            number += 1
            loss, _ = method(augmented(sampler.batch([number]), run.training))
            outer_step(loss, method, optimizer, run.training.clip)
        sys.stdout.write(f"{process_time() - start}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
