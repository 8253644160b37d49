"""Calibration of a meta-learner on meta-val: temperatures, and what thresholds of "none of these" start from."""

from collections.abc import Mapping, Sequence
from math import exp, log
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from metalstm.classifier.outsiders import References, tenth, threshold
from metalstm.console import track
from metalstm.data import ImagesByClass
from metalstm.episodes import EpisodeSampler, Support
from metalstm.errors import UserError
from metalstm.methods import Method

BINS = 15  # of the expected calibration error, as in Guo et al.
PER_CLASS = 100  # images of a meta-train class that its mean is taken of

Background = Float[Tensor, "n_classes n_features"]


class Scores(NamedTuple):
    """Scores of "none of these" in an episode."""

    known: Float[Tensor, " n_query"]  # of queries
    outsiders: Float[Tensor, " n_query"]  # of as many images of classes that were not in the episode
    left_out: Float[Tensor, " n_left_out"]  # of support images, each left out; none of one shot


class Answers(NamedTuple):
    """What adapted networks answer in some episodes."""

    logits: Float[Tensor, "n n_way"]  # of queries
    y: Int[Tensor, " n"]  # their classes
    scores: list[list[Scores]]  # of each episode, for each background


@torch.no_grad()
def background(method: Method, images: ImagesByClass, n_way: int, n_shot: int) -> Background:
    """The mean feature of each class of meta-train, of length 1.

    If features depend on what the method has adapted to, it is the first episode.
    """
    sampler, means = EpisodeSampler(images, n_way, n_shot, n_query=0), []
    adapted = method.adapt(_first_task(sampler[0].support))
    for start, stop in track(sampler.images.spans, "looking at meta-train"):
        x = sampler.pixels.load(np.arange(start, min(stop, start + PER_CLASS)))
        means.append(F.normalize(method.features(adapted, x), dim=-1).mean(0))
    return F.normalize(torch.stack(means), dim=-1)


def calibrate(
    method: Method,
    images: ImagesByClass,
    ways: Sequence[int] = (2, 5, 10, 20),
    shots: Sequence[int] = (1, 5),
    n_query: int = 15,
    episodes: int = 100,
    seed: int = 0,
    backgrounds: Sequence[Background | None] = (None,),
) -> tuple[list[dict[str, Any]], Background | None]:
    """Fit a temperature and the scores of "none of these" for each number of classes and shots; measure both.

    Args:
        method: The meta-learner; left as it is.
        images: Meta-val.
        ways: Classes per episode. Those are left out that the method does not serve, or that leave no class for
            outsiders.
        shots: Support images per class.
        n_query: Query images per class, and for each an outsider.
        episodes: Number of episodes to fit on, and as many others to measure on.
        seed: Of the episodes.
        backgrounds: What the scores may be compared with: a `background`, or None for nothing. That is taken which
            separates outsiders best in the episodes that are fitted on, in the mean of all ways and shots.

    Returns:
        Plain values for each way and shot: `n_way`, `n_shot` and `temperature`; `least`, the score that nine in ten
        queries reach; `own`, the score that nine in ten support images reach that are left out, if there is more than
        one of a class; and what `measure` gives for other episodes. And the background that was taken.

    References:
        Guo et al. 2017 (arXiv 1706.04599) for the temperature.
    """
    samplers = [
        EpisodeSampler(images, n_way, n_shot, n_query, seed)
        for n_way in ways
        if n_way < len(images.classes) and _serves(method, n_way)
        for n_shot in shots
    ]
    fitted = [_answers(method, sampler, range(episodes), backgrounds) for sampler in samplers]
    best = int(np.argmax([sum(_separated(each.scores[k]) for each in fitted) for k in range(len(backgrounds))]))
    entries = []
    for sampler, answers in zip(samplers, fitted, strict=True):
        scores = answers.scores[best]
        entry: dict[str, Any] = {
            "n_way": sampler.n_way,
            "n_shot": sampler.n_shot,
            "temperature": fit_temperature(answers.logits, answers.y),
            "least": tenth(torch.cat([each.known for each in scores])),
        }
        if sampler.n_shot > 1:
            entry["own"] = float(np.mean([tenth(each.left_out) for each in scores]))
        measured = measure(method, sampler, range(episodes, 2 * episodes), entry, backgrounds[best])
        entries.append(entry | measured | {"episodes": episodes})
    return entries, backgrounds[best]


def measure(
    method: Method, sampler: EpisodeSampler, numbers: range, entry: Mapping[str, Any], background: Background | None
) -> dict[str, float]:
    """How well an entry of `calibrate` does in some episodes.

    Returns:
        The expected calibration error without and with the temperature (`ece_before`, `ece`) in 0..1, the share of
        queries that the threshold lets through (`kept`), the share of outsiders that it turns away (`rejected`), and
        how well the distance from the threshold separates the two (`auroc`).
    """
    answers = _answers(method, sampler, numbers, [background])
    scores = [_above_threshold(each, entry) for each in answers.scores[0]]
    right = answers.logits.argmax(-1) == answers.y
    before, after = (_confidence(answers.logits, each) for each in (1.0, entry["temperature"]))
    return {
        "ece_before": expected_calibration_error(before, right),
        "ece": expected_calibration_error(after, right),
        "kept": float(np.mean([(each.known >= 0).double().mean() for each in scores])),
        "rejected": float(np.mean([(each.outsiders < 0).double().mean() for each in scores])),
        "auroc": _separated(scores),
    }


def nearest(entries: Sequence[dict[str, Any]], n_way: int, n_shot: float) -> dict[str, Any]:
    """The entry of `calibrate` whose way and shots are nearest, both in ratio: 3 classes are nearer to 2 than to 5."""
    return min(entries, key=lambda entry: log(entry["n_way"] / n_way) ** 2 + log(entry["n_shot"] / n_shot) ** 2)


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


def _separated(scores: Sequence[Scores]) -> float:
    return auroc(torch.cat([each.known for each in scores]), torch.cat([each.outsiders for each in scores]))


def _above_threshold(scores: Scores, entry: Mapping[str, Any]) -> Scores:
    least = threshold(entry, scores.left_out)
    return scores._replace(known=scores.known - least, outsiders=scores.outsiders - least)


def _first_task(support: Support) -> Support:
    return Support(support.x[0], support.y[0], support.n_way)


@torch.no_grad()
def _answers(
    method: Method, sampler: EpisodeSampler, numbers: range, backgrounds: Sequence[Background | None]
) -> Answers:
    logits, y, spans = [], [], sampler.images.spans
    scores: list[list[Scores]] = [[] for _ in backgrounds]
    for number in track(numbers, f"calibrating {sampler.n_way}-way {sampler.n_shot}-shot"):
        episode, classes = sampler[number], sampler.classes(number)
        rows = np.concatenate([np.arange(*spans[k]) for k in range(len(spans)) if k not in classes])
        chosen = np.random.RandomState([sampler.seed, number, 1]).choice(rows, episode.query.y.shape[-1])
        support = _first_task(episode.support)
        adapted = method.adapt(support)
        x = torch.cat([episode.query.x[0], sampler.pixels.load(chosen)])
        known, outsiders = method.features(adapted, x).chunk(2)
        own = method.features(adapted, support.x)
        logits.append(method.scores(adapted, known).double())
        y.append(episode.query.y[0])
        for background, so_far in zip(backgrounds, scores, strict=True):
            references = References.of(own, support.y, sampler.n_way, background)
            left_out = references.left_out_scores(own, support.y)
            so_far.append(Scores(references.scores(known), references.scores(outsiders), left_out))
    return Answers(torch.cat(logits), torch.cat(y), scores)
