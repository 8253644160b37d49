"""Every variant of a checkpoint, tested on the same episodes."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from metalstm import checkpoint, devices, provenance, recipes
from metalstm.ablation.variants import WHOLE, ruled, tune, variants
from metalstm.console import console, track
from metalstm.data import MetaSets
from metalstm.episodes import EpisodeSampler, Task
from metalstm.errors import UserError
from metalstm.evaluation import allow_tf32, check_data, evaluate, gap, plain
from metalstm.methods import METHODS, GradientMethod, Method, RunConfig, Search

MEAN_TASKS = 100  # of meta-train, that means are taken over
GATE_TASKS = 40  # of each kind of task, that the gates are shown of
SEARCH = Search(few=10, many=30)
QUICK = Search(few=2, many=4, read_at=(1, 4))


def ablate(
    name: str | Path,
    meta_sets: MetaSets,
    tasks: Sequence[Task],
    split: str,
    episodes: int,
    n_query: int = 15,
    seed: int = 0,
    mean_tasks: int = MEAN_TASKS,
    rivals: Sequence[str | Path] = (),
    search: Search = SEARCH,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Take a trained method apart, and test all that is left of it on the same episodes.

    Means over meta-train and tuning on meta-val take episodes with other numbers than those that are tested, so that
    every split can be tested.

    Args:
        name: A shipped checkpoint's name, a run folder or a file; of a method with an inner loop.
        meta_sets: The data that it was trained on.
        tasks: Kinds of tasks to test on.
        split: One of the three.
        episodes: How many of each kind.
        n_query: Query images of a class.
        seed: Of the episodes.
        mean_tasks: Meta-train tasks that means of gates and of their inputs are taken over.
        rivals: Further checkpoints, of any method, to test on the same episodes.
        search: How thoroughly the fixed rules are tuned.
        device: Where to compute.

    Returns:
        Plain values: what was tested and how, and for each task the variants, `whole` first, with `accuracy`, `ci95`,
        `per_episode` and `minus_whole`: the mean paired difference, in points, and half the width of its 95 % interval.

    Raises:
        UserError: The method has no inner loop, a checkpoint was trained on other data, or one of them does not serve
            such tasks.
    """
    start, device = time.perf_counter(), devices.usable(device)
    method, config = _loaded(name, meta_sets)
    if not isinstance(method, GradientMethod):
        known = ", ".join(each for each, kind in METHODS.items() if issubclass(kind, GradientMethod))
        raise UserError(
            f"{name} is of the method {config.method}, which takes no inner steps: give a checkpoint of one that does "
            f"({known}), and this one to --rivals"
        )
    others = {str(rival): _loaded(rival, meta_sets) for rival in rivals}
    samplers = {
        task: {
            each: EpisodeSampler(images, task.n_way, task.n_shot, n_query, seed, device, task.within_group)
            for each, images in meta_sets.splits.items()
        }
        for task in dict.fromkeys(tasks)
    }
    for each in (method, *(other for other, _ in others.values())):
        each.to(device)
        for task in samplers:
            each.check_way(task.n_way)
    allow_tf32(config.learner_settings.precision)
    columns: dict[str, Any] = {}
    for task, of in samplers.items():
        choices = tune(method, lambda k, of=of: of["meta-val"][episodes + k], search, f"{task}: tuning")
        means_of = (of["meta-train"][episodes + k] for k in range(mean_tasks))
        whole_first = {
            **variants(method, means_of, task.n_way),
            **ruled(method, choices),
            **{rival: other for rival, (other, _) in others.items()},
        }
        columns[str(task)] = {
            "inner_steps": method.n_steps(of[split][0].support),
            "chosen": {rule: asdict(choice) for rule, choice in choices.items()},
            "variants": _tested(whole_first, of[split], episodes, str(task)),
            "gates": _gates(method, of[split], min(GATE_TASKS, episodes), f"{task}: gates"),
        }
    return {
        **_facts(name, method, config),
        "rivals": {rival: _facts(rival, other, own) for rival, (other, own) in others.items()},
        "data": config.data,
        "data_digest": meta_sets.digest,
        "split": split,
        "episodes": episodes,
        "n_query": n_query,
        "seed": seed,
        "mean_tasks": mean_tasks,
        "search": asdict(search),
        "tasks": columns,
        "versions": provenance.versions(),
        "command": provenance.command(),
        "seconds": time.perf_counter() - start,
    }


def openings(result: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """What was measured of the checkpoint, or of a rival, on each kind of task, as `evaluate_checkpoint` names it."""
    own = name == result["checkpoint"]
    variant, facts = (WHOLE, result) if own else (name, result["rivals"][name])
    common = {key: result[key] for key in ("split", "n_query", "episodes", "seed")}
    return [
        {**common, **asdict(Task.parse(task)), **column["variants"][variant]}
        | {"checkpoint_sha256": facts["checkpoint_sha256"]}
        for task, column in result["tasks"].items()
    ]


def _loaded(name: str | Path, meta_sets: MetaSets) -> tuple[Method, RunConfig]:
    method, config, _ = checkpoint.load_method(name)
    check_data(name, config, meta_sets)
    return method, config


def _facts(name: str | Path, method: Method, config: RunConfig) -> dict[str, Any]:
    """What a checkpoint is."""
    return {
        "checkpoint": str(name),
        "checkpoint_sha256": checkpoint.sha256(checkpoint.find(name)),
        "parameters": sum(parameter.numel() for parameter in method.parameters()),
        "optimizer_parameters": sum(p.numel() for key, p in method.named_parameters() if key.startswith("optimizer.")),
        "transductive": getattr(config.settings, "query_norm", None) == "batch",
        "config": recipes.to_dict(config),
    }


def _tested(whole_first: dict[str, Method], sampler: EpisodeSampler, episodes: int, task: str) -> dict[str, Any]:
    """The result of each variant, which is also reported as soon as it is known."""
    results: dict[str, Any] = {}
    for name, variant in whole_first.items():
        result = results[name] = plain(evaluate(variant, sampler, episodes, f"{task}: {name}"))
        mean, ci95 = gap(result, results[WHOLE])
        result["minus_whole"] = {"mean": mean, "ci95": ci95}
        console.print(f"{task}: {name}: {result['accuracy']:.2f} %, {mean:+.2f} +- {ci95:.2f}", soft_wrap=True)
    return results


@torch.no_grad()
def _gates(method: GradientMethod, sampler: EpisodeSampler, n_tasks: int, description: str) -> dict[str, Any] | None:
    """Of some tasks at each inner step: the loss before it, and mean f and rate of each layer; None without gates.

    Within groups, also the group that each task is from.
    """
    places = method.learner.layers(sampler.n_way)
    losses: list[list[float]] = []
    layers: dict[str, dict[str, list[list[float]]]] = {layer: {"f": [], "rate": []} for layer in places}
    for k in track(range(n_tasks), description):
        losses.append([])
        for of in layers.values():
            of["f"].append([])
            of["rate"].append([])
        for step in method.trajectory(sampler[k].support):
            gates = method.optimizer.gates(step.state)
            if gates is None:
                return None
            losses[-1].append(step.loss.item())
            for layer, place in places.items():
                f, rate = gates[:, 0, place].mean(-1).tolist()
                layers[layer]["f"][-1].append(f)
                layers[layer]["rate"][-1].append(rate)
    names = sampler.images.groups
    groups = [names[sampler.classes(k)[0]] for k in range(n_tasks)] if sampler.within_group else None
    return {"groups": groups, "loss": losses, "layers": layers}
