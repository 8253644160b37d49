"""What `ablate` gives, made up: as many tasks, layers and rivals as a page may have to show."""

from typing import Any

import numpy as np

from metalstm.evaluation import Accuracy, plain
from metalstm.methods.tuning import Choice

NAMES = (
    "whole", "mean gates of each coordinate and step", "mean gates of each layer", "f = 1", "gates blind to loss",
    "gates remember nothing", "only the body moves", "no step, nearest class mean", "the best fixed rule, tuned",
)  # fmt: skip
COSTS = (0.0, 0.05, 0.2, 0.0, -0.3, -1.5, -57.0, 0.4, 0.2)
RIVAL = "runs/a folder with a long name/lslr-glyphs-5w5s-best"


def result(tasks: tuple[str, ...] = ("5w1s", "5w5s", "20w1s-within"), n_tasks: int = 6) -> dict[str, Any]:
    """An ablation of a Meta-LSTM."""
    n_steps = 5
    random = np.random.RandomState(0)
    hardness = random.uniform(-9, 9, 20)
    facts = {
        "checkpoint_sha256": "0123456789abcdef" * 4,
        "parameters": 123456,
        "optimizer_parameters": 789,
        "transductive": False,
        "config": {"method": "meta-lstm", "optimizer": "meta-lstm", "training": {"episodes": 6000}},
    }
    columns = {}
    for k, task in enumerate(tasks):
        variants = {
            name: plain(Accuracy((75 - 5 * k + cost + hardness + random.uniform(-0.5, 0.5, 20)).tolist()))
            for name, cost in zip((*NAMES, RIVAL), (*COSTS, -0.8), strict=True)
        }
        head = 0.1 + 0.01 * random.rand(n_tasks, n_steps)
        layers = {
            layer: {"f": (1 - 1e-6 * head).tolist(), "rate": (head * scale).tolist()}
            for layer, scale in {"conv1": 1e-4, "conv2": 1e-4, "conv3": 1e-4, "conv4": 1e-4, "head": 1.0}.items()
        }
        groups = [f"alphabet {number % 3}" for number in range(n_tasks)]
        loss = np.linspace(1.6, 0.4, n_steps) + 0.1 * random.rand(n_tasks, n_steps)
        loss[:, 0] = 1.609
        columns[task] = {
            "inner_steps": n_steps,
            "chosen": {NAMES[-1]: vars(Choice("momentum", 0.0316227, 0.1, 7, 71.234, 30))},
            "variants": variants,
            "gates": {"groups": groups if task.endswith("-within") else None, "loss": loss.tolist(), "layers": layers},
        }
    return {
        **facts,
        "checkpoint": "meta-lstm-glyphs-5w5s",
        "rivals": {RIVAL: {**facts, "checkpoint": RIVAL}},
        "data": "glyphs",
        "data_digest": "fedcba9876543210" * 4,
        "split": "meta-val",
        "episodes": 20,
        "n_query": 15,
        "seed": 0,
        "mean_tasks": 100,
        "tasks": columns,
        "versions": {"metalstm": "0.1.0"},
        "command": "metalstm ablate meta-lstm-glyphs-5w5s --tasks 5w1s 5w5s 20w1s",
    }
