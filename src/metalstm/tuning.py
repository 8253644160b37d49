"""Choosing a fixed rule's settings on meta-val, so that no baseline is weak for want of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import NamedTuple

import torch
from torch import Tensor

from metalstm.console import track
from metalstm.episodes import Episode
from metalstm.methods import GradientMethod, Step
from metalstm.methods.base import cross_entropy
from metalstm.optimizers import RULES, InnerOptimizer

READ_AT = (1, 2, 3, 5, 7, 10, 15, 20)  # inner steps that a trajectory is read at
FEW, MANY = 20, 100  # episodes of a round, and of the last
KEPT = 2  # of each round
DECAYS = (0.0, 0.1, 1.0)
# Learning rates are 10^(k/2); the search starts with these k, and goes on outwards from an end that is best.
HALF_DECADES = {
    "sgd": range(-6, 1),
    "momentum": range(-7, 0),
    "adagrad": range(-7, 0),
    "adadelta": range(-4, 3),
    "adam": range(-9, -2),
}

Episodes = Callable[[int], Episode]  # number -> episode, a batch of one task


@dataclass(frozen=True)
class Choice:
    """Settings of a fixed rule, and what they reach on meta-val."""

    rule: str
    lr: float
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
            moments = step.moments if method.keep_moments else None
            support_loss = cross_entropy(method.learner(step.theta, support.x, moments)[0], support.y)
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


def tune(
    rule: str,
    with_rule: Callable[[InnerOptimizer], GradientMethod],
    episodes: Episodes,
    description: str,
    few: int = FEW,
    many: int = MANY,
    read_at: Sequence[int] = READ_AT,
) -> Choice:
    """The settings of a rule that are best on meta-val, by successive halving.

    Every learning rate, without decay, is followed for a few episodes; the best of them, with each decay, for as many;
    the best of these for many. How many steps is read from the same trajectories. An end of the rates that is best is
    gone beyond.

    Args:
        rule: One of `RULES`.
        with_rule: Gives the method that adapts by an optimiser, for as many steps as are read.
        episodes: Of meta-val.
        description: What a progress bar says.
        few: Episodes of the first two rounds.
        many: Episodes of the last.
        read_at: Inner steps to choose from, ascending.
    """
    followed: dict[tuple[int, float], list[Tensor]] = {}  # (k, decay) -> accuracies of each episode at each reading

    def best(key: tuple[int, float]) -> tuple[float, int]:
        """Accuracy, and the number of steps."""
        means = torch.stack(followed[key]).mean(0)
        return means.max().item(), read_at[int(means.argmax())]

    def follow(keys: Sequence[tuple[int, float]], numbers: range) -> None:
        for k, decay in track(keys, f"{description}, {len(numbers)} episodes each"):
            method = with_rule(RULES[rule](10 ** (k / 2), decay))
            there = followed.setdefault((k, decay), [])
            there += [_accuracies(method, episodes(number), read_at) for number in numbers]

    def kept() -> list[tuple[int, float]]:
        return sorted(followed, key=best, reverse=True)[:KEPT]

    rates: Sequence[int] = HALF_DECADES[rule]
    while rates:
        follow([(k, 0.0) for k in rates], range(few))
        ks = [k for k, _ in followed]
        k, _ = max(followed, key=best)
        rates = [min(ks) - 1] if k == min(ks) else [max(ks) + 1] if k == max(ks) else []
    follow([key for key in product([k for k, _ in kept()], DECAYS) if key not in followed], range(few))
    finalists = kept()
    follow(finalists, range(few, many))
    k, decay = max(finalists, key=best)
    accuracy, steps = best((k, decay))
    return Choice(rule, 10 ** (k / 2), decay, steps, accuracy, many)
