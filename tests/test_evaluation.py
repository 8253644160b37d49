import numpy as np
import pytest
import torch

from metalstm.episodes import EpisodeSampler
from metalstm.evaluation import Accuracy, confusion, evaluate
from metalstm.methods import Method, PixelNearestNeighbor
from test_episodes import numbered


def test_mean_and_interval_are_those_of_the_protocol():
    values = np.random.default_rng(0).uniform(20, 100, 600)
    accuracy = Accuracy(values.tolist())
    assert accuracy.mean == pytest.approx(values.mean())
    assert accuracy.ci95 == pytest.approx(1.96 * values.std(ddof=1) / np.sqrt(600))
    assert str(accuracy) == f"{values.mean():.2f} +- {1.96 * values.std(ddof=1) / np.sqrt(600):.2f} %"


def test_one_episode_has_no_interval():
    assert Accuracy([50.0]).ci95 == float("inf")


class Oracle(Method):
    """Right on classes 0 and 1, wrong on class 2: query labels lie class by class."""

    def adapt(self, support):
        return {}

    def logits(self, adapted, query_x):
        right = torch.eye(3).repeat_interleave(query_x.shape[1] // 3, 0)
        right[-query_x.shape[1] // 3 :] = torch.tensor([1.0, 0.0, 0.0])
        return right[None]


def test_accuracy_is_the_share_of_right_queries():
    sampler = EpisodeSampler(numbered([8] * 4), 3, 1, 5)
    assert evaluate(Oracle(), sampler, 4).per_episode == pytest.approx([200 / 3] * 4)


def test_every_method_sees_the_same_episodes():
    sampler = EpisodeSampler(numbered([8] * 4), 3, 1, 5)
    method = PixelNearestNeighbor()
    assert evaluate(method, sampler, 5).per_episode == evaluate(method, sampler, 5).per_episode


def test_evaluation_keeps_no_graph():
    class Spy(PixelNearestNeighbor):
        def adapt(self, support):
            assert not torch.is_grad_enabled()
            return super().adapt(support)

    evaluate(Spy(), EpisodeSampler(numbered([8] * 4), 3, 1, 5), 1)


def test_confusion_counts_queries_of_classes_that_met():
    """Labels 0 and 1 are right and 2 is taken for 0, whatever classes these are."""
    sampler = EpisodeSampler(numbered([8] * 5), 3, 1, 5)
    taken, met = np.zeros((5, 5)), np.zeros((5, 5))
    for number in range(6):
        first, second, third = classes = sampler.classes(number)
        taken[first, first] += 5
        taken[second, second] += 5
        taken[third, first] += 5
        met[np.ix_(classes, classes)] += 5
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(confusion(Oracle(), sampler, 6).numpy(), taken / met, rtol=1e-6)
    assert confusion(Oracle(), sampler, 1).isnan().sum() == 25 - 9
