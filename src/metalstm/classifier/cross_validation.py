"""How well a classifier does on images like those that it learns from."""

from dataclasses import dataclass
from math import log2
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from metalstm.classifier.inputs import Examples
from metalstm.classifier.meta_learner import MetaLearner
from metalstm.console import track
from metalstm.errors import UserError

MAX_FOLDS = 5
DOUBTFUL = 0.1  # probability of an image's own label below which it looks mislabeled


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


class Doubt(NamedTuple):
    """An image that looks mislabeled."""

    image: str  # its name
    label: Any
    probability: float  # of its label
    looks_like: Any  # another class


@dataclass(frozen=True)
class CrossValidation:
    """What classifiers answer that have not seen an image.

    Attributes:
        classes: The labels, sorted.
        images: The names of the tested images: all but those that are the only one of their class.
        y: The class of each of them, by number.
        probabilities: Of the classes, for each of them.
        folds: How many classifiers there were.
    """

    classes: np.ndarray
    images: list[str]
    y: Int[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "n n_classes"]
    folds: int

    @property
    def estimate(self) -> Estimate:
        """Of all classes together."""
        return self._estimate(np.ones(len(self.y), bool))

    def by_class(self) -> dict[Any, Estimate]:
        """Of each class that has two images or more."""
        return {self.classes[k]: self._estimate(self.y == k) for k in np.unique(self.y)}

    def confused(self) -> list[tuple[Any, Any, int]]:
        """How often images of a class were taken for another one: class, other and times, most often first."""
        guesses = self.probabilities.argmax(1)
        wrong = guesses != self.y
        pairs, times = np.unique(np.stack([self.y[wrong], guesses[wrong]], 1), axis=0, return_counts=True)
        order = np.argsort(-times, kind="stable")
        return [(self.classes[pairs[k, 0]], self.classes[pairs[k, 1]], int(times[k])) for k in order]

    def doubts(self) -> list[Doubt]:
        """Images whose label has a probability below 0.1, while another class has half or more; worst first."""
        own = self.probabilities[np.arange(len(self.y)), self.y]
        rows = np.flatnonzero((own < DOUBTFUL) & (self.probabilities.max(1) >= 0.5))
        return [
            Doubt(
                self.images[row],
                self.classes[self.y[row]],
                float(own[row]),
                self.classes[self.probabilities[row].argmax()],
            )
            for row in rows[np.argsort(own[rows], kind="stable")]
        ]

    def _estimate(self, rows: np.ndarray) -> Estimate:
        right = self.probabilities[rows].argmax(1) == self.y[rows]
        return Estimate(int(right.sum()), len(right), self.folds)


def cross_validate(learner: MetaLearner, examples: Examples, seed: int, n_shot: int | None = None) -> CrossValidation:
    """Classify each image by a classifier that has not seen it.

    Args:
        learner: What adapts.
        examples: Images and labels. The only image of a class is learned from, but not tested.
        seed: Of the folds, and of the order in which images are learned from.
        n_shot: Images of a class to learn from at the most; all by default.

    Raises:
        UserError: No class has two images, or the meta-learner does not serve so many classes.
    """
    _, labels, names = examples
    classes, y = np.unique(labels, return_inverse=True)
    if np.bincount(y).max() < 2:
        raise UserError(f"an estimate of the accuracy needs 2 images per class, but {classes[0]} has 1")
    fold = folds(y, seed)
    n_folds, numbers = int(fold.max()) + 1, np.flatnonzero(fold >= 0)
    probabilities = np.zeros((len(y), len(classes)), np.float32)
    for k in track(range(n_folds), "cross-validating"):
        probabilities[fold == k] = held_out(learner, examples, fold, k, seed, n_shot)
    tested = [names[number] for number in numbers]
    return CrossValidation(classes, tested, y[numbers], probabilities[numbers], n_folds)


def held_out(
    learner: MetaLearner, examples: Examples, fold: Int[np.ndarray, " n"], k: int, seed: int, n_shot: int | None = None
) -> Float[np.ndarray, "n_fold n_classes"]:
    """The probabilities that the images of fold `k` get from a classifier of the other images; arguments as above."""
    pixels, labels, _ = examples
    seen = np.flatnonzero(fold != k)
    if n_shot is not None:
        seen = np.concatenate([seen[labels[seen] == c][:n_shot] for c in np.unique(labels)])
    task = learner.task(pixels[seen], labels[seen], seed)
    network = learner.network(learner.remembering.adapt(task.support), task, remembering=True)
    return network.answers(pixels[fold == k])[0]


def learning_curve(learner: MetaLearner, examples: Examples, seed: int) -> dict[int, Estimate]:
    """The cross-validated accuracy with 1, 2, 4 ... images of a class to learn from, up to those that folds leave.

    Raises:
        UserError: As `cross_validate`.
    """
    _, counts = np.unique(examples.labels, return_counts=True)
    most = int(np.median(counts)) * (MAX_FOLDS - 1) // MAX_FOLDS or 1
    sizes = sorted({*(2**k for k in range(int(log2(most)) + 1)), most})
    return {size: cross_validate(learner, examples, seed, size).estimate for size in sizes}


def another_image(curve: dict[int, Estimate], n_shot: float) -> float | None:
    """Points that one more image of each class would bring, by a line through accuracy and log2 of the images."""
    if len(curve) < 2:
        return None
    slope = np.polyfit([log2(size) for size in curve], [each.accuracy for each in curve.values()], 1)[0]
    return float(slope * log2((n_shot + 1) / n_shot))


def folds(y: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, " n"]:
    """The fold of each image, drawn at random: 0, 1, ...; the images of a class are spread evenly over the folds.

    There are as many folds as the largest class has images, and at most 5. The only image of a class is in none: -1.
    """
    counts = np.bincount(y)
    n_folds = min(MAX_FOLDS, int(counts.max()))
    fold = np.full(len(y), -1)
    rng = np.random.RandomState(seed)
    for k, count in enumerate(counts):
        if count > 1:
            fold[y == k] = (rng.permutation(count) + k) % n_folds  # not all small classes in the first folds
    return fold
