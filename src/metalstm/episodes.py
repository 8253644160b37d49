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
        self.device = torch.device(device)
        if self.device.type != "cpu":
            images = images.compact()
            self._resident = torch.tensor(images.images, device=self.device)
        self.images, self.n_way, self.n_shot, self.n_query, self.seed = images, n_way, n_shot, n_query, seed

    def __getitem__(self, index: int) -> Episode:
        """Episode number `index`."""
        return self.batch([index])

    def batch(self, indices: list[int] | range) -> Episode:
        """The episodes of these numbers as a batch of tasks, (n_tasks, ...)."""
        support, labels, query = zip(*(self._draw(index) for index in indices), strict=True)
        query_y = torch.arange(self.n_way).repeat_interleave(self.n_query).expand(len(indices), -1)
        return Episode(
            Support(self._load(np.stack(support)), self._here(torch.from_numpy(np.stack(labels))), self.n_way),
            Query(self._load(np.stack(query)), self._here(query_y)),
        )

    def _draw(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the support images, their labels, and rows of the query images."""
        rng = np.random.RandomState([self.seed, index])  # its stream never changes; that of newer generators may
        classes = rng.choice(len(self.images.classes), self.n_way, replace=False)
        rows = np.stack(
            [rng.choice(np.arange(*self.images.spans[c]), self.n_shot + self.n_query, replace=False) for c in classes]
        )
        order = rng.permutation(self.n_way * self.n_shot)
        labels = np.repeat(np.arange(self.n_way), self.n_shot)
        return rows[:, : self.n_shot].reshape(-1)[order], labels[order], rows[:, self.n_shot :].reshape(-1)

    def _load(self, rows: np.ndarray) -> Float[Tensor, "n_tasks n channels height width"]:
        if self.device.type == "cpu":
            pixels = torch.from_numpy(self.images.images[rows])
        else:
            pixels = self._resident[self._here(torch.from_numpy(rows))]
        return pixels.movedim(-1, -3).float().div_(255)

    def _here(self, numbers: Tensor) -> Tensor:
        return numbers if self.device.type == "cpu" else numbers.to(self.device, non_blocking=True)
