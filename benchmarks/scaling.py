"""One process with two threads against two processes of one thread each: training of the same run by both.

Images of 32x32x3, 5-way 5-shot, 15 queries a class, random. A step is all that `metalstm.training` does in one: drawing
the episodes, forward, backward with all-reduce, clip, Adam, the decision whether to stop. The groups of processes take
turns, A B C A B C ..., one at work at a time. docs/scaling.md tells the model that the measurement is held against.
"""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.markdown import Markdown

import contenders
import record
from metalstm import distributed
from metalstm.files import write
from metalstm.training import outer_optimizer, outer_step

TASK = contenders.Task("32x32x3", 5)
GROUPS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}
ONE, THREADS, PROCESSES = GROUPS


def main(
    out: Path = Path("results/speed/scaling.json"),
    recipes: tuple[str, ...] = ("paper", "best"),
    meta_batch: int = 4,
    rounds: int = 9,
    seconds: float = 5.0,
    quick: bool = False,
) -> None:
    """Measure, print the table and write it to OUT.

    Args:
        out: JSON file of the result.
        recipes: Which to measure.
        meta_batch: Episodes a step, of all processes together.
        rounds: Turns of each group.
        seconds: Length of a turn.
        quick: See whether it works: few images, one short round.
    """
    if quick:
        rounds, seconds = 1, 0.0
    result = record.circumstances(2) | {"meta_batch": meta_batch, "rounds": rounds, "seconds": seconds, "quick": quick}
    result["recipes"] = {recipe: measure(recipe, meta_batch, rounds, seconds, quick) for recipe in recipes}
    write(out, (json.dumps(result, indent=1) + "\n").encode())
    Console().print(Markdown(tables(result)))


def measure(recipe: str, meta_batch: int, rounds: int, seconds: float, small: bool) -> dict[str, Any]:
    """Seconds of every step and of an all-reduce alone, and what the model makes of them."""
    groups = {name: Group(*sizes, recipe, meta_batch, small) for name, sizes in GROUPS.items()}
    counts = {}
    for name, group in groups.items():
        group.work("step", 3)  # warms up
        counts[name] = max(1, round(seconds / group.work("step", 1)))
    steps: dict[str, list[float]] = {name: [] for name in groups}
    for _ in range(rounds):
        for name, group in groups.items():
            steps[name].append(group.work("step", counts[name]))
    reduce_counts = 5 if small else 500
    reduces = [groups[PROCESSES].work("all-reduce", reduce_counts) for _ in range(max(3, rounds))]
    for group in groups.values():
        group.end()
    one, threads, processes = (median(steps[name]) for name in GROUPS)
    ratios = [threads / processes for threads, processes in zip(steps[THREADS], steps[PROCESSES], strict=True)]
    return {
        "meta_parameters": sum(p.numel() for p in contenders.build(TASK.config(recipe)).parameters()),
        "seconds_a_step": steps,
        "all_reduce_seconds": reduces,
        "episodes_per_second": {name: meta_batch / median(times) for name, times in steps.items()},
        "processes_over_threads": {"ratio": threads / processes, "min": min(ratios), "max": max(ratios)},
        "predicted_seconds": -(-meta_batch // 2) * one / meta_batch + median(reduces),
        "measured_seconds": processes,
    }


class Group:
    """Processes that train together, and wait in between."""

    def __init__(self, size: int, threads: int, recipe: str, meta_batch: int, small: bool):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self.connections: list[Connection] = []
        os.environ["OMP_NUM_THREADS"] = str(threads)
        for rank in range(size):
            ours, theirs = context.Pipe()
            args = (theirs, rank, size, port, threads, recipe, meta_batch, small)
            context.Process(target=_work, args=args, daemon=True).start()
            theirs.close()
            self.connections.append(ours)

    def work(self, what: str, count: int) -> float:
        """Seconds that each of `count` steps or all-reduces takes."""
        for connection in self.connections:
            connection.send((what, count))
        return max(connection.recv() for connection in self.connections) / count

    def end(self) -> None:
        """End the processes."""
        for connection in self.connections:
            connection.send(None)


def _work(
    connection: Connection, rank: int, size: int, port: int, threads: int, recipe: str, meta_batch: int, small: bool
) -> None:
    torch.set_num_threads(threads)
    if size > 1:
        there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size}
        os.environ.update({name: str(value) for name, value in there.items()})
        distributed.join("cpu")
    config, sampler = TASK.config(recipe), TASK.sampler(small)
    method = contenders.ready(config)
    model = distributed.wrap(method, sampler[0])
    optimizer = outer_optimizer(method, config.training)
    gradient = torch.zeros(sum(p.numel() for p in method.parameters()))
    done = 0

    def step() -> None:
        nonlocal done
        numbers = range(done, done + meta_batch)
        mine = distributed.share(numbers)
        loss, _ = model(sampler.batch(mine))
        outer_step(loss * (len(mine) * size / meta_batch), method, optimizer, config.training.clip)
        distributed.highest(0.0, 0.0)
        done = numbers.stop

    def all_reduce() -> None:
        distributed.total(gradient)
        distributed.highest(0.0, 0.0)

    does: dict[str, Callable[[], None]] = {"step": step, "all-reduce": all_reduce}
    while order := connection.recv():
        what, count = order
        start = perf_counter()
        for _ in range(count):
            does[what]()
        connection.send(perf_counter() - start)
    os._exit(0)


def tables(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    head = f"recipe|{'|'.join(GROUPS)}|processes over threads (a round's least to most)"
    rates = [
        [
            recipe,
            *(each["episodes_per_second"][name] for name in GROUPS),
            "{ratio:.3f} ({min:.3f} to {max:.3f})".format(**each["processes_over_threads"]),
        ]
        for recipe, each in result["recipes"].items()
    ]
    text = f"Episodes/s, {TASK.shape} {TASK.n_shot}-shot, meta-batch {result['meta_batch']}, medians:\n\n"
    text += record.table(head, rates)
    head = "recipe|meta-parameters|all-reduce, ms|step of 2 processes, ms|as predicted, ms|measured over predicted"
    steps = [
        [
            recipe,
            f"{each['meta_parameters']:,}",
            1e3 * median(each["all_reduce_seconds"]),
            1e3 * each["measured_seconds"],
            1e3 * each["predicted_seconds"],
            each["measured_seconds"] / each["predicted_seconds"],
        ]
        for recipe, each in result["recipes"].items()
    ]
    return text + record.table(head, steps)


if __name__ == "__main__":
    tyro.cli(main)
