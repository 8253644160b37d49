"""How fast `metalstm` is, alone and against others; see README.md beside this file."""

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import count, product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
import tyro

import contenders
import flops
import record
from contenders import Task
from metalstm.evaluation import evaluate
from metalstm.training import outer_optimizer


def main(
    out: Path = Path("results/speed"),
    port: Path | None = None,
    quick: bool = False,
    shapes: tuple[str, ...] = ("84x84x3", "32x32x3", "28x28x1"),
    shots: tuple[int, ...] = (1, 5),
    recipes: tuple[str, ...] = ("paper", "best"),
    threads: int = 2,
    rounds: int = 7,
    seconds: float = 3.0,
) -> None:
    """Measure, and write OUT/cpu.json and OUT/README.md.

    Args:
        out: Folder of the results.
        port: A checkout of the public port to compare with.
        quick: See whether it works: few images, one short round.
        shapes: Images: height, width, channels.
        shots: Support images a class.
        recipes: Which to measure; all is compared with paper.
        threads: CPU threads of every process.
        rounds: Turns of each contender.
        seconds: Length of a turn, and of every other measurement.
    """
    if quick:
        rounds, seconds = 1, 0.0
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of all processes from here on
    gflops: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    tasks: dict[str, Any] = {}
    result = record.circumstances(threads) | {"rounds": rounds, "seconds": seconds, "quick": quick}
    result |= {"startup_seconds": startup(2 if quick else 6), "matmul_gflops": gflops, "tasks": tasks}
    for task in (Task(shape, n_shot) for shape in shapes for n_shot in shots):
        for name, rates in record.fresh(matmul_gflops, seconds, threads=threads).items():
            gflops[name] += rates
        times = contenders.race(contenders.field(task, recipes, quick, port), rounds, seconds, threads)
        fast = times.get("paper fp32")
        tasks[f"{task.shape} {task.n_shot}-shot"] = {
            "training": {name: summary(each) for name, each in times.items()},
            "times_as_slow_as_paper": {
                name: ratio(slow, fast) for name, slow in times.items() if fast not in (None, slow)
            },
            "gflop": {recipe: flops.training_episode(task.config(recipe)) / 1e9 for recipe in recipes},
            "parts": {recipe: record.fresh(parts, task, recipe, seconds, quick, threads=threads) for recipe in recipes},
            "memory": {recipe: record.fresh(memory, task, recipe, threads=threads) for recipe in recipes},
        }
        for each in tasks.values():  # of the best rate so far, which is that of the run once it is over
            each["percent_of_roofline"] = {
                recipe: 100 * gflop / each["training"][f"{recipe} fp32"]["seconds"] / max(gflops["float32"])
                for recipe, gflop in each["gflop"].items()
            }
        record.save(out, "cpu.json", result)
    record.show(out, "cpu.json")


def summary(seconds: list[float]) -> dict[str, Any]:
    """Seconds an episode, by the median of the rounds."""
    return {"seconds": median(seconds), "episodes_per_second": 1 / median(seconds), "rounds": seconds}


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """The ratio of the medians, and the least and the greatest of a round."""
    each = [s / f for s, f in zip(slow, fast, strict=True)]
    return {"ratio": median(slow) / median(fast), "min": min(each), "max": max(each)}


def startup(repetitions: int) -> dict[str, list[float]]:
    """Seconds from nothing to the end of a process; whatever gets compiled is so in the first repetition."""
    first_step = "import sys; sys.path.insert(0, sys.argv[1]); import contenders; contenders.first_step()"
    commands = {
        "metalstm --help": ["-m", "metalstm", "--help"],
        "import metalstm": ["-c", "import metalstm"],
        "first training step": ["-c", first_step, str(Path(__file__).parent)],
    }
    with tempfile.TemporaryDirectory() as cache:
        caches = ("XDG_CACHE_HOME", "METALSTM_CACHE", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR")
        environment = os.environ | dict.fromkeys(caches, cache)

        def run(words: list[str]) -> None:
            subprocess.run([sys.executable, *words], env=environment, stdout=subprocess.DEVNULL, check=True)

        return {name: [timed(run, words)[1] for _ in range(repetitions)] for name, words in commands.items()}


def matmul_gflops(seconds: float) -> dict[str, list[float]]:
    """10^9 operations a second of the best product of two n x n matrices, n = 1024 and 2048, by type of number."""
    rates: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for name, n in product(rates, (1024, 2048)):
        a = torch.rand(n, n).to(getattr(torch, name))
        rates[name].append(2e-9 * n**3 / min(timed(torch.mm, a, a)[1] for _ in until(seconds / 4)))
    return rates


def parts(task: Task, recipe: str, seconds: float, small: bool) -> dict[str, Any]:
    """Each repetition of what an episode consists of in seconds, and what follows from their medians; in fp32."""
    config = task.config(recipe)
    method, sampler = contenders.ready(config), task.sampler(small)
    optimizer = outer_optimizer(method, config.training)

    def train(k: int) -> list[float]:
        episode, sampling = timed(sampler.batch, [k])
        (loss, _), forward = timed(method, episode)
        optimizer.zero_grad()
        _, backward = timed(loss.backward)
        _, update = timed(clip_and_step, method, optimizer, config.training.clip)
        return [sampling, forward, backward, update]

    def classify(episode: Any) -> None:
        method.logits(method.adapt(episode.support), episode.query.x)

    steps = list(zip(*[train(k) for k in until(seconds)][2:], strict=True))
    method.eval()
    with torch.no_grad():
        adapt = [timed(method.adapt, sampler[k].support)[1] for k in until(seconds)][2:]
        classified = [timed(classify, sampler[k])[1] for k in until(seconds)][2:]
        evaluated = [timed(evaluate, method, sampler, 2)[1] / 2 for _ in until(seconds)][2:]
    raw = dict(zip(("sampling", "forward", "backward", "update"), map(list, steps), strict=True))
    raw |= {"adapt": adapt, "adapt_and_classify": classified, "evaluation": evaluated}
    return {
        "median": {name: median(times) for name, times in raw.items()},
        "p90": {name: float(np.percentile(times, 90)) for name, times in raw.items()},
        "evaluation_episodes_per_second": 1 / median(evaluated),
        "raw": raw,
    }


def clip_and_step(method: torch.nn.Module, optimizer: torch.optim.Optimizer, clip: float | None) -> None:
    """What `outer_step` does after the backward pass."""
    torch.nn.utils.clip_grad_norm_(method.parameters(), clip or math.inf)
    optimizer.step()


def memory(task: Task, recipe: str) -> dict[str, float]:
    """Resident MiB of a process that trains three episodes from few images: once all is imported, and at the peak."""
    imported = record.memory(peak=True)
    contenders.train(iter([None] * 3), task.config(recipe), task.sampler(small=True))
    return {"imported_mib": imported, "peak_mib": record.memory(peak=True)}


def timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    start = perf_counter()
    result = function(*args)
    return result, perf_counter() - start


def until(seconds: float) -> Iterator[int]:
    """Numbers for so long, four at least."""
    start = perf_counter()
    for number in count():
        if number >= 4 and perf_counter() - start >= seconds:
            return
        yield number


if __name__ == "__main__":
    tyro.cli(main)
