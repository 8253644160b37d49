"""Records of measurements: facts about the machine, memory, JSON files, and the page made from them."""

import json
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.markdown import Markdown

from metalstm import provenance
from metalstm.files import write

ROOT = Path(__file__).parents[1]
T = TypeVar("T")


def circumstances(threads: int) -> dict[str, Any]:
    """Command, date, machine and versions; no host name and no path of this machine."""
    words = [re.sub(r"(?<![^=])[/~].*", "DIR", word) for word in sys.argv[1:]]
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": provenance.machine(threads) | {"load_average": os.getloadavg()[0]},
        "versions": provenance.versions(),
    }


def memory(pid: int | str = "self", peak: bool = False) -> float:
    """Resident memory of a process in MiB, now or at its peak, as Linux reports it."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s*(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


def follow(words: list[str], run: Path) -> Iterator[tuple[dict[str, Any], float, int]]:
    """Start `metalstm train`, and stop it when the caller reads no more.

    Args:
        words: What comes after `metalstm train`.
        run: The run folder to make.

    Yields:
        Each line of its metrics as it is written, the seconds since the start, and the number of the process.

    Raises:
        RuntimeError: The training ended by itself.
    """
    start = perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "metalstm", "train", *words, "--out", run])
    metrics, n_read = run / "metrics.jsonl", 0
    try:
        while process.poll() is None:
            lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
            for line in lines[n_read:]:
                yield json.loads(line), perf_counter() - start, process.pid
            n_read = len(lines)
            sleep(0.01)
        raise RuntimeError(f"metalstm train ended too early, with status {process.returncode}")
    finally:
        process.terminate()
        process.wait()


def fresh(function: Callable[..., T], *args: Any, threads: int) -> T:
    """Call a function in a new process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (threads,)) as pool:
        return pool.submit(function, *args).result()


def save(out: Path, name: str, result: dict[str, Any]) -> None:
    """Write `out`/`name`, and renew `out`/README.md from all JSON files that are there."""
    write(out / name, (json.dumps(result, indent=1) + "\n").encode())
    write(out / "README.md", page(out).encode())


def show(out: Path, name: str) -> None:
    """Print the section of one JSON file."""
    Console().print(Markdown(section(out / name)))


def page(out: Path) -> str:
    """A Markdown page of the results in a folder."""
    text = (
        "# Speed\n\nEach section names the command that made it. [Benchmarks](../../benchmarks/README.md) explains the "
        "columns.\n"
    )
    names = ("cpu.json", "memory.json", "time_to_accuracy.json", "table_hours.json")
    text = "\n".join([text, *(section(out / name) for name in names if (out / name).exists())]).rstrip() + "\n"
    return "\n".join(_wrapped(line) for line in text.split("\n"))


def _wrapped(line: str) -> str:
    """A line of prose in lines of at most 100 characters; tables and headings stay as they are."""
    if line.startswith(("|", "#")):
        return line
    return textwrap.fill(line, 100, break_long_words=False, break_on_hyphens=False)


def section(path: Path) -> str:
    """A JSON file as Markdown."""
    sections = {
        "cpu": _speed,
        "memory": _memory,
        "time_to_accuracy": _time_to_accuracy,
        "table_hours": _table_hours,
    }
    return sections[path.stem](json.loads(path.read_text())).rstrip() + "\n"


def table(head: str, rows: list[list[Any]]) -> str:
    """A Markdown table; `head` is its names with | between them."""
    names = head.split("|")
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines) + "\n"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:,.4g}" if isinstance(value, float) else str(value)


def _origin(result: dict[str, Any], title: str) -> str:
    machine, versions = result["machine"], result["versions"]
    changed = " with changes" if versions["changed_files"] else ""
    return (
        f"## {title}\n\n`{result['command']}`, {result['date'][:10]}: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, {machine['memory_gib']} GiB; Python {versions['python']}, "
        f"torch {versions['torch']}, metalstm {versions['metalstm']} ({versions['commit'][:10]}{changed}).\n\n"
    )


def _speed(result: dict[str, Any]) -> str:
    tasks = result["tasks"].items()
    rates = ", ".join(f"{max(rates):,.0f} GFLOP/s in {name}" for name, rates in result["matmul_gflops"].items())
    text = _origin(result, "Training and adaptation")
    text += "This was a quick trial, not a measurement.\n\n" if result["quick"] else ""
    text += f"Medians of {result['rounds']} rounds of about {result['seconds']:g} s. Matrix products reach {rates}.\n\n"
    head = "task|what|training episodes/s|s an episode|times as slow as paper fp32 (range over rounds)"
    rows = []
    for name, task in tasks:
        for what, each in task["training"].items():
            slow = task["times_as_slow_as_paper"].get(what)
            times = f"{slow['ratio']:.3g} ({slow['min']:.3g} to {slow['max']:.3g})" if slow else None
            rows.append([name, what, each["episodes_per_second"], each["seconds"], times])
    text += table(head, rows)
    head = "task|recipe|GFLOP an episode|% of roofline|peak MiB|MiB after import|evaluation episodes/s"
    rows = [
        [
            name,
            recipe,
            task["gflop"][recipe],
            task["percent_of_roofline"][recipe],
            task["memory"][recipe]["peak_mib"],
            task["memory"][recipe]["imported_mib"],
            parts["evaluation_episodes_per_second"],
        ]
        for name, task in tasks
        for recipe, parts in task["parts"].items()
    ]
    text += table(head, rows)
    whats = ("sampling", "forward", "backward", "update", "adapt", "adapt_and_classify")
    rows = [
        [name, recipe, *(1e3 * parts["median"][what] for what in whats), 1e3 * parts["p90"]["adapt"]]
        for name, task in tasks
        for recipe, parts in task["parts"].items()
    ]
    text += "Milliseconds, median:\n\n"
    text += table("task|recipe|sampling|forward|backward|clip, Adam|adapt|adapt + 75 queries|adapt, 90 %", rows)
    rows = [[f"`{name}`", each[0], median(each[1:])] for name, each in result["startup_seconds"].items()]
    return text + table("start-up|first, s|later, s", rows)


def _memory(result: dict[str, Any]) -> str:
    long = result["long_run"]
    text = _origin(result, "Memory") + (
        f"`metalstm {long['command']}`: {long['early_mib']:,.1f} MiB resident after {long['early']:,} episodes, "
        f"{long['end_mib']:,.1f} MiB after {long['end']:,}.\n\n"
        f"Peak of training episodes, {result['shape']}, 5-shot, `{result['recipe']}` with T inner steps, minus the "
        "resident memory after import, in MiB:\n\n"
    )
    rows = [
        [f"order {order}", *map(float, each["peak_mib"].values()), each["mib_a_step"], each["off_line_mib"]]
        for order, each in result["orders"].items()
    ]
    steps = "|".join(f"T = {t}" for t in next(iter(result["orders"].values()))["peak_mib"])
    return text + table(f"|{steps}|a step|furthest off a line", rows)


def _time_to_accuracy(result: dict[str, Any]) -> str:
    first, lasting = result["best"]["first"], result["best"]["mean_of_three"]
    text = _origin(result, "Time to accuracy") + (
        f"CIFAR-FS, 5-way 5-shot: `paper` is at {result['target']:.2f} % meta-val after {result['at']:,} episodes. "
        f"`best` reaches that after {first['episode']:,} episodes and {first['wall_seconds'] / 60:.1f} minutes, "
        "including the start and validations. The mean of three validations reaches it after "
        f"{lasting['episode']:,} episodes and {lasting['wall_seconds'] / 60:.1f} minutes.\n\n"
    )
    rows = [
        [name, seconds / 60, seconds / first["wall_seconds"], seconds / lasting["wall_seconds"]]
        for name, seconds in result["paper_seconds"].items()
    ]
    head = f"{result['at']:,} episodes of paper|minutes|times as long as best|as best, mean of three"
    return text + table(head, rows)


def _table_hours(result: dict[str, Any]) -> str:
    text = _origin(result, "How long a table takes") + (
        f"Hours of `metalstm table` in float32 on random images of {result['size']}x{result['size']}x3, with as many "
        "classes as mini-ImageNet, if no training ends early: training and validations, tuning, tests.\n\n"
    )
    head, lines = "part|training|validations|tuning|test|all", []
    named = [(f"pre-training, {name}", parts) for name, parts in result["pretraining"].items()]
    named += [(f"{row}, {task}", parts) for task, rows in result["columns"].items() for row, parts in rows.items()]
    for name, parts in [*named, ("comparison of the optimizers, ablation", {"all": result["comparison"]})]:
        seconds = [*map(parts.get, ("train", "validate", "tune", "test")), sum(parts.values())]
        lines.append([name, *(None if each is None else f"{each / 3600:.2f}" for each in seconds)])
    return text + table(head, lines)
