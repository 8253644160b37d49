"""The protocol: accuracy over many episodes, with its 95 % confidence interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch

from metalstm import distributed
from metalstm.console import track
from metalstm.episodes import EpisodeSampler
from metalstm.methods import Method

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
        n = len(self.per_episode)
        return 1.96 * sqrt(sum((a - self.mean) ** 2 for a in self.per_episode) / (n - 1) / n) if n > 1 else float("inf")

    def __str__(self) -> str:
        return f"{self.mean:.2f} +- {self.ci95:.2f} %"


@torch.no_grad()
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
    mine = distributed.share(range(episodes))
    together = 1 if sampler.device.type == "cpu" else TOGETHER
    batches: Sequence[range] = [mine[start : start + together] for start in range(0, len(mine), together)]
    accuracies = torch.zeros(episodes, dtype=torch.float64, device=sampler.device)
    was_training = method.training
    method.eval()
    for numbers in track(batches, description) if description else batches:
        episode = sampler.batch(numbers)
        logits = method.logits(method.adapt(episode.support), episode.query.x)
        accuracies[numbers.start : numbers.stop : numbers.step] = (
            (logits.argmax(-1) == episode.query.y).double().mean(-1)
        )
    method.train(was_training)
    return Accuracy((100 * distributed.total(accuracies)).tolist())
