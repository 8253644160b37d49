"""Methods that compare or regress features: against slow, obvious versions and scikit-learn."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from metalstm.episodes import Support
from metalstm.methods import METHODS, OnFeatures, Search, Tuning
from metalstm.methods.class_means import class_means, squared_distances
from metalstm.methods.logistic import solve
from metalstm.settings import Traits
from tiny import batch, build, config, episode, random

UNEQUAL = torch.tensor([0, 2, 1, 0, 0, 2])  # 3, 1 and 2 images of three classes


def support_of(x: torch.Tensor, y: torch.Tensor = UNEQUAL) -> Support:
    """Features in the place of images."""
    return Support(x[..., None, None], y, 3)


def rule(name: str, **changes: Any) -> OnFeatures:
    method = build(config(name, **changes))
    assert isinstance(method, OnFeatures)
    return method


def test_means_of_classes_of_unequal_size():
    x = random(6, 5)
    means = class_means(x, support_of(x))
    for label in range(3):
        torch.testing.assert_close(means[label], x[label == UNEQUAL].mean(0))


def test_squared_distances():
    x, means = random(2, 6, 5), random(2, 3, 5, seed=1)
    torch.testing.assert_close(squared_distances(x, means), torch.cdist(x, means).square())


def test_the_nearest_class_mean_by_the_cosine_or_by_the_distance():
    x, query = random(6, 5), random(4, 5, seed=1)
    support = support_of(x)
    cosines = rule("class-means")
    unit = F.normalize(x, dim=-1)
    expected = F.normalize(query, dim=-1) @ F.normalize(class_means(unit, support), dim=-1).mT
    assert torch.equal(cosines.scores(cosines.fit(x, support), query).argsort(-1), expected.argsort(-1))
    plain = rule("class-means", unit=False)
    torch.testing.assert_close(
        plain.scores(plain.fit(x, support), query), -torch.cdist(query, class_means(x, support)).square()
    )


@pytest.mark.parametrize("penalty", [0.03, 1.0])
def test_logistic_regression_equals_that_of_scikit_learn(penalty):
    x = F.normalize(random(6, 5), dim=-1)
    other = LogisticRegression(C=1 / penalty, tol=1e-12, max_iter=10_000).fit(x.numpy(), UNEQUAL.numpy())
    expected = torch.from_numpy(other.decision_function(x.numpy())).softmax(-1)
    weights = solve(x, UNEQUAL, 3, penalty)
    torch.testing.assert_close((x @ weights[:-1] + weights[-1]).softmax(-1), expected, rtol=1e-4, atol=1e-5)


def test_logistic_regression_is_tuned_by_the_best_penalty():
    method = rule("logistic")
    kept = {}

    def keep(name, compute):
        kept[name] = compute()
        return kept[name]

    changes = method.tune(Tuning(lambda number: episode((1,), seed=number), Search(2, 3), keep))
    assert changes["settings"].penalty == kept["penalty"]["penalty"]
    assert changes["chosen"]["meta_val"] == kept["penalty"]["meta_val"]


def test_ridge_regression_solves_the_normal_equations():
    method = rule("r2d2")
    x = random(2, 6, 5)
    weights = method.fit(x, support_of(x, UNEQUAL.expand(2, -1)))["weights"]
    one = torch.cat([F.normalize(x, dim=-1), torch.ones(2, 6, 1, dtype=torch.double)], -1)
    y = F.one_hot(UNEQUAL, 3).double()
    penalty = method.get_parameter("log_penalty").exp() * torch.eye(6, dtype=torch.double)
    torch.testing.assert_close(weights, torch.linalg.inv(one.mT @ one + penalty) @ one.mT @ y)


def test_prototypes_are_class_means_and_scores_minus_squared_distances():
    method = rule("protonet", scale=0.5)
    x, query = random(6, 5), random(4, 5, seed=1)
    support = support_of(x)
    expected = -0.5 * torch.cdist(query, class_means(x, support)).square()
    torch.testing.assert_close(method.scores(method.fit(x, support), query), expected)


def test_episodes_of_prototypical_networks_may_have_more_classes_than_tests():
    run = config("protonet", "paper")
    assert METHODS["protonet"].recipe("paper", Traits(), 1).settings.train_way == 30
    assert METHODS["protonet"].recipe("paper", Traits(), 5).settings.train_way == 20
    few = replace(run, settings=replace(run.settings, train_way=2))
    assert batch(few).support.n_way == 2
    assert batch(run).support.n_way == 3, "all classes that there are, at the most"


def test_all_meta_trained_ones_start_and_train_alike():
    ours = config("matching-net")
    for name in ("protonet", "r2d2"):
        assert config(name).training == ours.training
        assert config(name).learner_settings == ours.learner_settings
