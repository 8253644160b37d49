"""How long `metalstm table` takes on images of mini-ImageNet's size; see README.md beside this file."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro

import record
from contenders import random_images
from metalstm import convergence, kernels, tuning
from metalstm.console import console
from metalstm.datasets import MetaSets
from metalstm.evaluation import evaluate
from metalstm.methods import GradientMethod, HeadOnly, Method, PixelNearestNeighbor, Pretrained, build
from metalstm.optimizers import RULES
from metalstm.recipes import RunConfig
from metalstm.table import PRETRAINING, Row, Table, Task, rows, select, tasks
from speed import timed

CLASSES = {"meta-train": 64, "meta-val": 16, "meta-test": 20}
IMAGES = 40  # of a class: how many there are makes no difference to the time of an episode


def main(out: Path = Path("results/speed"), size: int = 84, rounds: int = 3, threads: int = 2) -> None:
    """Time steps of all that a table consists of, and write OUT/table_hours.json and OUT/README.md.

    Args:
        out: Folder of the results.
        size: Height and width of the images.
        rounds: Of each measurement, after one that does not count; the median is taken.
        threads: CPU threads.
    """
    torch.set_num_threads(threads)
    kernels.keep_memory()
    kernels.build()
    columns: dict[str, Any] = {}
    pretraining: dict[str, Any] = {}
    result = record.circumstances(threads) | {"size": size, "rounds": rounds}
    result |= {"pretraining": pretraining, "columns": columns}
    splits = {split: random_images(n_classes, IMAGES, (size, size, 3)) for split, n_classes in CLASSES.items()}
    with tempfile.TemporaryDirectory() as scratch:
        table = Table(MetaSets("mini-imagenet", splits, "none", "random"), Path(scratch))
        for row in (*select("meta-lstm"), *select("meta-lstm-64")):
            run, config = table.trainings(row, PRETRAINING)[0]
            pretraining[f"{config.settings.filters} filters"] = training(table, run, config, PRETRAINING, rounds)
        for task in tasks("mini-imagenet"):
            columns[str(task)] = {}
            for row in rows(task):
                columns[str(task)][row.name] = line(table, row, task, rounds)
                console.print(f"{task} {row.name}: {columns[str(task)][row.name]}", soft_wrap=True)
        result["comparison"] = comparison(table, rounds)
    record.save(out, "table_hours.json", result)
    record.show(out, "table_hours.json")


def line(table: Table, row: Row, task: Task, rounds: int) -> dict[str, float]:
    """Seconds of each part of a row at the most, less the pre-training that it shares with others."""
    if row.method == "pixels":
        return {"test": testing(table, PixelNearestNeighbor(), task, rounds)}
    run, config = table.trainings(row, task)[-1]
    method = build(config)
    if not isinstance(method, Pretrained):
        return training(table, run, config, task, rounds) | {"test": testing(table, method, task, rounds)}
    if not row.rules:
        return {"test": testing(table, method, task, rounds)}
    budget, tuned = table.budget, table.untuned(task, config, method, row.head_only)
    tune = followed(budget.few, budget.many) * trajectory(table, tuned, task, rounds)
    if isinstance(tuned, HeadOnly):  # trajectories are of features, which each rule makes once of all its episodes
        tune += budget.many * typical(partial(tuned.embedded, table.episodes("meta-val", task)[0]), rounds)
    return {"tune": len(row.rules) * tune, "test": testing(table, tuned, task, rounds)}


def followed(few: int, many: int) -> int:
    """Episodes that `tuning.tune` follows, if no end of the rates is best."""
    settings = len(tuning.HALF_DECADES["sgd"]) + tuning.KEPT * (len(tuning.DECAYS) - 1)
    return settings * few + tuning.KEPT * (many - few)


def training(table: Table, run: Path, config: RunConfig, task: Task, rounds: int) -> dict[str, float]:
    """Seconds of a training and its validations, if it never loses patience."""
    settings, val = config.training, table.episodes("meta-val", task)
    validations = settings.episodes // settings.val_every * settings.val_episodes
    return {
        "train": median(table.seconds(run, config) for _ in range(rounds)),
        "validate": validations * typical(lambda: evaluate(build(config), val, 1), rounds),
    }


def testing(table: Table, method: Method, task: Task, rounds: int) -> float:
    """Seconds of a row's test."""
    return table.budget.test_episodes * typical(lambda: evaluate(method, table.episodes("meta-test", task), 1), rounds)


def trajectory(table: Table, method: Method, task: Task, rounds: int) -> float:
    """Seconds of following fine-tuning over an episode as tuning does, and of its losses, which tuning leaves out."""
    episode = table.episodes("meta-val", task)[0]
    if isinstance(method, HeadOnly):
        episode, method = method.embedded(episode), method.head
    assert isinstance(method, GradientMethod)
    return typical(partial(tuning.curves, method, lambda _: episode, [0], table.budget.read_at), rounds)


def comparison(table: Table, rounds: int) -> float:
    """Seconds, roughly, of comparing the optimisers, whose rules are tuned from two starts, and of the ablation."""
    task = convergence.TASK
    (learned,), (nearest,) = select("meta-lstm"), select("nearest-neighbor")
    method = build(table.config(learned, task, table.seed))
    _, start = table.trainings(nearest, task)[-1]
    pretrained = build(start)
    assert isinstance(method, GradientMethod)
    assert isinstance(pretrained, Pretrained)
    ablation = testing(table, method, task, rounds)
    large = trajectory(table, table.untuned(task, start, pretrained), task, rounds)
    method.optimizer, method.epochs, method.batch_size = RULES["sgd"](0.01, 0.0), table.budget.read_at[-1], None
    small = trajectory(table, method, task, rounds)
    search = followed(convergence.FEW, convergence.MANY)
    drawn = convergence.EPISODES * (len(RULES) + 1)
    return 2 * (len(RULES) * search + drawn) * small + drawn * large + 4 * ablation


def typical(function: Callable[[], Any], rounds: int) -> float:
    """Median of the seconds of some calls, after one."""
    return median([timed(function)[1] for _ in range(rounds + 1)][1:])


if __name__ == "__main__":
    tyro.cli(main)
