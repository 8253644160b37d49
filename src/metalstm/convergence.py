"""The paper's first complaint, measured: how fast does an optimiser learn from a few images?"""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from metalstm import checkpoint
from metalstm.evaluation import Accuracy, evaluate
from metalstm.learners import Conv4
from metalstm.methods import GradientMethod, Pretrained, build
from metalstm.optimizers import RULES, InnerOptimizer, MetaLSTM
from metalstm.recipes import RunConfig
from metalstm.table import Table, Task, select
from metalstm.tuning import Choice, curves

FEW, MANY = 10, 30  # meta-val episodes of the two rounds in which a rule is tuned for a start that no row has
LEARNED = "meta-lstm"
TASK, EPISODES = Task(5, 5), 100  # of the comparison, and of meta-test


def compare(table: Table) -> None:
    """Make `convergence` and `ablation` of a table whose rows are there, at one task; what is there stays."""
    results = path(table, "convergence"), path(table, "ablation")
    if not results[0].exists():
        _write(results[0], convergence(table, TASK, min(EPISODES, table.budget.test_episodes)))
    if not results[1].exists():
        tuned = json.loads(results[0].read_text())["starts"]["theta_0"]
        _write(results[1], ablation(table, TASK, tuned))


def path(table: Table, kind: str) -> Path:
    """The file of `convergence` or `ablation`."""
    return table.out / "convergence" / f"{kind}-{TASK}.json"


def convergence(table: Table, task: Task, test_episodes: int) -> dict[str, Any]:
    """Support loss, query loss and query accuracy against inner steps, for every optimiser from three starts.

    The starts: `random` weights; the `pretrained` network that fine-tuning starts from; the Meta-LSTM's own `theta_0`.
    Only the last one tells the learned optimiser and the learned start apart. Fixed rules are tuned on meta-val for
    each start. The Meta-LSTM was trained for its own number of steps, and is drawn beyond it.

    Args:
        table: With the rows of the Meta-LSTM and of nearest neighbour.
        task: The episodes.
        test_episodes: Of meta-test, that the curves are means of.

    Returns:
        `points`, `meta_lstm_steps`, `episodes`, and for each start and optimiser its `curves` (means), `choice`, and
        the query `accuracy` at its best step with `ci95` and `per_episode`.
    """
    method, config = _meta_lstm(table, task)
    pretrained, pretrained_config, _ = checkpoint.load_method(table.checkpoint(select("nearest-neighbor")[0], task))
    assert isinstance(pretrained, Pretrained)
    pretrained.to(table.device)
    fresh = _at_random(method, config)
    with_head = table.untuned(task, pretrained_config, pretrained)
    assert isinstance(with_head, GradientMethod)
    starts: dict[str, GradientMethod] = {"random": fresh, "pretrained": with_head, "theta_0": method}
    sampler = table.episodes("meta-test", task)
    points = sorted({0, *table.budget.read_at, method.epochs})  # inner steps that are drawn
    few, many = min(FEW, table.budget.few), min(MANY, table.budget.many)
    quicker = replace(table, budget=replace(table.budget, few=few, many=many))
    result: dict[str, Any] = {}
    for start, from_there in starts.items():
        result[start] = {}
        for name in (LEARNED, *RULES):
            file = table.out / "convergence" / f"{start}-{name}-{task}.json"
            if not file.exists():
                rival = copy.deepcopy(from_there)
                rival.epochs, rival.batch_size = points[-1], None
                choice = None
                if name == LEARNED:
                    # From `pretrained` the layers have other lengths.
                    rival.optimizer = _relaid(method, with_head if start == "pretrained" else method)
                else:
                    if start == "pretrained":  # as its row of the table
                        (row,) = select(f"finetune-{name}")
                        choice = table.tune_finetuning(row, task, pretrained_config, pretrained)
                    else:
                        choice = quicker.tune(name, rival, task, f"from {start}, {task}: {name}")
                    rival.optimizer = RULES[name](choice.lr, choice.decay)
                label = f"from {start}: {name}"
                read = curves(rival, sampler.__getitem__, range(test_episodes), points, description=label)
                steps = method.epochs if choice is None else choice.steps
                accuracy = Accuracy(read.accuracy[:, points.index(steps)].tolist())
                entry = {
                    "choice": None if choice is None else asdict(choice),
                    "steps": steps,
                    "accuracy": accuracy.mean,
                    "ci95": accuracy.ci95,
                    "per_episode": accuracy.per_episode,
                    "curves": {key: values.mean(0).tolist() for key, values in read._asdict().items()},
                }
                _write(file, entry)
            result[start][name] = json.loads(file.read_text())
    return {
        "points": points,
        "meta_lstm_steps": method.epochs,
        "episodes": test_episodes,
        "starts": result,
    }


def _meta_lstm(table: Table, task: Task) -> tuple[GradientMethod, RunConfig]:
    """The Meta-LSTM as it was tested, and its configuration."""
    method, config, _ = checkpoint.load_method(table.checkpoint(select("meta-lstm")[0], task))
    assert isinstance(method, GradientMethod)
    assert isinstance(method.optimizer, MetaLSTM)
    return method.to(table.device).eval(), config


def _write(file: Path, values: dict[str, Any]) -> None:
    checkpoint.write(file, (json.dumps(values) + "\n").encode())


def _at_random(method: GradientMethod, config: RunConfig) -> GradientMethod:
    """The method with the weights that its training drew, from which no pre-training and no meta-training came."""
    fresh = build(config)
    assert isinstance(fresh, GradientMethod)
    fresh.optimizer = copy.deepcopy(method.optimizer)
    if fresh.keep_moments:  # those of the pre-training are nothing to random weights
        fresh.keep_moments, fresh.query_norm = False, "support"
    return fresh.to(method.moments_0.device).eval()


def _relaid(method: GradientMethod, other: GradientMethod) -> MetaLSTM:
    """A copy of a method's learned optimiser for the learner of another, whose layers have the same names."""
    optimizer = copy.deepcopy(method.optimizer)
    assert isinstance(optimizer, MetaLSTM)
    assert isinstance(other.learner, Conv4)
    if optimizer.layers is not None:
        optimizer.layers = other.learner.lengths
    return optimizer


def unforgetting(method: GradientMethod) -> None:
    """Let a Meta-LSTM forget nothing: f = 1, exactly, whatever it sees."""
    assert isinstance(method.optimizer, MetaLSTM)
    method.optimizer.weight_f.zero_()
    method.optimizer.bias_f.fill_(1e4)  # not infinite: the next step takes f before its sigmoid times its weight


def ablation(table: Table, task: Task, tuned: dict[str, Any]) -> dict[str, Any]:
    """What each part of a trained Meta-LSTM is worth: taken away after training, on the table's meta-test episodes.

    Args:
        table: With the Meta-LSTM.
        task: The episodes.
        tuned: What `convergence` gives for the start `theta_0`.

    Returns:
        For `whole`, `theta_0 only` (the tuned rule that is best from there instead of the learned one), `gates only`
        (random weights instead of theta_0), `f = 1` (no forgetting): `accuracy`, `ci95`, `per_episode`.
    """
    method, config = _meta_lstm(table, task)

    def varied(change: Callable[[GradientMethod], None]) -> GradientMethod:
        other = copy.deepcopy(method)
        with torch.no_grad():
            change(other)
        return other

    best = max((Choice(**tuned[rule]["choice"]) for rule in RULES), key=lambda choice: choice.meta_val)

    def ruled(other: GradientMethod) -> None:
        rule: InnerOptimizer = RULES[best.rule](best.lr, best.decay)
        other.optimizer, other.epochs, other.batch_size = rule, best.steps, None

    variants = {
        "whole": method,
        f"theta_0 only ({best.rule})": varied(ruled),
        "gates only": _at_random(method, config),
        "f = 1": varied(unforgetting),
    }
    sampler = table.episodes("meta-test", task)
    result = {}
    for name, variant in variants.items():
        accuracy = evaluate(variant, sampler, table.budget.test_episodes, f"ablation, {task}: {name}")
        result[name] = {"accuracy": accuracy.mean, "ci95": accuracy.ci95, "per_episode": accuracy.per_episode}
    return result
