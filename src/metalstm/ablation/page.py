"""An ablation as JSON and as one self-contained page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metalstm import files, report
from metalstm.ablation import pictures
from metalstm.ablation.variants import WHOLE
from metalstm.episodes import Task
from metalstm.evaluation import gap
from metalstm.report import Block, Heading
from metalstm.report.run import settings_table


def write(out: Path, result: dict[str, Any]) -> None:
    """Write `ablation.json` and `ablation.html`.

    Args:
        out: Folder of both.
        result: What `ablate` gave.

    Raises:
        UserError: A file cannot be written.
    """
    files.write(out / "ablation.json", (files.to_json(result) + "\n").encode())
    title = f"What each part of {result['checkpoint']} is worth"
    files.write(out / "ablation.html", report.page(title, _page(result)).encode())


def columns_of(result: dict[str, Any]) -> dict[str, Any]:
    """Task, in words -> variant -> result."""
    return {Task.parse(task).words: column["variants"] for task, column in result["tasks"].items()}


def blocks(columns: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    """The table of all variants, and their differences from the whole as a picture.

    Args:
        columns: Task, in words -> variant, `whole` first -> result, with `accuracy`, `ci95` and `per_episode`.
    """
    names = dict.fromkeys(name for column in columns.values() for name in column)
    head = ["variant"]
    for task in columns:
        head += [task, "minus the whole"]
    lines = [[name, *(cell for column in columns.values() for cell in _cells(name, column))] for name in names]
    return [(head, lines), pictures.differences(columns)]


def _cells(name: str, column: Mapping[str, Any]) -> tuple[str, str]:
    if name not in column:
        return "", ""
    part = column[name]
    mean, ci95 = gap(part, column[WHOLE])
    return f"{part['accuracy']:.2f} ± {part['ci95']:.2f}", "" if name == WHOLE else f"{mean:+.2f} ± {ci95:.2f}"


def _page(result: dict[str, Any]) -> list[Block]:
    config, tasks = result["config"], result["tasks"]
    shown: list[Block] = [
        f"Mean accuracy in percent over the same {result['episodes']} episodes of {result['split']} for all variants, "
        f"{result['n_query']} queries a class, data {result['data']}, seed {result['seed']}. Differences are paired; ± "
        "is the 95 % interval. One part of the trained method is off or replaced at a time; nothing is trained again.",
        *blocks(columns_of(result)),
        "Gray: the interval has 0 in it. The scale is linear within one point and logarithmic beyond.",
        f"Means are taken over {result['mean_tasks']} meta-train tasks of the same kind, at each inner step. Mean "
        "gates take the place of f and of the rate i. Gates blind to an input see its mean instead, after its "
        "preprocessing, while theta follows the true gradient. Gates that remember nothing start anew at every step. "
        "The nearest class mean is that by the cosine of the features at theta_0.",
        Heading("Rules in the optimizer's place"),
        "Rule, rate, decay and number of steps are chosen on meta-val episodes that are not among those tested: SGD "
        "and momentum on the layers that the method moves, SGD on the head alone.",
        (
            ("rule", "task", "chosen", "rate", "decay", "steps", "meta-val"),
            [
                (name, Task.parse(task).words, each["rule"], *(f"{each[key]:.3g}" for key in ("rate", "decay")),
                 str(each["steps"]), f"{each['meta_val']:.2f}")
                for task, column in tasks.items()
                for name, each in column["chosen"].items()
            ],
        ),
    ]  # fmt: skip
    records = {Task.parse(task).words: column["gates"] for task, column in tasks.items() if column["gates"]}
    if records:
        shown += [
            Heading("The gates of many tasks"),
            "theta <- f * theta - i * gradient: the mean rate i of each layer over the inner steps, and the share of "
            f"theta that is forgotten, 1 - f. A line for each task of {result['split']}. If the lines of all tasks "
            "coincide, the gates are a schedule.",
        ]
        if len(records) > 1:
            kinds = {kind: [kind] * len(record["loss"]) for kind, record in records.items()}
            shown += ["Colors are kinds of tasks.", pictures.gates_by_name(records, kinds)]
        if within := {kind: record for kind, record in records.items() if record["groups"]}:
            groups = {kind: record["groups"] for kind, record in within.items()}
            shown += ["Colors are the groups that a task's classes are from.", pictures.gates_by_name(within, groups)]
        step = pictures.first_different_loss(records)
        same = ", because with one head row for all classes the first loss is the same for every task"
        shown += [
            f"Colors are the loss of a task's support set before step {step + 1}{same if step else ''}.",
            pictures.gates_by_loss(records),
        ]
    return [
        *shown,
        Heading("What was tested"),
        (
            ("checkpoint", "method", "optimizer", "parameters", "of the optimizer", "answers", "sha256"),
            [
                (
                    each["checkpoint"],
                    each["config"]["method"],
                    each["config"]["optimizer"],
                    f"{each['parameters']:,}",
                    f"{each['optimizer_parameters']:,}",
                    "transductive" if each["transductive"] else "inductive",
                    each["checkpoint_sha256"][:12],
                )
                for each in (result, *result["rivals"].values())
            ],
        ),
        f"Made by {result['command']} with metalstm {result['versions']['metalstm']}, data digest "
        f"{result['data_digest'][:12]}.",
        Heading("Configuration of the checkpoint"),
        settings_table(config),
    ]
