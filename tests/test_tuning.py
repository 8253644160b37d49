"""Following the inner loop, and choosing a rule's settings by it."""

import itertools

import pytest
import torch
from torch.nn.functional import cross_entropy

from metalstm.episodes import Episode, Query, Support
from metalstm.learners import Conv4
from metalstm.methods import GradientMethod
from metalstm.optimizers import RULES, SGD, InnerOptimizer
from metalstm.tuning import DECAYS, HALF_DECADES, curves, tune

SHAPE = (1, 16, 16)


def episode(number: int) -> Episode:
    """Three classes, which differ in brightness; a batch of one task."""
    generator = torch.Generator().manual_seed(number)
    y = torch.arange(3).repeat(4)
    x = torch.rand(12, *SHAPE, generator=generator) + 0.4 * y[:, None, None, None]
    return Episode(Support(x[None, :6], y[None, :6], 3), Query(x[None, 6:], y[None, 6:]))


def method(optimizer: InnerOptimizer) -> GradientMethod:
    return GradientMethod(Conv4(SHAPE, 4), optimizer, 3, 8, None, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", ["running", "support"])
def test_curves_are_what_shorter_loops_end_with(norm):
    """Read after t steps, the loop gives what the same method with t epochs adapts to."""
    longer = method(SGD(0.1))
    longer.query_norm = norm
    read = curves(longer, episode, [3, 5], (0, 1, 4))
    for row, number in enumerate([3, 5]):
        support, query = episode(number).support, episode(number).query
        for column, epochs in enumerate((0, 1, 4)):
            shorter = method(SGD(0.1))
            shorter.epochs, shorter.query_norm = epochs, norm
            step = shorter.start(support) if epochs == 0 else list(shorter.trajectory(support))[-1]
            adapted = shorter.finish(step, support)
            logits = shorter.logits(adapted, query.x)[0]
            assert read.accuracy[row, column] == 100 * (logits.argmax(-1) == query.y[0]).double().mean()
            assert read.query_loss[row, column] == pytest.approx(cross_entropy(logits, query.y[0]).item(), rel=1e-5)
            support_loss = cross_entropy(shorter.learner(step.theta, support.x)[0][0], support.y[0])
            assert read.support_loss[row, column] == pytest.approx(support_loss.item(), rel=1e-5)


def test_the_choice_is_the_best_of_an_exhaustive_search():
    """With as many episodes in the first round as in the second, halving loses nothing."""
    choice = tune("sgd", method, episode, "", few=3, many=4, read_at=(1, 8))
    reached = {}
    for k, decay in itertools.product(HALF_DECADES["sgd"], DECAYS):
        read = curves(method(SGD(10 ** (k / 2), decay)), episode, range(4), (1, 8))
        reached |= {(k, decay, steps): a for steps, a in zip((1, 8), read.accuracy.mean(0).tolist(), strict=True)}
    assert choice.meta_val >= max(reached.values()) - 5  # the first round has an episode less to go by
    again = curves(method(SGD(choice.lr, choice.decay)), episode, range(4), (choice.steps,))
    assert again.accuracy.mean().item() == pytest.approx(choice.meta_val)
    assert choice.episodes == 4


def test_a_search_goes_on_beyond_an_end_that_is_best(monkeypatch):
    """Of steps thirty times too small, the largest rate tried at first is the best, so that a larger one is tried."""
    tried = []

    class Timid(SGD):
        def __init__(self, lr: float, decay: float = 0.0):
            super().__init__(lr / 30, decay)
            tried.append(lr)

    monkeypatch.setitem(RULES, "sgd", Timid)
    choice = tune("sgd", method, episode, "", few=2, many=3, read_at=(8,))
    assert choice.lr >= 10 ** (HALF_DECADES["sgd"][-1] / 2)
    assert max(tried) > choice.lr
