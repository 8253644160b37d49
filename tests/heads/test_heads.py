"""Each head against a slow, obvious version of it."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metalstm import checkpoint, recipes
from metalstm.episodes import Support
from metalstm.heads import HEADS
from metalstm.methods import METHODS, GradientMethod

N_WAY, N_SHOT, N_FEATURES = 3, 4, 7


@pytest.fixture
def task():
    """Features and labels of a support set, and features of queries."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N_WAY).repeat(N_SHOT)
    centers = torch.randn(N_WAY, N_FEATURES, generator=generator)
    x = centers[y] + torch.randn(len(y), N_FEATURES, generator=generator)
    return x, y, centers + torch.randn(N_WAY, N_FEATURES, generator=generator)


def logits(head: str, config, task) -> torch.Tensor:
    x, y, query = task
    method = HEADS[head].build(config)
    with torch.no_grad():
        adapted = method.adapt(Support(x[:, None, None], y, N_WAY))
        return method.logits(adapted, query[:, None, None])


def candidates(head: str):
    return HEADS[head].candidates(N_FEATURES, N_WAY, N_SHOT)


@pytest.mark.parametrize("head", HEADS)
def test_candidates_are_configurations_that_a_file_can_hold(head, task):
    for config in candidates(head):
        assert recipes.from_dict(recipes.to_dict(config)) == config
        assert isinstance(HEADS[head].build(config), METHODS[config.method])
        assert logits(head, config, task).shape == (N_WAY, N_WAY)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("n_features", [1, 2000])
def test_any_number_of_features_will_do(head, n_features):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, n_features, generator=generator)
    method = HEADS[head].build(HEADS[head].candidates(n_features, 2, 2)[0])
    adapted = method.adapt(Support(x[:, None, None], torch.tensor([0, 1, 0, 1]), 2))
    assert method.logits(adapted, x[:, None, None]).isfinite().all()


@pytest.mark.parametrize("head", HEADS)
def test_the_length_of_features_does_not_matter(head, task):
    x, y, query = task
    longer = 30 * x, y, query / 7
    torch.testing.assert_close(logits(head, candidates(head)[0], longer), logits(head, candidates(head)[0], task))


def test_class_means(task):
    neighbors = pytest.importorskip("sklearn.neighbors")
    x, y, query = (F.normalize(each, dim=-1) if each.is_floating_point() else each for each in task)
    expected = neighbors.NearestCentroid().fit(x, y).predict(query)
    (config,) = candidates("class-means")
    np.testing.assert_array_equal(logits("class-means", config, task).argmax(-1), expected)


def test_logistic_regression(task):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y, query = (F.normalize(each, dim=-1) if each.is_floating_point() else each for each in task)
    for config in candidates("logistic"):
        model = linear_model.LogisticRegression(C=1 / config.settings.penalty, tol=1e-8, max_iter=10_000)
        expected = model.fit(x.double(), y).predict_proba(query.double())
        np.testing.assert_allclose(logits("logistic", config, task).softmax(-1), expected, atol=2e-4)


def test_the_cache_of_tip_adapter(task):
    x, y, query = (F.normalize(each, dim=-1) if each.is_floating_point() else each for each in task)
    for config in candidates("tip-adapter"):
        beta = config.settings.scale
        votes = torch.zeros(len(query), N_WAY)
        for row, each in enumerate(query):
            for feature, label in zip(x, y, strict=True):
                votes[row, label] += math.exp(-beta * (1 - float(each @ feature)))
        expected = votes / votes.sum(-1, keepdim=True)
        torch.testing.assert_close(logits("tip-adapter", config, task).softmax(-1), expected)


def test_the_learned_optimizer(task):
    """A head of zeros that the shipped optimizer moves by the gradient of softmax regression, written out."""
    source, _, _ = checkpoint.load_method("meta-lstm-cifar-fs-5w5s")
    assert isinstance(source, GradientMethod)
    for config in candidates("meta-lstm"):
        x, y, query = (
            F.normalize(each, dim=-1) * config.learner_settings.length if each.is_floating_point() else each
            for each in task
        )
        x, query = (torch.cat([each, torch.ones(len(each), 1)], 1) for each in (x, query))
        theta = torch.zeros(N_WAY * (N_FEATURES + 1))
        state = source.optimizer.init(theta)
        for _ in range(config.settings.epochs):
            p = (x @ theta.view(N_WAY, -1).T).softmax(-1)
            grad = (p - F.one_hot(y, N_WAY)).T @ x / len(y) * N_WAY / 5
            with torch.no_grad():
                theta, state = source.optimizer.update(theta, grad.flatten(), F.nll_loss(p.log(), y), state)
        expected = query @ theta.view(N_WAY, -1).T * 10  # the scale of a method that was not trained
        torch.testing.assert_close(logits("meta-lstm", config, task), expected, rtol=1e-3, atol=1e-3)
