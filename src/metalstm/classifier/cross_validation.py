"""How well a classifier does on images like those that it learns from."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from metalstm.classifier.inputs import Pixels
from metalstm.classifier.meta_learner import MetaLearner

MAX_FOLDS = 5


@dataclass(frozen=True)
class Estimate:
    """A cross-validated accuracy on the support set itself."""

    right: int  # images that were classified correctly
    images: int
    folds: int

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.accuracy:.0f} % (95 % interval {low:.0f} to {high:.0f} %), by {self.folds}-fold cross-validation "
            f"on {self.images} images"
        )

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * self.right / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval in percent (Wilson's), which holds for few images too."""
        z, n, p = 1.96, self.images, self.right / self.images
        center, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        return 100 * (center - half) / (1 + z * z / n), 100 * (center + half) / (1 + z * z / n)


def cross_validate(learner: MetaLearner, pixels: Pixels, labels: np.ndarray, seed: int) -> Estimate:
    """Classify each image by a classifier that has not seen it.

    Args:
        learner: What adapts.
        pixels: Of the images.
        labels: One for each image; at least 2 of each class.
        seed: Of the folds, and of the order in which images are learned from.

    Raises:
        UserError: The meta-learner does not serve so many classes.
    """
    _, y = np.unique(labels, return_inverse=True)
    fold = folds(y, seed)
    right, n_folds = 0, int(fold.max()) + 1
    for k in range(n_folds):
        task = learner.task(pixels[fold != k], labels[fold != k], seed)
        network = learner.network(learner.method.adapt(task.support), task)
        guesses = network.probabilities(pixels[fold == k]).argmax(1)
        right += int((guesses == y[fold == k]).sum())
    return Estimate(right, len(y), n_folds)


def folds(y: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, " n"]:
    """The fold of each image, drawn at random: 0, 1, ...; the images of a class are spread evenly over the folds.

    There are as many folds as the smallest class has images, and at most 5.
    """
    counts = np.bincount(y)
    n_folds = min(MAX_FOLDS, int(counts.min()))
    fold = np.empty(len(y), int)
    rng = np.random.RandomState(seed)
    for k, count in enumerate(counts):
        fold[y == k] = rng.permutation(count) % n_folds
    return fold
