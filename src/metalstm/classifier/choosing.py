"""The head on the features of a backbone: which one, by cross-validation on the user's own images."""

from typing import Any, NamedTuple

import numpy as np
import torch

from metalstm import devices, recipes
from metalstm.backbones import Backbone
from metalstm.classifier.calibration import fit_temperature
from metalstm.classifier.cross_validation import folds, held_out
from metalstm.classifier.inputs import Examples
from metalstm.classifier.meta_learner import MetaLearner
from metalstm.classifier.outsiders import References, tenth
from metalstm.console import progress
from metalstm.errors import UserError, unknown
from metalstm.heads import HEADS
from metalstm.methods import RunConfig
from metalstm.settings import to_dict

AUTO = "auto"
MANY = 500  # images beyond which only two folds are tested


class Tried(NamedTuple):
    """A candidate of a head, and how it did."""

    head: str
    config: RunConfig
    probabilities: np.ndarray  # of the tested images, (n, n_way)
    y: np.ndarray  # their classes
    accuracy: float  # in percent


def check_head(head: Any) -> None:
    """Whether there is a head of this name.

    Raises:
        UserError: There is none.
    """
    if head not in (names := (AUTO, *HEADS)):
        raise unknown("head", str(head), names)


def on_features(
    backbone: Backbone, examples: Examples, head: str, seed: int, device: torch.device | str
) -> MetaLearner:
    """The meta-learner whose head does best on some features, with its calibration.

    Args:
        backbone: The network that gave the features.
        examples: Features and labels.
        head: One of `HEADS`, of which the settings are chosen; or `auto`, which chooses the head, too.
        seed: Of the folds.
        device: Where to compute.

    Raises:
        UserError: There is no such head.
    """
    check_head(head)
    classes, y, counts = np.unique(examples.labels, return_inverse=True, return_counts=True)
    n_way, n_features = len(classes), backbone.n_features
    n_shot = max(1, round(float(np.mean(counts))))
    configs = [
        (name, config)
        for name in (HEADS if head == AUTO else [head])
        for config in HEADS[name].candidates(n_features, n_way, n_shot)
    ]
    if counts.max() < 2:
        return learner(backbone, *configs[0], head, {}, device)
    fold = folds(y, seed)
    tested = range(int(fold.max()) + 1) if len(y) <= MANY else range(2)
    rows = np.concatenate([np.flatnonzero(fold == k) for k in tested])
    tried = []
    with progress() as bar:
        for name, config in bar.track(configs, description="choosing the head"):
            candidate = learner(backbone, name, config, head, {}, device)
            found = np.concatenate([held_out(candidate, examples, fold, k, seed) for k in tested])
            tried.append(Tried(name, config, found, y[rows], 100 * float((found.argmax(1) == y[rows]).mean())))
    best = max(tried, key=lambda each: each.accuracy)  # the first of those that are equal
    accuracy = {name: max(each.accuracy for each in tried if each.head == name) for name in {t.head: 0 for t in tried}}
    entry = {"n_way": n_way, "n_shot": n_shot, "temperature": _temperature(best), "least": _least(examples, y, n_way)}
    return learner(backbone, best.head, best.config, head, accuracy, device, entry)


def learner(
    backbone: Backbone,
    head: str,
    config: RunConfig,
    asked: str,
    accuracy: dict[str, float],
    device: torch.device | str,
    calibration: dict[str, Any] | None = None,
) -> MetaLearner:
    """The meta-learner of a configuration of a head; arguments as the values that a classifier keeps."""
    meta = {
        "checkpoint": backbone.name,
        "checkpoint_sha256": backbone.sha256,
        "config": recipes.to_dict(config),
        "meta_val": None,
        "backbone": {
            "input": backbone.input and to_dict(backbone.input),
            "head": head,
            "asked": asked,
            "accuracy": accuracy,
        },
    }
    method = HEADS[head].build(config).to(devices.usable(device))
    entries = [calibration] if calibration else []
    return MetaLearner(method, backbone.preprocessing, entries, None, meta, device)


def check_same(backbone: Backbone, meta: dict[str, Any]) -> None:
    """Whether a backbone is that of a classifier.

    Raises:
        UserError: It is another one.
    """
    if backbone.sha256 != meta["checkpoint_sha256"]:
        raise UserError(
            f"{backbone.name} is another backbone than the one that made this classifier ({meta['checkpoint']}, "
            f"sha256 {meta['checkpoint_sha256'][:12]}...): pass that file with --backbone, or adapt anew"
        )
    own, kept = backbone.preprocessing, meta["preprocessing"]
    there = kept["image_size"], kept["channels"], kept["drawing"], meta["config"]["image_shape"][2]
    if there != (own.image_size, own.channels, own.drawing, backbone.n_features):
        raise UserError(f"the classifier does not fit its backbone {backbone.name}: adapt it anew")


def _temperature(best: Tried) -> float:
    logits = torch.from_numpy(best.probabilities).double().clamp(min=1e-30).log()
    return fit_temperature(logits, torch.from_numpy(best.y))


def _least(examples: Examples, y: np.ndarray, n_way: int) -> float:
    """The score of "none of these" that nine in ten images reach, each left out in turn."""
    features, labels = torch.from_numpy(examples.pixels).flatten(1), torch.from_numpy(y)
    return tenth(References.of(features, labels, n_way).left_out_scores(features, labels))
