"""How much memory training takes: over many episodes, and with many inner steps; see README.md beside this file."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import contenders
import record
from contenders import Task
from metalstm import recipes
from metalstm.methods import RunConfig

TINY = "--data glyphs --n-way 2 --n-shot 1 --n-query 3 --filters 16 --hidden-size 3 --epochs 2 --val-every 1000"


def main(
    out: Path = Path("results/speed"),
    episodes: int = 20_000,
    early: int = 200,
    recipe: str = "best",
    shape: str = "32x32x3",
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32),
    threads: int = 2,
) -> None:
    """Measure, and write OUT/memory.json and OUT/README.md.

    Args:
        out: Folder of the results.
        episodes: Length of the long run, of a tiny learner on the built-in glyphs.
        early: Episode after which its memory is compared with that at the end.
        recipe: Of all runs.
        shape: Images of the runs with many inner steps: height, width, channels.
        steps: Numbers of inner steps.
        threads: CPU threads.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    result = record.circumstances(threads) | {"recipe": recipe, "shape": shape}
    result["long_run"] = long_run(recipe, episodes, early, threads)
    result["orders"] = {order: by_steps(Task(shape, 5).config(recipe), order, steps, threads) for order in ("1", "2")}
    record.save(out, "memory.json", result)
    record.show(out, "memory.json")


def long_run(recipe: str, episodes: int, early: int, threads: int) -> dict[str, Any]:
    """Resident MiB of the real command at every line of its metrics, validations and saved states included."""
    words = ["--recipe", recipe, *TINY.split(), "--patience", "None", "--threads", str(threads)]
    words += ["--episodes", str(2 * episodes)]  # it is stopped before it draws its pictures
    resident = {}
    with tempfile.TemporaryDirectory() as folder:
        for line, _, process in record.follow(words, Path(folder) / "run"):
            resident[line["episode"]] = record.memory(process)
            if line["episode"] >= episodes:
                break
    start, end = min(n for n in resident if n >= early), max(resident)
    return {
        "command": " ".join(["train", *words]),
        "early": start,
        "early_mib": resident[start],
        "end": end,
        "end_mib": resident[end],
        "resident_mib": resident,
    }


def by_steps(config: RunConfig, order: str, steps: tuple[int, ...], threads: int) -> dict[str, Any]:
    """Peak MiB by number of inner steps, and how far it is from a line."""
    peaks = []
    for n in steps:
        changes = {"epochs": n, "batch_size": config.n_way * config.n_shot, "order": int(order)}
        peaks.append(record.fresh(peak, recipes.with_changes(config, changes), threads=threads))
    slope, start = np.polyfit(steps, peaks, 1)
    return {
        "peak_mib": dict(zip(map(str, steps), peaks, strict=True)),
        "mib_a_step": float(slope),
        "off_line_mib": float(np.abs(slope * np.array(steps) + start - peaks).max()),
    }


def peak(config: RunConfig) -> float:
    """Peak MiB of a process that trains three episodes, less that after import."""
    height, width = config.image_shape[1:]
    sampler = Task(f"{height}x{width}x{config.image_shape[0]}", config.n_shot).sampler(small=True)
    imported = record.memory(peak=True)
    contenders.train(iter([None] * 3), config, sampler)
    return record.memory(peak=True) - imported


if __name__ == "__main__":
    tyro.cli(main)
