"""Calibration of a meta-learner on meta-val: temperatures, and thresholds for "none of these"."""

from collections.abc import Iterator, Sequence
from math import exp, log
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from metalstm.console import track
from metalstm.data import ImagesByClass
from metalstm.episodes import EpisodeSampler, Support
from metalstm.errors import UserError
from metalstm.methods import Method

BINS = 15  # of the expected calibration error, as in Guo et al.
KEPT = 0.9  # share of the images of known classes that the threshold lets through


class Answers(NamedTuple):
    """Logits of adapted networks in some episodes."""

    known: Float[Tensor, "n n_way"]  # logits of queries
    y: Int[Tensor, " n"]  # their classes
    outsiders: Float[Tensor, "n n_way"]  # logits of as many images of meta-val classes that were not in the episode


def calibrate(
    method: Method,
    images: ImagesByClass,
    ways: Sequence[int] = (2, 5, 10, 20),
    shots: Sequence[int] = (1, 5),
    n_query: int = 15,
    episodes: int = 100,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Fit a temperature and a threshold for each number of classes and shots; measure both on other episodes.

    The answer is "none of these" if the largest calibrated probability of an image is below the threshold.

    Args:
        method: The meta-learner; left as it is.
        images: Meta-val.
        ways: Classes per episode. Those are left out that the method does not serve, or that leave no class for
            outsiders.
        shots: Support images per class.
        n_query: Query images per class, and for each an outsider.
        episodes: Number of episodes to fit on, and as many others to measure on.
        seed: Of the episodes.

    Returns:
        Plain values for each way and shot: `n_way`, `n_shot`, `temperature` and `threshold`; and measured on the other
        episodes: the expected calibration error before and after (`ece_before`, `ece`) in 0..1, the share of queries
        that the threshold lets through (`kept`), the share of outsiders that it rejects (`rejected`), and how well the
        probability separates the two (`auroc`).

    References:
        Guo et al. 2017 (arXiv 1706.04599) for the temperature; Hendrycks & Gimpel 2017 (arXiv 1610.02136) for the
        largest probability as the score that separates outsiders.
    """
    entries = []
    for n_way in ways:
        if n_way >= len(images.classes) or not _serves(method, n_way):
            continue
        for n_shot in shots:
            sampler = EpisodeSampler(images, n_way, n_shot, n_query, seed)
            name = f"calibrating {n_way}-way {n_shot}-shot"
            fitted = _answers(method, sampler, track(range(episodes), name))
            temperature = fit_temperature(fitted.known, fitted.y)
            threshold = _confidence(fitted.known, temperature).quantile(1 - KEPT).item()
            other = _answers(method, sampler, track(range(episodes, 2 * episodes), name))
            known, outsiders = _confidence(other.known, temperature), _confidence(other.outsiders, temperature)
            right = other.known.argmax(-1) == other.y
            entries.append(
                {
                    "n_way": n_way,
                    "n_shot": n_shot,
                    "temperature": temperature,
                    "ece_before": expected_calibration_error(_confidence(other.known, 1.0), right),
                    "ece": expected_calibration_error(known, right),
                    "threshold": threshold,
                    "kept": (known >= threshold).float().mean().item(),
                    "rejected": (outsiders < threshold).float().mean().item(),
                    "auroc": auroc(known, outsiders),
                    "episodes": episodes,
                }
            )
    return entries


def nearest(entries: Sequence[dict[str, Any]], n_way: int, n_shot: float) -> dict[str, Any]:
    """The entry of `calibrate` for any number of classes and shots.

    It is the entry whose way and shots are nearest, both in ratio: 3 classes are nearer to 2 than to 5. The temperature
    is taken as it is. The threshold is moved so that one class must lead each other one by as much as in the entry:
    its odds, t / (1 - t), are divided by (n_way - 1) / (n_way of the entry - 1).
    """

    def distance(entry: dict[str, Any]) -> float:
        return log(entry["n_way"] / n_way) ** 2 + log(entry["n_shot"] / n_shot) ** 2

    entry = min(entries, key=distance)
    if entry["n_way"] == n_way:
        return entry
    odds = entry["threshold"] / max(1 - entry["threshold"], 1e-9) * (entry["n_way"] - 1) / (n_way - 1)
    return entry | {"threshold": odds / (1 + odds)}


def fit_temperature(logits: Float[Tensor, "n n_way"], y: Int[Tensor, " n"]) -> float:
    """The temperature T at which softmax(logits / T) has the least cross-entropy, by ternary search.

    The cross-entropy has one minimum in T. Targets fall short of 1 by a doubt of 1 / (n + 2), as in Platt 1999.
    Without it, a learner that was always right would be sure of everything.
    """
    doubt = 1 / (len(y) + 2)
    low, high = log(1e-2), log(1e2)
    while high - low > 1e-4:
        third = (high - low) / 3
        losses = [F.cross_entropy(logits / exp(t), y, label_smoothing=doubt) for t in (low + third, high - third)]
        low, high = (low, high - third) if losses[0] < losses[1] else (low + third, high)
    return exp((low + high) / 2)


def expected_calibration_error(confidence: Float[Tensor, " n"], right: Bool[Tensor, " n"]) -> float:
    """How far confidence and accuracy are apart, in 0..1: the mean over the bins, weighted by their images."""
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=confidence.dtype).index_add_(0, bins, confidence - right.to(confidence.dtype))
    return (gaps.abs().sum() / len(confidence)).item()


def auroc(known: Float[Tensor, " n"], outsiders: Float[Tensor, " m"]) -> float:
    """The chance that one of the known scores higher than one of the outsiders; ties count half."""
    ordered = outsiders.sort().values
    below = torch.searchsorted(ordered, known) + torch.searchsorted(ordered, known, right=True)
    return (below.double().mean() / 2 / len(outsiders)).item()


def _serves(method: Method, n_way: int) -> bool:
    try:
        method.check_way(n_way)
    except UserError:
        return False
    return True


def _confidence(logits: Tensor, temperature: float) -> Float[Tensor, " n"]:
    return (logits / temperature).softmax(-1).amax(-1)


@torch.no_grad()
def _answers(method: Method, sampler: EpisodeSampler, numbers: Iterator[int]) -> Answers:
    parts = []
    spans = sampler.images.spans
    for number in numbers:
        episode, classes = sampler[number], sampler.classes(number)
        rows = np.concatenate([np.arange(*spans[k]) for k in range(len(spans)) if k not in classes])
        chosen = np.random.RandomState([sampler.seed, number, 1]).choice(rows, episode.query.y.shape[-1])
        support = Support(episode.support.x[0], episode.support.y[0], sampler.n_way)
        x = torch.cat([episode.query.x[0], sampler.pixels.load(chosen)])
        known, outsiders = method.logits(method.adapt(support), x).double().chunk(2)
        parts.append(Answers(known, episode.query.y[0], outsiders))
    return Answers(*map(torch.cat, zip(*parts, strict=True)))
