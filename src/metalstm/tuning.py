"""Choosing a fixed rule's settings on meta-val, so that no baseline is weak for want of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import NamedTuple

import torch

from metalstm.console import track
from metalstm.episodes import Episode
from metalstm.methods import GradientMethod
from metalstm.methods.base import cross_entropy
from metalstm.optimizers import RULES, InnerOptimizer

READ_AT = (1, 2, 3, 5, 7, 10, 15, 20)  # inner steps that a trajectory is read at
FEW, MANY = 20, 100  # episodes of the two rounds
KEPT = 2  # rates that reach the second, with each decay
DECAYS = (0.0, 0.1)
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
    """What happens over the inner steps of some episodes: float64 (n_episodes, n_points)."""

    support_loss: torch.Tensor  # nats, of the whole support set as the next step would see it
    query_loss: torch.Tensor
    accuracy: torch.Tensor  # of queries, in percent


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
    support_losses, query_losses, accuracies = [], [], []
    for number in track(numbers, description) if description else numbers:
        episode = episodes(number)
        support, query = episode.support, episode.query
        steps = (step for start in [[method.start(support)], method.trajectory(support)] for step in start)
        for t, step in enumerate(islice(steps, read_at[-1] + 1)):
            if t not in read_at:
                continue
            moments = step.moments if method.keep_moments else None
            support_losses.append(cross_entropy(method.learner(step.theta, support.x, moments)[0], support.y))
            logits = method.logits(method.finish(step, support), query.x)
            query_losses.append(cross_entropy(logits, query.y))
            accuracies.append((logits.argmax(-1) == query.y).double().mean(-1) * 100)
    kinds = support_losses, query_losses, accuracies
    return Curves(*(torch.cat(kind).double().view(len(numbers), -1).cpu() for kind in kinds))


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

    Every learning rate, without decay, is followed for a few episodes; the best, with each decay, for many. How many
    steps is read from the same trajectories. An end of the rates that is best is gone beyond.

    Args:
        rule: One of `RULES`.
        with_rule: Gives the method that adapts by an optimiser, for as many steps as are read.
        episodes: Of meta-val.
        description: What a progress bar says.
        few: Episodes of the first round.
        many: Episodes of the second.
        read_at: Inner steps to choose from, ascending.
    """
    followed: dict[tuple[int, float], list[torch.Tensor]] = {}

    def best(key: tuple[int, float]) -> tuple[float, int]:
        """Accuracy, and the number of steps."""
        means = torch.cat(followed[key]).mean(0)
        return means.max().item(), read_at[int(means.argmax())]

    def follow(keys: Sequence[tuple[int, float]], numbers: range) -> None:
        for k, decay in track(keys, f"{description}, {len(numbers)} episodes each"):
            method = with_rule(RULES[rule](10 ** (k / 2), decay))
            followed.setdefault((k, decay), []).append(curves(method, episodes, numbers, read_at).accuracy)

    rates: Sequence[int] = HALF_DECADES[rule]
    while rates:
        follow([(k, 0.0) for k in rates], range(few))
        ks = [k for k, _ in followed]
        k, _ = max(followed, key=best)
        rates = [min(ks) - 1] if k == min(ks) else [max(ks) + 1] if k == max(ks) else []
    kept = [k for k, _ in sorted(followed, key=best, reverse=True)[:KEPT]]
    finalists = list(product(kept, DECAYS))
    follow([key for key in finalists if key not in followed], range(few))
    follow(finalists, range(few, many))
    k, decay = max(finalists, key=best)
    accuracy, steps = best((k, decay))
    return Choice(rule, 10 ** (k / 2), decay, steps, accuracy, many)
