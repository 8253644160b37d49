"""The protocol: accuracy over many episodes, with its 95 % confidence interval."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

import torch

from metalstm import distributed
from metalstm.console import track
from metalstm.episodes import EpisodeSampler
from metalstm.methods import Method


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
    device: torch.device | str = "cpu",
    description: str | None = None,
) -> Accuracy:
    """Adapt to each of the sampler's first `episodes` episodes and classify its queries.

    Several processes share the episodes out, and each gets the result of all: all of them must call.

    Args:
        method: What adapts; left as it is.
        sampler: Where episodes come from; the same seed gives the same ones to every method.
        episodes: How many; 600 in the paper.
        device: Where the method lies.
        description: What a progress bar says; none is shown without it.
    """
    mine = distributed.share(range(episodes))
    numbers: Iterable[int] = track(mine, description) if description else mine
    accuracies = torch.zeros(episodes, dtype=torch.float64, device=device)
    was_training = method.training
    method.eval()
    for number in numbers:
        episode = sampler[number].to(device)
        logits = method.logits(method.adapt(episode.support), episode.query.x)
        accuracies[number] = (logits.argmax(-1) == episode.query.y).double().mean()
    method.train(was_training)
    return Accuracy((100 * distributed.total(accuracies)).tolist())
