"""Episodes: small data sets, each a support set to learn from and a query set to be tested on."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from metalstm.datasets import ImagesByClass
from metalstm.errors import UserError


@dataclass(frozen=True)
class Support:
    """What a learner is trained on."""

    x: Float[Tensor, "*tasks n_support channels height width"]  # in 0..1
    y: Int[Tensor, "*tasks n_support"]  # 0 .. n_way - 1
    n_way: int


@dataclass(frozen=True)
class Query:
    """What an adapted learner is tested on."""

    x: Float[Tensor, "*tasks n_query channels height width"]
    y: Int[Tensor, "*tasks n_query"]


@dataclass(frozen=True)
class Episode:
    """One task, or a batch of tasks of equal shape."""

    support: Support
    query: Query


@dataclass(frozen=True)
class Labelled:
    """A mini-batch of images of all classes, for pre-training."""

    x: Float[Tensor, "n channels height width"]  # in 0..1
    y: Int[Tensor, " n"]  # number of the class in the meta-set


class EpisodeSampler:
    """Episode number k of a meta-set: a function of the seed and k alone.

    Whoever asks, in whatever order, on whatever machine and in however many processes, gets the same episode. Classes
    are drawn without replacement, and so are the images of a class. The support set is shuffled; queries lie class by
    class.

    Args:
        images: The meta-set.
        n_way: Classes an episode.
        n_shot: Support images a class.
        n_query: Query images a class; 15 in the paper.
        seed: Episodes with another seed are other episodes.
        device: Where episodes are made. Off the CPU the meta-set is copied there once, in bytes.

    Raises:
        UserError: Too few classes, or too few images in one of them.
    """

    def __init__(
        self,
        images: ImagesByClass,
        n_way: int,
        n_shot: int,
        n_query: int = 15,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        for name, value, least in (("--n-way", n_way, 2), ("--n-shot", n_shot, 1), ("--n-query", n_query, 0)):
            if value < least:
                raise UserError(f"{name} {value}: must be at least {least}")
        if n_way > len(images.classes):
            raise UserError(
                f"{n_way}-way episodes need {n_way} classes, but {images.name} has {len(images.classes)}: "
                f"add {n_way - len(images.classes)}, or pass a smaller --n-way"
            )
        needed = n_shot + n_query
        for name, (start, stop) in zip(images.classes, images.spans, strict=True):
            if stop - start < needed:
                has = int(stop - start)
                instead = f"--n-query {has - n_shot}" if has >= n_shot else "a smaller --n-shot"
                raise UserError(
                    f"class {name!r} has {has} images, but {n_shot}-shot with {n_query} queries needs {needed}: "
                    f"add {needed - has}, or pass {instead}"
                )
        self.pixels = _Pixels(images, device)
        self.images, self.device = self.pixels.images, self.pixels.device
        self.n_way, self.n_shot, self.n_query, self.seed = n_way, n_shot, n_query, seed

    def __getitem__(self, index: int) -> Episode:
        """Episode number `index`."""
        return self.batch([index])

    def batch(self, indices: list[int] | range) -> Episode:
        """The episodes of these numbers as a batch of tasks, (n_tasks, ...)."""
        support, labels, query = zip(*(self._draw(index) for index in indices), strict=True)
        query_y = torch.arange(self.n_way).repeat_interleave(self.n_query).expand(len(indices), -1)
        load, here = self.pixels.load, self.pixels.here
        return Episode(
            Support(load(np.stack(support)), here(torch.from_numpy(np.stack(labels))), self.n_way),
            Query(load(np.stack(query)), here(query_y)),
        )

    def classes(self, index: int) -> list[int]:
        """The classes of an episode, as numbers in the meta-set; its label k is number k of these."""
        return self._classes(index)[1].tolist()

    def _classes(self, index: int) -> tuple[np.random.RandomState, np.ndarray]:
        rng = np.random.RandomState([self.seed, index])  # its stream never changes; that of newer generators may
        return rng, rng.choice(len(self.images.classes), self.n_way, replace=False)

    def _draw(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the support images, their labels, and rows of the query images."""
        rng, classes = self._classes(index)
        rows = np.stack(
            [rng.choice(np.arange(*self.images.spans[c]), self.n_shot + self.n_query, replace=False) for c in classes]
        )
        order = rng.permutation(self.n_way * self.n_shot)
        labels = np.repeat(np.arange(self.n_way), self.n_shot)
        return rows[:, : self.n_shot].reshape(-1)[order], labels[order], rows[:, self.n_shot :].reshape(-1)


class BatchSampler:
    """Mini-batch number k of a meta-set's images, whatever their class: a function of the seed and k alone.

    Args:
        images: The meta-set.
        batch_size: Images a mini-batch, drawn with replacement.
        seed: Mini-batches with another seed are other ones.
        device: Where they are made, as for `EpisodeSampler`.
    """

    def __init__(self, images: ImagesByClass, batch_size: int, seed: int = 0, device: torch.device | str = "cpu"):
        self.pixels = _Pixels(images, device)
        spans = self.pixels.images.spans
        self._rows = np.concatenate([np.arange(*span) for span in spans])
        self._labels = np.repeat(np.arange(len(spans)), np.diff(spans).ravel())
        self.batch_size, self.seed = batch_size, seed

    def __getitem__(self, index: int) -> Labelled:
        """Mini-batch number `index`."""
        return self.batch([index])

    def batch(self, indices: list[int] | range) -> Labelled:
        """The mini-batches of these numbers as one."""
        chosen = np.concatenate(
            [np.random.RandomState([self.seed, k]).randint(len(self._rows), size=self.batch_size) for k in indices]
        )
        labels = torch.from_numpy(self._labels[chosen])
        return Labelled(self.pixels.load(self._rows[chosen]), self.pixels.here(labels))


class _Pixels:
    """The images of a meta-set where they are needed, off the CPU in bytes; there a copy is made once."""

    def __init__(self, images: ImagesByClass, device: torch.device | str):
        self.device = torch.device(device)
        if self.device.type != "cpu":
            images = images.compact()
            self._resident = torch.tensor(images.images, device=self.device)
        self.images = images

    def load(self, rows: np.ndarray) -> Float[Tensor, "*n channels height width"]:
        """Images by their numbers, in 0..1."""
        if self.device.type == "cpu":
            pixels = torch.from_numpy(self.images.images[rows])
        else:
            pixels = self._resident[self.here(torch.from_numpy(rows))]
        return pixels.movedim(-1, -3).float().div_(255)

    def here(self, numbers: Tensor) -> Tensor:
        """Numbers on the device."""
        return numbers if self.device.type == "cpu" else numbers.to(self.device, non_blocking=True)
