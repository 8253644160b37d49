"""The page of one run."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from metalstm import checkpoint, files, provenance
from metalstm.data import ImagesByClass
from metalstm.episodes import EpisodeSampler
from metalstm.report import figures
from metalstm.report.blocks import Block, Heading, TableBlock
from metalstm.report.metrics import read_metrics
from metalstm.report.page import page

GATE_TASKS = 50


def write_run(out: Path, title: str, images: ImagesByClass, results: Sequence[Block] = ()) -> None:
    """Write `report.html` into a run folder, `curve.png` if it was meta-trained, and `gates.png` if it has gates.

    Args:
        out: The run folder.
        title: The heading of the page.
        images: The page shows episodes of these.
        results: Blocks to show first.

    Raises:
        UserError: The run has no checkpoint yet, or a file cannot be written.
    """
    files.remove_temporary(out, "report.html", "curve.png", "gates.png")
    method, config, meta = checkpoint.load_method(out)
    within_group = config.training.within_group
    sampler = EpisodeSampler(
        images, config.n_way, config.n_shot, config.n_query, config.seed, within_group=within_group
    )
    blocks: list[Block] = [
        *results,
        Heading("One task"),
        f"An episode from {images.name}. The learner is trained on the support set and tested on the queries, some of "
        "which are shown.",
        figures.episode_picture(sampler[0], config.traits.drawing),
    ]
    within = " within a group" if within_group else ""
    task = f"{config.n_way}-way {config.n_shot}-shot{within} on {config.data}, recipe {config.recipe}."
    if any("loss" in line for line in read_metrics(out / "metrics.jsonl")):
        curve = figures.learning_curve(out / "metrics.jsonl")
        figures.save(curve, out / "curve.png")
        chosen = f"{meta['meta_val']:.2f} % after {meta['episode']:,} episodes"
        blocks += [
            Heading("Meta-training"),
            f"{task} The checkpoint with the best meta-val accuracy was chosen: {chosen}.",
            curve,
        ]
    else:
        blocks += [
            Heading("Accuracy on meta-val"),
            f"{task} The method is not meta-trained. Its meta-val accuracy is {meta['meta_val']:.2f} %.",
        ]
    gates = figures.gates(method, sampler.batch(range(GATE_TASKS)))
    if gates is not None:
        figures.save(gates, out / "gates.png")
        blocks += [
            Heading("What was learned"),
            "The gates f and i of theta <- f * theta - i * gradient at each inner step. Each line is one of "
            f"{GATE_TASKS} tasks from {images.name}; black is their mean.",
            gates,
        ]
    machine = provenance.machine(torch.get_num_threads()) | provenance.versions()
    blocks += [
        Heading("Configuration"),
        settings_table(dataclasses.asdict(config)),
        Heading("Machine and versions"),
        (
            ("", ""),
            [(name.replace("_", " "), str(value)) for name, value in machine.items() if value not in (None, "")],
        ),
    ]
    files.write(out / "report.html", page(title, blocks).encode())


def settings_table(config: Mapping[str, Any]) -> TableBlock:
    """All settings of a run, in two columns.

    Args:
        config: Values, or groups of values as in `RunConfig`. A name that stands in several groups is shown with its
            group.
    """
    groups = [(group, value if isinstance(value, Mapping) else {group: value}) for group, value in config.items()]
    uses = Counter(name for _, values in groups for name in values)
    settings = [
        (name if uses[name] == 1 or name == group else f"{group}: {name}", str(value))
        for group, values in groups
        for name, value in values.items()
    ]
    half = (len(settings) + 1) // 2
    columns = zip_longest(settings[:half], settings[half:], fillvalue=("", ""))
    return ("setting", "value") * 2, [(*left, *right) for left, right in columns]
