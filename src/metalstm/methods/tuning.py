"""Following the inner loop, and choosing the settings of a fixed rule on meta-val, so that no baseline is weak."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import NamedTuple

import torch
from torch import Tensor

from metalstm.console import track
from metalstm.episodes import Episode
from metalstm.methods.base import Tuning, cross_entropy
from metalstm.methods.gradient import GradientMethod, Step
from metalstm.optimizers import RULES

KEPT = 2  # of each round
DECAYS = (0.0, 0.1, 1.0)

Episodes = Callable[[int], Episode]  # number -> episode, a batch of one task


@dataclass(frozen=True)
class Choice:
    """Settings of a fixed rule, and what they reach on meta-val."""

    rule: str
    rate: float
    decay: float
    steps: int
    meta_val: float  # query accuracy in percent, mean of `episodes`
    episodes: int


class Curves(NamedTuple):
    """What happens over the inner steps of some episodes: (n_episodes, n_points)."""

    support_loss: Tensor  # nats, of the whole support set as the next step would see it
    query_loss: Tensor
    accuracy: Tensor  # of queries, in percent


@torch.no_grad()
def curves(
    method: GradientMethod,
    episodes: Episodes,
    numbers: Sequence[int],
    read_at: Sequence[int],
    description: str | None = None,
) -> Curves:
    """Follow the inner loop, and read it after so many steps; 0 is theta_0.

    Args:
        method: What adapts.
        episodes: Gives episodes.
        numbers: Those to follow.
        read_at: Inner steps, ascending; those beyond the method's own schedule are left out.
        description: What a progress bar says; none is shown without it.
    """
    read: list[tuple[Tensor, Tensor, Tensor]] = []
    for number in track(numbers, description) if description else numbers:
        episode = episodes(number)
        support, query_y = episode.support, episode.query.y
        for step, logits in _readings(method, episode, read_at):
            moments = step.moments if method.settings.keep_moments else None
            seen = method.learner.fixed(support.x)
            support_loss = cross_entropy(method.learner(step.theta, seen, moments)[0], support.y)
            read.append((support_loss, cross_entropy(logits, query_y), _percent(logits, query_y)))
    return Curves(*(torch.cat(kind).double().view(len(numbers), -1).cpu() for kind in zip(*read, strict=True)))


def _readings(method: GradientMethod, episode: Episode, read_at: Sequence[int]) -> Iterator[tuple[Step, Tensor]]:
    """The steps that are read, with the logits of the queries."""
    support = episode.support
    steps = (step for start in [[method.start(support)], method.trajectory(support)] for step in start)
    for t, step in enumerate(islice(steps, read_at[-1] + 1)):
        if t in read_at:
            yield step, method.logits(method.finish(step, support), episode.query.x)


def _percent(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.argmax(-1) == y).double().mean(-1) * 100


@torch.no_grad()
def _accuracies(method: GradientMethod, episode: Episode, read_at: Sequence[int]) -> Tensor:
    """Of queries, in percent, at each reading: (n_points,)."""
    y = episode.query.y
    return torch.cat([_percent(logits, y) for _, logits in _readings(method, episode, read_at)]).cpu()


def tune_rule(rule: str, method: GradientMethod, tuning: Tuning) -> Choice:
    """The settings of a rule that are best on meta-val, by successive halving.

    Every learning rate, without decay, is followed for a few episodes; the best two of them, with each decay, for as
    many; the best two of these for many. The number of steps is read from the same trajectories. If the best rate is
    at the end of the grid, the grid is extended.

    Args:
        rule: One of `RULES`.
        method: What adapts; its own optimizer and number of steps are replaced.
        tuning: Episodes and budget.
    """
    kind, search, read_at = RULES[rule], tuning.search, tuning.search.read_at
    followed: dict[tuple[int, float], list[Tensor]] = {}  # (k, decay) -> accuracies of each episode at each reading

    def best(key: tuple[int, float]) -> tuple[float, int]:
        """Accuracy, and the number of steps."""
        means = torch.stack(followed[key]).mean(0)
        return means.max().item(), read_at[int(means.argmax())]

    def follow(keys: Sequence[tuple[int, float]], numbers: range) -> None:
        for k, decay in track(keys, f"{tuning.description}: {rule}, {len(numbers)} episodes each"):
            rule_at = kind(10 ** (k / 2), decay)
            rival = method.with_inner_loop(rule_at, epochs=read_at[-1], few_shot_epochs=None, batch_size=None)
            curve = followed.setdefault((k, decay), [])
            curve += [_accuracies(rival, tuning.episodes(number), read_at) for number in numbers]

    def kept() -> list[tuple[int, float]]:
        return sorted(followed, key=best, reverse=True)[:KEPT]

    rates: Sequence[int] = kind.half_decades
    while rates:
        follow([(k, 0.0) for k in rates], range(search.few))
        ks = [k for k, _ in followed]
        k, _ = max(followed, key=best)
        rates = [min(ks) - 1] if k == min(ks) else [max(ks) + 1] if k == max(ks) else []
    follow([key for key in product([k for k, _ in kept()], DECAYS) if key not in followed], range(search.few))
    finalists = kept()
    follow(finalists, range(search.few, search.many))
    k, decay = max(finalists, key=best)
    accuracy, steps = best((k, decay))
    return Choice(rule, 10 ** (k / 2), decay, steps, accuracy, search.many)
