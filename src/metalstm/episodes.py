"""Episodes: small data sets, each with a support set to learn from and a query set to test on."""

import re
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from metalstm.console import say_once
from metalstm.data import ImagesByClass
from metalstm.errors import UserError, shown
from metalstm.settings import check_seed

NAMED = 3  # classes that a line names


@dataclass(frozen=True)
class Support:
    """The images that a learner is trained on."""

    x: Float[Tensor, "*tasks n_support channels height width"]  # in 0..1
    y: Int[Tensor, "*tasks n_support"]  # 0 .. n_way - 1
    n_way: int


@dataclass(frozen=True)
class Query:
    """The images that an adapted learner is tested on."""

    x: Float[Tensor, "*tasks n_query channels height width"]
    y: Int[Tensor, "*tasks n_query"]


@dataclass(frozen=True)
class Episode:
    """One task, or a batch of tasks of the same shape."""

    support: Support
    query: Query


@dataclass(frozen=True)
class Labeled:
    """A mini-batch of images from all classes, for pre-training."""

    x: Float[Tensor, "n channels height width"]  # in 0..1
    y: Int[Tensor, " n"]  # number of the class in the meta-set


@dataclass(frozen=True)
class Task:
    """A kind of task; `within_group` if all classes of an episode are of one group."""

    n_way: int
    n_shot: int
    within_group: bool = False

    def __str__(self) -> str:
        return f"{self.n_way}w{self.n_shot}s" + ("-within" if self.within_group else "")

    @property
    def words(self) -> str:
        """As a reader sees it."""
        return f"{self.n_way}-way {self.n_shot}-shot" + (" within a group" if self.within_group else "")

    @classmethod
    def parse(cls, text: str) -> "Task":
        """What `str` of a task gave.

        Raises:
            UserError: It is no such text.
        """
        if not (found := re.fullmatch(r"([0-9]{1,6})w([0-9]{1,6})s(-within)?", text)):
            raise UserError(f"no task {shown(text)}: write 5w1s for 5-way 1-shot, 5w1s-within to stay within a group")
        return cls(int(found[1]), int(found[2]), bool(found[3]))


class EpisodeSampler:
    """Episodes of a meta-set. Episode number k depends on the seed and k alone.

    It is the same on every machine, in any order and in any number of processes. Classes are drawn without
    replacement, and so are the images of a class. The support set is shuffled; queries are ordered by class.

    Classes with too few images are left out, and a line says so.

    Where each image of a class is drawn by another person, as in Omniglot and the glyphs, no query is therefore by the
    hand that drew the support images of its class.

    Args:
        images: The meta-set; `images` of the sampler are its classes that are large enough.
        n_way: Classes per episode.
        n_shot: Support images per class.
        n_query: Query images per class; 15 in the paper.
        seed: Another seed gives other episodes.
        device: Where episodes are made. A device other than the CPU gets one copy of the meta-set, in bytes.
        within_group: Draw a group that has enough classes, then the classes from it alone.

    Raises:
        UserError: There are too few classes, all together or in each group, or too few with enough images; or the seed
            is out of bounds.
    """

    def __init__(
        self,
        images: ImagesByClass,
        n_way: int,
        n_shot: int,
        n_query: int = 15,
        seed: int = 0,
        device: torch.device | str = "cpu",
        within_group: bool = False,
    ):
        for name, value, least in (("--n-way", n_way, 2), ("--n-shot", n_shot, 1), ("--n-query", n_query, 0)):
            if value < least:
                raise UserError(f"{name} {value}: must be at least {least}")
        check_seed(seed)
        if n_way > len(images.classes):
            raise UserError(
                f"{n_way}-way episodes need {n_way} classes, but {images.name} has {len(images.classes)}: "
                f"add {n_way - len(images.classes)}, or pass a smaller --n-way"
            )
        images = _large_enough(images, n_way, n_shot, n_query)
        self.pixels = _Pixels(images, device)
        self.images, self.device = self.pixels.images, self.pixels.device
        self.n_way, self.n_shot, self.n_query, self.seed = n_way, n_shot, n_query, seed
        self.within_group, self._groups = within_group, _groups(images, n_way) if within_group else []

    def __getitem__(self, index: int) -> Episode:
        """Episode number `index`."""
        return self.batch([index])

    def batch(self, indices: list[int] | range) -> Episode:
        """The episodes with these numbers as one batch of tasks, (n_tasks, ...)."""
        support, labels, query = zip(*(self._draw(index) for index in indices), strict=True)
        query_y = torch.arange(self.n_way).repeat_interleave(self.n_query).expand(len(indices), -1)
        load, here = self.pixels.load, self.pixels.here
        return Episode(
            Support(load(np.stack(support)), here(torch.from_numpy(np.stack(labels))), self.n_way),
            Query(load(np.stack(query)), here(query_y)),
        )

    def classes(self, index: int) -> list[int]:
        """The classes of an episode, as numbers in `images`. Label k of the episode is number k in this list."""
        return self._classes(index)[1].tolist()

    def _classes(self, index: int) -> tuple[np.random.RandomState, np.ndarray]:
        # The stream of RandomState never changes; that of newer generators may.
        rng = np.random.RandomState([self.seed, index])
        among = self._groups[rng.randint(len(self._groups))] if self.within_group else len(self.images.classes)
        return rng, rng.choice(among, self.n_way, replace=False)

    def _draw(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the support images, their labels, and rows of the query images."""
        rng, classes = self._classes(index)
        rows = np.stack(
            [rng.choice(np.arange(*self.images.spans[c]), self.n_shot + self.n_query, replace=False) for c in classes]
        )
        order = rng.permutation(self.n_way * self.n_shot)
        labels = np.repeat(np.arange(self.n_way), self.n_shot)
        return rows[:, : self.n_shot].reshape(-1)[order], labels[order], rows[:, self.n_shot :].reshape(-1)


def _large_enough(images: ImagesByClass, n_way: int, n_shot: int, n_query: int) -> ImagesByClass:
    """The classes that have the images of an episode; the first time, a line names the others.

    Raises:
        UserError: There are fewer than `n_way`.
    """
    needed, sizes = n_shot + n_query, np.diff(images.spans).ravel()
    small = [f"{name!r} has {size}" for name, size in zip(images.classes, sizes, strict=True) if size < needed]
    if not small:
        return images
    shown = ", ".join(small[:NAMED]) + (f" and {len(small) - NAMED:,} more have too few" if len(small) > NAMED else "")
    if (enough := len(sizes) - len(small)) < n_way:
        raise UserError(
            f"{n_shot}-shot with {n_query} queries needs {needed} images of each of {n_way} classes, but {enough} of "
            f"{images.name} have as many ({shown}): add images{_advice(sizes, n_way, n_shot)}"
        )
    say_once(f"left out of episodes of {images.name}, where a class needs {needed} images: {shown}")
    return images.subset(name for name, size in zip(images.classes, sizes, strict=True) if size >= needed)


def _advice(sizes: np.ndarray, n_way: int, n_shot: int) -> str:
    """The options with which `n_way` classes would be large enough, if there are any."""
    has = int(np.sort(sizes)[-n_way])
    if has > n_shot:
        return f", or pass --n-query {has - n_shot}"
    return f", or pass --n-shot {has // 2} --n-query {has - has // 2}" if has > 1 else ""


def _groups(images: ImagesByClass, n_way: int) -> list[np.ndarray]:
    """The numbers of the classes of each group that has enough of them.

    Raises:
        UserError: There is no such group.
    """
    if not images.groups:
        raise UserError(f"--within-group: the classes of {images.name} have no groups: leave it out")
    groups = [np.flatnonzero(np.array(images.groups) == name) for name in sorted(set(images.groups))]
    large = [group for group in groups if len(group) >= n_way]
    if not large:
        has = max(map(len, groups))
        raise UserError(
            f"{n_way}-way episodes within a group need {n_way} classes in it, but the largest of {images.name} has "
            f"{has}: pass --n-way {has}, or leave out --within-group"
        )
    return large


class BatchSampler:
    """Mini-batches of images from all classes of a meta-set. Mini-batch number k depends on the seed and k alone.

    Args:
        images: The meta-set.
        batch_size: Images per mini-batch, drawn with replacement.
        seed: Another seed gives other mini-batches.
        device: Where mini-batches are made, as for `EpisodeSampler`.
    """

    def __init__(self, images: ImagesByClass, batch_size: int, seed: int = 0, device: torch.device | str = "cpu"):
        check_seed(seed)
        self.pixels = _Pixels(images, device)
        spans = self.pixels.images.spans
        self._rows = np.concatenate([np.arange(*span) for span in spans])
        self._labels = np.repeat(np.arange(len(spans)), np.diff(spans).ravel())
        self.batch_size, self.seed = batch_size, seed

    def __getitem__(self, index: int) -> Labeled:
        """Mini-batch number `index`."""
        return self.batch([index])

    def batch(self, indices: list[int] | range) -> Labeled:
        """The mini-batches with these numbers as one."""
        chosen = np.concatenate(
            [np.random.RandomState([self.seed, k]).randint(len(self._rows), size=self.batch_size) for k in indices]
        )
        labels = torch.from_numpy(self._labels[chosen])
        return Labeled(self.pixels.load(self._rows[chosen]), self.pixels.here(labels))


class _Pixels:
    """The images of a meta-set, on the device where they are needed. Each device gets one copy, in bytes."""

    def __init__(self, images: ImagesByClass, device: torch.device | str):
        self.device = torch.device(device)
        if self.device.type != "cpu":
            images = images.compact()
            self._resident = torch.tensor(images.images, device=self.device)
        self.images = images

    def load(self, rows: np.ndarray) -> Float[Tensor, "*n channels height width"]:
        """The images with these numbers, in 0..1."""
        if self.device.type == "cpu":
            pixels = torch.from_numpy(self.images.images[rows])
        else:
            pixels = self._resident[self.here(torch.from_numpy(rows))]
        return pixels.movedim(-1, -3).float().div_(255)

    def here(self, numbers: Tensor) -> Tensor:
        """The same numbers, on the device."""
        return numbers if self.device.type == "cpu" else numbers.to(self.device, non_blocking=True)
