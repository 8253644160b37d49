"""The meta-learner that a classifier adapts: which one, with its preprocessing and its calibration."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalstm import checkpoint, devices, settings
from metalstm.classifier.calibration import nearest
from metalstm.classifier.inputs import Pixels, Task, make_task
from metalstm.classifier.network import Network
from metalstm.classifier.outsiders import References, threshold
from metalstm.errors import UserError
from metalstm.images import Preprocessing, show_drawings
from metalstm.methods import Adapted, Method, RunConfig

BACKGROUND = "background"  # the tensor in a checkpoint
PRECISION = {"precision": "fp32"}  # of every classifier: a handful of images takes no time


@dataclass(frozen=True)
class MetaLearner:
    """A checkpoint, loaded.

    Attributes:
        method: What adapts.
        preprocessing: What is done to an image.
        calibrations: The entries of `calibrate`; none if it was not calibrated.
        background: What its scores of "none of these" are compared with, if anything.
        meta: Plain values of the checkpoint that a classifier keeps.
        device: Where to compute.
    """

    method: Method
    preprocessing: Preprocessing
    calibrations: Sequence[dict[str, Any]]
    background: torch.Tensor | None
    meta: dict[str, Any]
    device: torch.device | str = "cpu"

    @classmethod
    def load(cls, name: str | Path, device: torch.device | str = "cpu", framing: str | None = None) -> "MetaLearner":
        """The meta-learner of a shipped checkpoint's name, a run folder or a file.

        Args:
            name: Of the checkpoint.
            device: Where to compute.
            framing: As in `Preprocessing`.

        Raises:
            UserError: There is no such checkpoint, it is damaged, the device is not usable, or the framing is unknown.
        """
        device = devices.usable(device)
        path = checkpoint.find(name)
        method, config, meta = checkpoint.load_method(path, PRECISION)
        kept = {
            "checkpoint": str(name),
            "checkpoint_sha256": checkpoint.sha256(path),
            "config": meta["config"],
            "meta_val": meta.get("meta_val"),
        }
        background = checkpoint.load(path, only=[BACKGROUND])[0].get(BACKGROUND)
        if background is not None:
            background = background.to(device)
        pixels = preprocessing(config, framing)
        return cls(method.to(device), pixels, meta.get("calibration") or [], background, kept, device)

    @cached_property
    def remembering(self) -> Method:
        """The method for many support sets of the same images; it embeds no image twice if that can be."""
        return self.method.remembering()

    def task(self, pixels: Pixels, labels: np.ndarray, seed: int) -> Task:
        """The support set of some images.

        Args:
            pixels: As `preprocessing` makes them.
            labels: One for each image.
            seed: Of the order in which they are learned from.

        Raises:
            UserError: The method does not serve so many classes.
        """
        task = make_task(pixels, labels, self.preprocessing.drawing, seed, self.device)
        self.method.check_way(task.support.n_way)
        return task

    def calibration(self, task: Task) -> dict[str, Any] | None:
        """The calibration for the numbers of classes and shots that are nearest; None if there is none."""
        if not self.calibrations:
            return None
        n_way = len(task.classes)
        entry = nearest(self.calibrations, n_way, min(float(np.mean(task.counts)), len(task.support.y) / n_way))
        return {name: value for name, value in entry.items() if name != "threshold"}  # a probability, once

    @torch.no_grad()
    def known(self, adapted: Adapted, task: Task) -> tuple[References, float] | None:
        """What the images of a task say of "none of these": references for scores, and the least score of a class.

        None if it has no calibration for that.

        Raises:
            UserError: The background is not one of the method's features.
        """
        calibration = self.calibration(task) or {}
        if calibration.get("least") is None:
            return None
        _, first = np.unique(task.rows, return_index=True)
        support = task.support
        features, y = self.remembering.features(adapted, support.x[first]), support.y[first]
        background = self.background
        if background is not None and (background.shape[1:], background.dtype) != (features.shape[1:], features.dtype):
            raise UserError(
                f"{self.meta['checkpoint']} is damaged (its {BACKGROUND} is {tuple(background.shape)}, for features of "
                f"{features.shape[1]} numbers): get or train it anew"
            )
        references = References.of(features, y, support.n_way, background)
        return references, threshold(calibration, references.left_out_scores(features, y))

    def network(
        self, adapted: Adapted, task: Task, references: References | None = None, remembering: bool = False
    ) -> Network:
        """The network that it became by adapting to a task; without references, it gives no scores.

        Args:
            adapted: What it learned.
            task: What it learned from.
            references: What features are compared with.
            remembering: Whether it is asked about images that were, or will be, seen more than once.

        Raises:
            UserError: Adapting has diverged.
        """
        try:
            checkpoint.check_finite(adapted)
        except ValueError as error:
            raise UserError(f"adapting has diverged ({error}): take another --checkpoint") from error
        heat = temperature(self.calibration(task))
        method = self.remembering if remembering else self.method
        return Network(method, adapted, self.preprocessing, heat, self.device, references)

    def describe(self, task: Task, seed: int, threshold: float | None = None) -> dict[str, Any]:
        """All plain values of the classifier that it became by adapting to a task."""
        calibration = self.calibration(task)
        return {
            **self.meta,
            "classes": task.classes.tolist(),
            "images": task.counts,
            "seed": seed,
            "preprocessing": asdict(self.preprocessing),
            "calibration": calibration if threshold is None else {**(calibration or {}), "threshold": threshold},
        }


def choose(images: Sequence[Any], labels: np.ndarray) -> str:
    """The name of the shipped checkpoint for some images, by their kind and their number.

    Raises:
        UserError: An image cannot be read.
    """
    return nearest_shipped(show_drawings(images), len(labels) / len(np.unique(labels)))


def nearest_shipped(drawings: bool, n_shot: float) -> str:
    """The shipped checkpoint for drawings or photos with most weights; of several, the nearest in shots, in ratio."""
    fit = {}
    for name, path in checkpoint.shipped().items():
        config = checkpoint.read_config(path, checkpoint.load(path, only=[])[1])
        if config.traits.drawing == drawings:
            fit[name] = -checkpoint.n_numbers(path, without=[BACKGROUND]), abs(log(config.n_shot / n_shot))
    return min(fit, key=fit.__getitem__)


def preprocessing(config: RunConfig, framing: str | None = None) -> Preprocessing:
    """What makes of an image the pixels that the meta-learner was trained on; `framing` as in `Preprocessing`.

    Raises:
        UserError: The framing is unknown.
    """
    channels, size, _ = config.image_shape
    usual = Preprocessing(size, channels, config.traits.drawing, config.traits.centered)
    return usual if framing is None else settings.changed(usual, "framing", framing)


def temperature(calibration: dict[str, Any] | None) -> float:
    """The temperature of a calibration; 1 without one."""
    return calibration["temperature"] if calibration else 1.0
