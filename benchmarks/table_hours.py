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
from metalstm import kernels, recipes
from metalstm.console import console
from metalstm.data import MetaSets
from metalstm.evaluation import evaluate
from metalstm.learners import FixedOnce
from metalstm.methods import GradientMethod, Method
from metalstm.methods.tuning import DECAYS, KEPT, curves
from metalstm.optimizers import RULES, SGD
from metalstm.settings import TrainingSettings
from metalstm.table import Cell, Table, Task, convergence, select
from metalstm.table.plan import Training
from metalstm.table.rows import rows_of
from metalstm.training import step_seconds
from speed import timed

CLASSES = {"meta-train": 64, "meta-val": 16, "meta-test": 20}
IMAGES = 40  # of a class: how many there are makes no difference to the time of an episode
ABLATIONS = 19  # variants of a trained Meta-LSTM that are tested


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
        (row,) = select("meta-lstm")
        start = table.trainings(Cell(row, table.main_task))[0]
        pretraining["64 filters"] = training(table, start, table.hardest_task, rounds)
        for task in table.tasks:
            columns[str(task)] = {}
            for row in rows_of(task):
                columns[str(task)][row.name] = line(table, Cell(row, task), rounds)
                console.print(f"{task} {row.name}: {columns[str(task)][row.name]}", soft_wrap=True)
        result["comparison"] = comparison(table, rounds)
    record.save(out, "table_hours.json", result)
    record.show(out, "table_hours.json")


def line(table: Table, cell: Cell, rounds: int) -> dict[str, float]:
    """Seconds of each part of a row at the most, less the pre-training that it shares with others."""
    own = table.trainings(cell)[-1]
    method = recipes.build(own.config).eval()
    if own.config.method == recipes.pretraining(own.config).method:  # it is a pre-training itself
        return {"test": testing(table, method, cell.task, rounds)}
    parts = training(table, own, cell.task, rounds)
    if rules := getattr(own.config.settings, "rules", ()):
        assert isinstance(method, GradientMethod)
        search = table.budget.search
        method = followed_by(method, search.read_at[-1])
        # What does not depend on theta is computed once for each episode and rule.
        once = method.with_inner_loop(learner=FixedOnce(method.learner))
        tune = followed(search.few, search.many) * trajectory(table, once, cell.task, rounds)
        support = table.episodes("meta-val", cell.task)[0].support
        tune += search.many * typical(partial(method.learner.fixed, support.x), rounds)
        parts["tune"] = len(rules) * tune
    return {**parts, "test": testing(table, method, cell.task, rounds)}


def followed(few: int, many: int) -> int:
    """Episodes that `tune_rule` follows, if the best rate is not at an end of the grid."""
    settings = len(SGD.half_decades) + KEPT * (len(DECAYS) - 1)
    return settings * few + KEPT * (many - few)


def followed_by(method: GradientMethod, steps: int) -> GradientMethod:
    """The method with an inner loop of so many steps of a fixed rule."""
    return method.with_inner_loop(optimizer=SGD(0.0), epochs=steps, few_shot_epochs=None, batch_size=None)


def training(table: Table, run: Training, task: Task, rounds: int) -> dict[str, float]:
    """Seconds of a training, if there is one, and of its validations, if it never loses patience."""
    settings, val = run.config.training, table.episodes("meta-val", task)
    method = recipes.build(run.config)
    parts = {"validate": validations(settings) * typical(lambda: evaluate(method, val, 1), rounds)}
    if settings.episodes:
        seconds = median(step_seconds(run.config, table.meta_sets, table.device) for _ in range(rounds))
        parts["train"] = settings.episodes * seconds
    return parts


def validations(settings: TrainingSettings) -> int:
    """Episodes of all validations; a method that is not trained is validated once."""
    return max(1, settings.episodes // settings.val_every) * settings.val_episodes


def testing(table: Table, method: Method, task: Task, rounds: int) -> float:
    """Seconds of a row's test."""
    return table.budget.test_episodes * typical(lambda: evaluate(method, table.episodes("meta-test", task), 1), rounds)


def trajectory(table: Table, method: GradientMethod, task: Task, rounds: int) -> float:
    """Seconds of following an inner loop over an episode, and of its losses, which tuning leaves out."""
    episode = table.episodes("meta-val", task)[0]
    return typical(partial(curves, method, lambda _: episode, [0], table.budget.search.read_at), rounds)


def comparison(table: Table, rounds: int) -> float:
    """Seconds, roughly, of comparing the optimizers from three starts, with each rule tuned, and of the ablation."""
    row = convergence.learned_row(table)
    assert row is not None
    method = recipes.build(table.trainings(Cell(row, table.main_task))[-1].config).eval()
    assert isinstance(method, GradientMethod)
    follow = trajectory(table, followed_by(method, table.budget.search.read_at[-1]), table.main_task, rounds)
    rivals = len(RULES) + 1  # SGD of the head alone is one more
    episodes = rivals * followed(convergence.FEW, convergence.MANY) + (rivals + 1) * convergence.EPISODES
    return len(convergence.STARTS) * episodes * follow + ABLATIONS * testing(table, method, table.main_task, rounds)


def typical(function: Callable[[], Any], rounds: int) -> float:
    """Median of the seconds of some calls, after one."""
    return median([timed(function)[1] for _ in range(rounds + 1)][1:])


if __name__ == "__main__":
    tyro.cli(main)
