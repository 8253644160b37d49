"""The protocol: accuracy over many episodes, with its 95 % confidence interval."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from metalstm import checkpoint, devices, distributed, recipes
from metalstm.console import track
from metalstm.data import MetaSets
from metalstm.episodes import EpisodeSampler
from metalstm.errors import UserError
from metalstm.methods import Method, RunConfig
from metalstm.settings import Precision

EPISODES = 600  # meta-test episodes of the paper's table
TOGETHER = 25  # episodes at a time, off the CPU


@dataclass(frozen=True)
class Accuracy:
    """Query accuracy over episodes, in percent."""

    per_episode: list[float]

    @property
    def mean(self) -> float:
        """Mean over the episodes."""
        return sum(self.per_episode) / len(self.per_episode)

    @property
    def ci95(self) -> float:
        """Half the width of the 95 % confidence interval: 1.96 * std(ddof 1) / sqrt(n)."""
        n, mean = len(self.per_episode), self.mean
        return 1.96 * sqrt(sum((a - mean) ** 2 for a in self.per_episode) / (n - 1) / n) if n > 1 else float("inf")

    def __str__(self) -> str:
        return f"{self.mean:.2f} +- {self.ci95:.2f} %"


def difference(one: Sequence[float], other: Sequence[float]) -> Accuracy:
    """Paired differences, in points, of two methods' accuracies on the same episodes."""
    return Accuracy([a - b for a, b in zip(one, other, strict=True)])


def plain(accuracy: Accuracy) -> dict[str, Any]:
    """An accuracy as plain values."""
    return {"accuracy": accuracy.mean, "ci95": accuracy.ci95, "per_episode": accuracy.per_episode}


def gap(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, float]:
    """Mean paired difference of two results, as plain values, and half the width of its 95 % interval."""
    gaps = difference(one["per_episode"], other["per_episode"])
    return gaps.mean, gaps.ci95


def evaluate(
    method: Method,
    sampler: EpisodeSampler,
    episodes: int,
    description: str | None = None,
) -> Accuracy:
    """Adapt to each of the sampler's first `episodes` episodes and classify its queries.

    Several processes share the episodes out, and each gets the result of all: all of them must call.

    Args:
        method: What adapts; left as it is.
        sampler: Where episodes come from, on the method's device; the same seed gives the same ones to every method.
        episodes: How many; 600 in the paper.
        description: What a progress bar says; none is shown without it.
    """
    accuracies = torch.zeros(episodes, dtype=torch.float64, device=sampler.device)
    for numbers, predicted, y in _predictions(method, sampler, distributed.share(range(episodes)), description):
        accuracies[numbers.start : numbers.stop : numbers.step] = (predicted == y).double().mean(-1)
    return Accuracy((100 * distributed.total(accuracies)).tolist())


def confusion(
    method: Method, sampler: EpisodeSampler, episodes: int, description: str | None = None
) -> Float[Tensor, "n_classes n_classes"]:
    """How often queries of a class (row) are taken for another (column), of those where both were in the episode.

    Shares of 1, NaN where two classes never met; the diagonal is the share that is classified correctly.
    """
    n = len(sampler.images.classes)
    taken, met = torch.zeros(n, n), torch.zeros(n, n)
    for numbers, predicted, y in _predictions(method, sampler, range(episodes), description):
        for number, guesses, labels in zip(numbers, predicted.cpu(), y.cpu(), strict=True):
            classes = torch.tensor(sampler.classes(number))
            taken.index_put_((classes[labels], classes[guesses]), torch.ones(len(labels)), accumulate=True)
            met[classes[:, None], classes] += len(labels) / len(classes)
    return taken / met.where(met > 0, torch.nan)


def _predictions(
    method: Method, sampler: EpisodeSampler, mine: range, description: str | None
) -> Iterator[tuple[range, Tensor, Tensor]]:
    """Numbers of some episodes, and the labels, predicted and true, of their queries (len(numbers), n_query)."""
    together = 1 if sampler.device.type == "cpu" else TOGETHER
    batches: Sequence[range] = [mine[start : start + together] for start in range(0, len(mine), together)]
    was_training = method.training
    method.eval()
    shown: Iterable[range] = track(batches, description) if description else batches
    try:
        for numbers in shown:
            episode = sampler.batch(numbers)
            with torch.no_grad():
                predicted = method.logits(method.adapt(episode.support), episode.query.x).argmax(-1)
            yield numbers, predicted, episode.query.y
    finally:
        method.train(was_training)


def evaluate_checkpoint(
    name: str | Path,
    meta_sets: MetaSets,
    split: str,
    n_way: int | None = None,
    n_shot: int | None = None,
    n_query: int = 15,
    episodes: int = EPISODES,
    seed: int = 0,
    changes: dict[str, Any] | None = None,
    device: torch.device | str = "cpu",
    within_group: bool = False,
) -> dict[str, Any]:
    """Test a checkpoint by the protocol.

    Args:
        name: A shipped checkpoint's name, a run folder or a file.
        meta_sets: The data that it was trained on, or other data with images of the same shape.
        split: One of the three, or "all" for all classes of other data.
        n_way: Classes an episode; as trained by default.
        n_shot: Support images a class; as trained by default.
        n_query: Query images a class.
        episodes: How many.
        seed: Of the episodes.
        changes: Settings to be other than the checkpoint's, by name: `query_norm`, `precision` ...
        device: Where to compute.
        within_group: Draw all classes of an episode from one group.

    Returns:
        Everything that `metalstm evaluate --json` writes: plain values, accuracies in percent.

    Raises:
        UserError: The data have changed since training, or have images of another shape; or the method serves no such
            number of classes.
    """
    with distributed.all_fail_together():
        device = devices.usable(device)
        path = checkpoint.find(name)
        method, config, _ = checkpoint.load_method(path, changes)
        if meta_sets.name == config.data:
            check_data(name, config, meta_sets)
        other = meta_sets.digest != config.data_digest
        if split == "all" and not other:
            raise UserError(f"--split all: {name} was trained on classes of {config.data}: pass --split meta-test")
        images = meta_sets.all() if split == "all" else meta_sets.splits[split]
        if images.image_shape != config.image_shape:
            raise UserError(
                f"{name} takes images of {_shape(config.image_shape)}, but those of {meta_sets.name} are "
                f"{_shape(images.image_shape)}: take another checkpoint"
            )
        n_way = config.n_way if n_way is None else n_way
        n_shot = config.n_shot if n_shot is None else n_shot
        sampler = EpisodeSampler(images, n_way, n_shot, n_query, seed, device, within_group)
        method.check_way(n_way)
    precision = config.learner_settings.precision
    query_norm = getattr(config.settings, "query_norm", None)
    allow_tf32(precision)
    start = time.perf_counter()
    accuracy = evaluate(method.to(device), sampler, episodes, f"evaluating on {split}")
    return measured(config.method, meta_sets.name if other else config.data, split, sampler, accuracy) | {
        "trained_on": config.data,
        "other_data": other,
        "data_digest": meta_sets.digest,
        "query_norm": query_norm,
        "precision": precision,
        "transductive": query_norm == "batch",
        "recipe": config.recipe,
        "changes": recipes.changes(config),
        "checkpoint_sha256": checkpoint.sha256(path),
        "seconds": time.perf_counter() - start,
    }


def check_data(name: str | Path, config: RunConfig, meta_sets: MetaSets) -> None:
    """Whether a checkpoint was trained on some data.

    Raises:
        UserError: It was trained on other data.
    """
    if meta_sets.digest != config.data_digest:
        here, mend = f"{meta_sets.name} is other data", f"pass --data {config.data}"
        if meta_sets.name == config.data:
            here = "its images have changed"
            mend = "the files, or the version of Pillow that resized them, differ: see metalstm data check"
        raise UserError(
            f"{name} was trained on {config.data} (digest {config.data_digest[:12]}), but {here} "
            f"(digest {meta_sets.digest[:12]}): {mend}"
        )


def _shape(image: tuple[int, int, int]) -> str:
    """(channels, height, width) in words."""
    return f"{image[0]} channel{'s' * (image[0] > 1)}, {image[1]}x{image[2]}"


def measured(method: str, data: str, split: str, sampler: EpisodeSampler, accuracy: Accuracy) -> dict[str, Any]:
    """The part of a result that every method has: what was tested, on what, and the accuracy."""
    return {
        "method": method,
        "data": data,
        "split": split,
        "n_way": sampler.n_way,
        "n_shot": sampler.n_shot,
        "n_query": sampler.n_query,
        "within_group": sampler.within_group,
        "episodes": len(accuracy.per_episode),
        "seed": sampler.seed,
        **plain(accuracy),
    }


def allow_tf32(precision: Precision) -> None:
    """Allow TF32, or forbid it; applies to the whole process, and only CUDA uses it."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
