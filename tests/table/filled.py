"""Results of a table without trainings."""

import json
import zlib

import numpy as np

from metalstm import checkpoint, files, recipes
from metalstm.evaluation import Accuracy
from metalstm.table import ROWS, Cell, Table, convergence, select

TRANSDUCTIVE = "maml-paper"


def result(table: Table, cell: Cell) -> dict:
    """A made-up result; another cell has another one. Some episodes are hard for all."""
    random = np.random.RandomState(zlib.crc32(str(cell).encode()))
    hardness = np.random.RandomState(0).uniform(-9, 9, table.budget.test_episodes)
    base = random.uniform(60, 75) + 10 * (cell.task.n_shot > 1)
    accuracy = Accuracy((base + hardness + random.uniform(-5, 5, table.budget.test_episodes)).tolist())
    return {
        "data": table.meta_sets.name,
        "episodes": table.budget.test_episodes,
        "seed": table.seed,
        "accuracy": accuracy.mean,
        "ci95": accuracy.ci95,
        "per_episode": accuracy.per_episode,
        "transductive": cell.row.name == TRANSDUCTIVE,
        "chosen": {"rule": "sgd", "rate": 0.012345678, "steps": 3},
        "parameters": 67890,
        "terms": terms(table, cell),
    }


def terms(table: Table, cell: Cell) -> dict:
    """Of a training as the table plans it."""
    first, own = table.trainings(cell)[0], table.trainings(cell)[-1]
    start = {"run": first.folder.name, "sha256": "c0ffee" * 4, "steps": 3, "seconds": 780.0}
    start["training"] = recipes.to_dict(first.config)["training"]
    episodes = 0 if first == own and "start-" in first.folder.name else own.config.training.episodes
    is_tuned = cell.row.method == "finetune"
    return {
        "start": start if first.folder.name.startswith("start-") else None,
        "config": recipes.to_dict(own.config),
        "episodes": episodes,
        "seconds": 150.0 if episodes else 0.0,
        "tuning_seconds": 30.0 if is_tuned else 0.0,
        "validations": 2,
        "search": {"few": 2, "many": 3, "read_at": [1, 2]} if is_tuned else None,
        "part": recipes.build(own.config).trained_part(),
        "steps": 5 if is_tuned else 0,
    }


def write(path, values) -> None:
    files.write(path, json.dumps(values).encode())


def fill(table: Table) -> None:
    """Results of all rows, of one row from two more seeds, and the comparisons of optimizers."""
    cells = [Cell(row, task) for row in ROWS for task in table.tasks]
    cells += [Cell(row, table.main_task, seed) for row in select("meta-lstm") for seed in (2, 10)]
    for cell in cells:
        write(table.result(cell), result(table, cell))
        own = table.trainings(cell)[-1]
        if own.config.training.episodes:
            lines = [{"episode": n, "seconds": 9.0 * n, "meta_val": 50.0 + n} for n in (1, 2)]
            files.write(own.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    points = [0, 1, 2, 5]
    kinds = ("support_loss", "query_loss", "accuracy")
    measured = {"accuracy": 60.0, "ci95": 1.0, "per_episode": [59.0, 60.0, 61.0, 60.0]}
    entry = {"steps": 2, "curves": {kind: [20.0, 40.0, 60.0, 50.0] for kind in kinds}, "choice": None, **measured}
    without = {"steps": 0, "curves": None, "choice": None, **measured}
    rivals = {"meta-lstm": entry, "sgd": entry, "sgd-head-only": entry, "class-means": without}
    write(
        convergence.path(table, "convergence"),
        {"points": points, "episodes": 4, "starts": dict.fromkeys(convergence.STARTS, rivals)},
    )
    write(convergence.path(table, "ablation"), {"whole": measured, "f = 1": measured | {"per_episode": [60.0] * 4}})


def put_checkpoint(table: Table) -> None:
    """What is tested of the row with a learned optimizer at the main task, not trained."""
    row = convergence.learned_row(table)
    assert row is not None
    cell = Cell(row, table.main_task)
    config = table.trainings(cell)[-1].config
    tensors = checkpoint.method_tensors(recipes.build(config))
    checkpoint.save(table.checkpoint(cell), tensors, {"config": recipes.to_dict(config), "meta_val": 0.0, "episode": 1})
