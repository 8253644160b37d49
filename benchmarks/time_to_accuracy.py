"""How long `best` takes to the accuracy that `paper` has after many episodes; see README.md beside this file."""

import json
import os
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

import tyro

import contenders
import record
from contenders import Task
from metalstm import data


def main(
    paper_run: Path,
    out: Path = Path("results/speed"),
    port: Path | None = None,
    at: int = 10_000,
    val_every: int = 100,
    minutes: float = 240.0,
    threads: int = 2,
    rounds: int = 4,
    seconds: float = 3.0,
) -> None:
    """Measure, and write OUT/time_to_accuracy.json and OUT/README.md.

    Args:
        paper_run: Folder of a run of recipe paper on CIFAR-FS, 5-way 5-shot.
        out: Folder of the results.
        port: A checkout of the public port to compare with.
        at: The episode of that run whose meta-val accuracy is to be reached.
        val_every: Episodes between validations of best.
        minutes: When to give up.
        threads: CPU threads of everything.
        rounds: Turns of paper and port, each before training and after it.
        seconds: Length of a turn.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    result = record.circumstances(threads)
    config = json.loads((paper_run / "config.json").read_text())
    is_paper = [config[name] for name in ("recipe", "data", "n_way", "n_shot")] == ["paper", "cifar-fs", 5, 5]
    lines = [json.loads(line) for line in (paper_run / "metrics.jsonl").read_text().splitlines()]
    there = next((line for line in lines if line["episode"] == at and "meta_val" in line), None)
    if not is_paper or there is None:
        raise SystemExit(f"{paper_run} is no run of paper on cifar-fs 5-way 5-shot with meta_val at episode {at}")
    data.load("cifar-fs")  # decodes it, should that be the first time on this machine

    field = contenders.field(Task("32x32x3", 5), ("paper",), False, port)
    field = {name: field[name] for name in ("paper fp32", "port") if name in field}
    times = contenders.race(field, rounds, seconds, threads)
    best = train_best(config, there["meta_val"], val_every, minutes, threads)
    for name, more in contenders.race(field, rounds, seconds, threads).items():
        times[name] += more
    result |= {
        "at": at,
        "target": there["meta_val"],
        "val_episodes": config["training"]["val_episodes"],
        "best": best,
        "seconds_an_episode": times,
        "paper_seconds": {"as it was trained": there["seconds"]}
        | {f"{name} at its speed now": at * median(each) for name, each in times.items()},
    }
    record.save(out, "time_to_accuracy.json", result)
    record.show(out, "time_to_accuracy.json")


def train_best(config: dict[str, Any], target: float, val_every: int, minutes: float, threads: int) -> dict[str, Any]:
    """Train best from scratch by the command until the mean of three validations in a row is at the target.

    The wall time counts from the start of the command. The first validation at the target may be there by luck, the
    mean of three less so: both are told.
    """
    val_episodes, seed = config["training"]["val_episodes"], config["seed"]
    words = f"""--recipe best --data cifar-fs --n-shot 5 --n-query {config["n_query"]} --seed {seed} --threads {threads}
        --val-every {val_every} --val-episodes {val_episodes} --patience None --minutes {minutes}""".split()
    curve: list[dict[str, float]] = []
    first: dict[str, float] | None = None
    with tempfile.TemporaryDirectory() as folder:
        for line, wall_seconds, _ in record.follow(words, Path(folder) / "run"):
            if "meta_val" not in line:
                continue
            curve.append({"episode": line["episode"], "wall_seconds": wall_seconds, "meta_val": line["meta_val"]})
            if first is None and line["meta_val"] >= target:
                first = curve[-1]
            if len(curve) >= 3 and mean(point["meta_val"] for point in curve[-3:]) >= target:
                break
    return {"command": " ".join(["train", *words]), "first": first, "mean_of_three": curve[-1], "curve": curve}


if __name__ == "__main__":
    tyro.cli(main)
