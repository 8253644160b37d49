"""A table of results as Markdown, JSON and one self-contained page."""

import json
from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any

import torch
from matplotlib.figure import Figure

from metalstm import checkpoint, convergence, provenance, report
from metalstm.convergence import LEARNED
from metalstm.episodes import EpisodeSampler
from metalstm.evaluation import Accuracy, confusion
from metalstm.methods import GradientMethod
from metalstm.optimizers import MetaLSTM
from metalstm.report import Strong
from metalstm.table import PRETRAINING, ROWS, Table, Task, rows, select, tasks

Results = dict[Task, dict[str, dict[str, Any]]]  # task -> name of a row -> what was measured
GATE_TASKS, CONFUSION_EPISODES = 50, 200
OPTIMIZERS = {LEARNED: "Meta-LSTM", "sgd": "SGD", "momentum": "momentum", "adagrad": "Adagrad"}
OPTIMIZERS |= {"adadelta": "Adadelta", "adam": "Adam"}
STARTS = {"random": "random weights", "pretrained": "pre-trained weights", "theta_0": "the Meta-LSTM's theta_0"}


def difference(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Mean of paired differences, and half the width of its 95 % interval."""
    gaps = Accuracy([a - b for a, b in zip(one, other, strict=True)])
    return gaps.mean, gaps.ci95


def bold(results: Mapping[str, dict[str, Any]]) -> set[str]:
    """The rows that are best: the highest mean, and those whose interval overlaps its own, as in the paper."""
    if not results:
        return set()
    top = max(results.values(), key=lambda result: result["accuracy"])
    low = top["accuracy"] - top["ci95"]
    return {name for name, result in results.items() if result["accuracy"] + result["ci95"] >= low}


def collect(table: Table) -> Results:
    """The rows that are there already."""
    results: Results = {}
    for task in tasks(table.meta_sets.name):
        results[task] = {}
        for row in rows(task):
            if there := table.read(table.result(row, task)):
                results[task][row.name] = there
    return results


def write(table: Table) -> None:
    """Write `table.md`, `table.json` and `report.html` from what is there."""
    results = collect(table)
    spread = _spread(table)
    there = {kind: convergence.path(table, kind) for kind in ("convergence", "ablation")}
    curves, ablations = (
        {convergence.TASK: json.loads(path.read_text())} if path.exists() else {} for path in there.values()
    )
    values = {
        "data": table.meta_sets.name,
        "quick": table.budget.train_episodes is not None,
        "seed": table.seed,
        "machine": provenance.machine(torch.get_num_threads()),
        "versions": provenance.versions(),
        "tasks": {str(task): rows for task, rows in results.items()},
        "differences": {str(task): _differences(rows) for task, rows in results.items()},
        "seeds": spread,
        "convergence": {str(task): curve for task, curve in curves.items()},
        "ablation": {str(task): parts for task, parts in ablations.items()},
    }
    checkpoint.write(table.out / "table.json", (json.dumps(values) + "\n").encode())
    blocks = _blocks(table, results, spread, curves, ablations)
    checkpoint.write(table.out / "table.md", report.markdown(_title(table), blocks).encode())
    pictures = [*blocks, *_pictures(table, results)]
    checkpoint.write(table.out / "report.html", report.page(_title(table), pictures).encode())


def _title(table: Table) -> str:
    return f"Table 1 on {table.meta_sets.name}" + (" (quick)" if table.budget.train_episodes is not None else "")


def _blocks(
    table: Table,
    results: Results,
    spread: dict[str, Any],
    curves: dict[Task, dict[str, Any]],
    ablations: dict[Task, dict[str, Any]],
) -> list[report.Block]:
    """What both the page and the Markdown show."""
    episodes = table.budget.test_episodes
    versions = provenance.versions()
    blocks: list[report.Block] = [
        f"Mean accuracy in percent and 95 % interval over the same {episodes} meta-test episodes for all rows of a "
        "task, 15 queries a class, inductive: no query's answer depends on another query. Bold: the best, and those "
        "whose interval overlaps its own. Everything was chosen on meta-val before meta-test was opened. The paper's "
        "own figures are for mini-ImageNet, and stand here for the order of the rows.",
        _table(results),
        f"Made by metalstm table --data {table.meta_sets.name}, seed {table.seed}, metalstm {versions['metalstm']} "
        f"({versions['commit'][:10]}), PyTorch {versions['torch']}.",
    ]
    if spread:
        blocks += [
            report.Heading("Between trainings"),
            "The same recipe trained from other seeds, tested on the same episodes.",
            (("seed", "accuracy"), [(seed, _figure(result)) for seed, result in spread["runs"].items()]),
            f"Standard deviation between trainings: {spread['std']:.2f}.",
        ]
    for task, rows_there in results.items():
        if len(rows_there) > 1:
            blocks += [
                report.Heading(f"Paired differences, {_words(task)}"),
                "Row less column, in points, over the same episodes, with the 95 % interval of the paired differences.",
                _difference_table(rows_there),
            ]
    for task, curve in curves.items():
        blocks += [
            report.Heading(f"How fast does each optimiser learn? {_words(task)}"),
            f"Mean query accuracy over {curve['episodes']} meta-test episodes, after as many inner steps as the "
            "brackets tell: those that the Meta-LSTM was trained for, and those that were best on meta-val for a fixed "
            "rule. Fixed rules are tuned on meta-val for each start: from pre-trained weights as in the table, from "
            "the others on fewer episodes. Only the last column tells the learned optimiser and the learned start "
            "apart.",
            (
                ("optimiser", *(f"from {start}" for start in STARTS.values())),
                [
                    (label, *(_at_steps(curve["starts"][start][name]) for start in STARTS))
                    for name, label in OPTIMIZERS.items()
                ],
            ),
            _convergence(curve),
        ]
    for task, parts in ablations.items():
        whole = parts["whole"]["per_episode"]
        blocks += [
            report.Heading(f"What each part is worth, {_words(task)}"),
            "Parts of the trained Meta-LSTM taken away, without training anew.",
            (
                ("Meta-LSTM", "accuracy", "less the whole"),
                [
                    (name, _figure(part), "" if name == "whole" else _signed(*difference(part["per_episode"], whole)))
                    for name, part in parts.items()
                ],
            ),
        ]
    blocks += [
        report.Heading("What was chosen, and what it took"),
        "Pre-trained networks are chosen by nearest neighbour at 5-way 5-shot, once for all tasks. Minutes include the "
        "pre-training that a row starts from.",
        _choices(results),
    ]
    return blocks


def _table(results: Results) -> report.TableBlock:
    head = ["method", *(_words(task) for task in results), *(f"paper, {shots}-shot" for shots in (1, 5))]
    strong = {task: bold(there) for task, there in results.items()}
    lines = []
    for row in ROWS:
        if not any(row.name in there for there in results.values()):
            continue
        cells = []
        for task, there in results.items():
            cell = _figure(there[row.name]) if row.name in there else ""
            cells.append(Strong(cell) if row.name in strong[task] else cell)
        paper = [f"{mean:.2f} ± {ci95:.2f}" for mean, ci95 in row.paper] or ["", ""]
        lines.append((row.label, *cells, *paper))
    return head, lines


def _choices(results: Results) -> report.TableBlock:
    lines = []
    for task, there in results.items():
        for name, result in there.items():
            row = next(row for row in ROWS if row.name == name)
            chosen = ", ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in result["chosen"].items()
            )
            numbers = (f"{result['parameters']:,}", f"{result['train_episodes']:,}")
            minutes = f"{result['train_seconds'] / 60:.0f} ({result['train_precision']})"
            lines.append((row.label, _words(task), chosen, *numbers, minutes))
    return ("method", "task", "chosen on meta-val", "parameters", "episodes", "minutes of training"), lines


def _differences(there: dict[str, dict[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    return {
        one: {other: difference(a["per_episode"], b["per_episode"]) for other, b in there.items() if other != one}
        for one, a in there.items()
    }


def _difference_table(there: dict[str, dict[str, Any]]) -> report.TableBlock:
    labels = {row.name: row.label for row in ROWS}
    gaps = _differences(there)
    lines = [(labels[one], *("" if one == other else _signed(*gaps[one][other]) for other in there)) for one in there]
    return ["", *(labels[name] for name in there)], lines


def _spread(table: Table) -> dict[str, Any]:
    (row,), task = select("meta-lstm"), Task(5, 5)
    own = table.result(row, task)
    others = sorted(own.parent.glob(f"{own.stem}-seed*.json"))
    paths = {str(table.seed): own} | {path.stem.split("-seed")[1]: path for path in others}
    results = {seed: result for seed, path in paths.items() if (result := table.read(path))}
    if len(results) < 2:
        return {}
    return {"runs": results, "std": stdev(result["accuracy"] for result in results.values())}


def _pictures(table: Table, results: Results) -> list[report.Block]:
    """What only the page shows: learning curves, gates, confusions."""
    blocks: list[report.Block] = []
    for task, there in results.items():
        runs = {}
        for row in ROWS:
            folder = table.run(row, task)
            here = row.method != "pretrained" or task == PRETRAINING  # which has its validations at one task
            if row.name in there and here and not row.rules and (folder / "metrics.jsonl").exists():
                runs[row.label] = folder
        if runs:
            blocks += [report.Heading(f"Learning curves, {_words(task)}"), report.meta_val_curves(runs)]
        file = table.out / "checkpoints" / f"meta-lstm-{task}.safetensors"
        if not file.exists():
            continue
        method, _, _ = checkpoint.load_method(file)
        assert isinstance(method, GradientMethod)
        images = table.meta_sets.splits["meta-test"]
        if isinstance(method.optimizer, MetaLSTM):
            sampler = EpisodeSampler(images, task.n_way, task.n_shot, 0, table.seed)
            blocks += [
                report.Heading(f"What was learned, {_words(task)}"),
                "The gates of theta <- f * theta - i * gradient, a line for each of "
                f"{GATE_TASKS} meta-test tasks; black: their mean.",
                report.gates(method, sampler.batch(range(GATE_TASKS))),
            ]
        if task == Task(5, 5):
            sampler = EpisodeSampler(images, task.n_way, task.n_shot, seed=table.seed)
            matrix = confusion(method, sampler, min(CONFUSION_EPISODES, table.budget.test_episodes), "confusions")
            blocks += [
                report.Heading(f"What is taken for what, {_words(task)}"),
                report.confusion(matrix, images.classes),
            ]
    return blocks


def _convergence(curve: dict[str, Any]) -> Figure:
    """Support loss, query loss and query accuracy against inner steps, a column for each start."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    grid = figure.subplots(3, len(STARTS), sharex=True, sharey="row", squeeze=False)
    kinds = {"support_loss": "support loss (nats)", "query_loss": "query loss (nats)", "accuracy": "query accuracy (%)"}
    for column, (start, words) in enumerate(STARTS.items()):
        for axes, (kind, label) in zip(grid[:, column], kinds.items(), strict=True):
            for number, (name, optimizer) in enumerate(OPTIMIZERS.items()):
                line = curve["starts"][start][name]["curves"][kind]
                learned = name == LEARNED
                color, width = ("black", 2.2) if learned else (f"C{number - 1}", 1.2)
                axes.plot(curve["points"], line, color=color, linewidth=width, label=optimizer, zorder=3 - learned)
            axes.grid(alpha=0.3)
            axes.axvline(curve["meta_lstm_steps"], color="0.6", linestyle=":", linewidth=1)
            if column == 0:
                axes.set_ylabel(label)
            if kind == "query_loss":
                axes.set_ylim(0, 2.5)
        grid[0][column].set_title(f"from {words}")
        grid[2][column].set_xlabel("inner step")
    grid[2][-1].legend(fontsize=8, loc="lower right")
    return figure


def _figure(result: Mapping[str, Any]) -> str:
    return f"{result['accuracy']:.2f} ± {result['ci95']:.2f}"


def _at_steps(entry: Mapping[str, Any]) -> str:
    return f"{_figure(entry)} ({entry['steps']})"


def _signed(mean: float, ci95: float) -> str:
    return f"{mean:+.2f} ± {ci95:.2f}"


def _words(task: Task) -> str:
    return f"{task.n_way}-way {task.n_shot}-shot"
