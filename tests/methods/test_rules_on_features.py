"""Methods that compare or regress features: against slow, obvious versions and scikit-learn."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from metalstm.episodes import Support
from metalstm.methods import METHODS, Search, Tuning
from metalstm.methods.class_means import class_means, squared_distances
from metalstm.methods.logistic import solve
from metalstm.settings import Traits
from tiny import batch, build, config, episode, images, logits, random

UNEQUAL = torch.tensor([0, 2, 1, 0, 0, 2])  # 3, 1 and 2 images of three classes


def support_of(x: torch.Tensor, y: torch.Tensor = UNEQUAL) -> Support:
    """Features in the place of images."""
    return Support(x[..., None, None], y, 3)


def label_is(label: int) -> torch.Tensor:
    return torch.eq(UNEQUAL, label)


def rule(name: str, **changes: Any) -> Any:
    return build(config(name, **changes))


def test_means_of_classes_of_unequal_size():
    x = random(6, 5)
    means = class_means(x, UNEQUAL, 3)
    for label in range(3):
        torch.testing.assert_close(means[label], x[label_is(label)].mean(0))


def test_squared_distances():
    x, means = random(2, 6, 5), random(2, 3, 5, seed=1)
    torch.testing.assert_close(squared_distances(x, means), torch.cdist(x, means).square())


def normalized(x: torch.Tensor, how: str, center: torch.Tensor) -> torch.Tensor:
    x = x - center if how == "centered" else x
    return x if how == "none" else x / x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("how", ["none", "unit", "centered"])
def test_the_nearest_class_mean_of_normalized_features(how):
    method, of = rule("class-means", normalize=how), episode(())
    center = method.center.copy_(random(*method.center.shape).abs())
    features = [method.learner.features(method.body, part.x, method.moments)[0] for part in (of.support, of.query)]
    support, query = (normalized(each.detach(), how, center) for each in features)
    expected = -torch.cdist(query, class_means(support, of.support.y, 3)).square()
    torch.testing.assert_close(logits(method, of), expected)


def test_the_center_is_the_mean_feature_of_meta_train():
    method = rule("class-means", normalize="centered")
    pixels = torch.from_numpy(images().images).movedim(-1, -3).double() / 255
    features = method.learner.features(method.body, pixels, method.moments)[0].detach()
    method.look_at(images())
    center = method.center.clone()
    torch.testing.assert_close(center, features.mean(0), rtol=0.05, atol=0.05 * features.std().item())
    assert (center - features.mean(0)).norm() < 0.1 * (features - features.mean(0)).norm(dim=-1).mean()
    method.look_at(images())
    assert torch.equal(method.center, center), "no chance is in it"


def test_simpleshot_is_the_nearest_class_mean_of_centered_features():
    rows = {row.name: row for row in METHODS["class-means"].rows()}
    assert rows["simpleshot"].changes == {"normalize": "centered"}
    method = rule("class-means", normalize="centered")
    tuning = Tuning(lambda number: episode((1,)), Search(), lambda part, compute: pytest.fail("searched"))
    assert method.tune(tuning) == {}, "what is set is not chosen"


@pytest.mark.parametrize("name", ["class-means", "logistic", "baseline-pp"])
def test_what_is_not_set_is_chosen_on_meta_val(name):
    method = rule(name)
    method.look_at(images())
    kept, choices = {}, method.choices

    def keep(part, compute):
        kept[part] = compute()
        return kept[part]

    changes = method.tune(Tuning(lambda number: episode((1,), seed=number), Search(2, 3), keep))
    chosen = kept["settings"]
    assert changes["chosen"] == chosen
    assert chosen.keys() == {*choices, "meta_val", "episodes"}

    def accuracy(**settings: Any) -> float:
        other = rule(name, **settings)
        other.load_state_dict(method.state_dict())
        right = [logits(other, of).argmax(-1) == of.query.y for of in (episode((1,), seed=k) for k in range(3))]
        return 100 * torch.stack(right).double().mean().item()

    assert accuracy(**vars(changes["settings"])) == pytest.approx(chosen["meta_val"])
    every = [accuracy(**dict(zip(choices, values, strict=True))) for values in product(*choices.values())]
    assert max(every) == pytest.approx(chosen["meta_val"])


@pytest.mark.parametrize("penalty", [0.03, 1.0])
def test_logistic_regression_equals_that_of_scikit_learn(penalty):
    x = F.normalize(random(6, 5), dim=-1)
    other = LogisticRegression(C=1 / penalty, tol=1e-12, max_iter=10_000).fit(x.numpy(), UNEQUAL.numpy())
    expected = torch.from_numpy(other.decision_function(x.numpy())).softmax(-1)
    weights = solve(x, UNEQUAL, 3, penalty)
    torch.testing.assert_close((x @ weights[:-1] + weights[-1]).softmax(-1), expected, rtol=1e-4, atol=1e-5)


def test_the_penalty_is_for_features_of_any_length():
    x = F.normalize(random(6, 5), dim=-1)
    plain, long = solve(x, UNEQUAL, 3, 0.3), solve(100 * x, UNEQUAL, 3, 0.3)
    torch.testing.assert_close(long[:-1] * 100, plain[:-1], rtol=1e-4, atol=1e-4)


def test_baseline_pp_is_trained_cosines():
    """Against plain gradient descent in all coordinates, from the class means."""
    method = rule("baseline-pp", scale=5.0)
    x, query = random(6, 9), random(4, 9, seed=1)
    weights = class_means(F.normalize(x, dim=-1), UNEQUAL, 3).requires_grad_()
    for _ in range(5000):
        logits = 5 * torch.cosine_similarity(x[:, None], weights, dim=-1)
        (grad,) = torch.autograd.grad(F.cross_entropy(logits, UNEQUAL), weights)
        weights = (weights - 0.5 * grad).detach().requires_grad_()
    expected = 5 * torch.cosine_similarity(query[:, None], weights, dim=-1).detach()
    torch.testing.assert_close(method.scores(method.fit(x, support_of(x)), query), expected, rtol=1e-3, atol=1e-3)


def test_relations_are_of_concatenated_pairs():
    method = rule("relation-net")
    x, query = random(6, method.learner.n_features), random(4, method.learner.n_features, seed=1)
    adapted = method.fit(x, support_of(x))
    weight, bias = method.hidden_weight.detach(), method.hidden_bias.detach()
    for q, k in product(range(4), range(3)):
        pair = torch.cat([x[label_is(k)].mean(0), query[q]])
        expected = method.score_weight @ torch.relu(weight @ pair + bias) + method.score_bias
        torch.testing.assert_close(method.scores(adapted, query)[q, k], expected)


def test_the_paper_s_relations_are_regressed_to_0_and_1():
    method = rule("relation-net", objective="squared-error")
    scores, y = random(2, 4, 3), torch.tensor([[0, 1, 2, 0], [1, 1, 0, 2]])
    loss, accuracy = method.loss(scores, y)
    assert loss == pytest.approx(F.mse_loss(torch.sigmoid(scores), F.one_hot(y).double()).item())
    assert accuracy == (scores.argmax(-1) == y).float().mean()
    assert config("relation-net", "paper").settings.objective == "squared-error"


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
    expected = -0.5 * torch.cdist(query, class_means(x, UNEQUAL, 3)).square()
    torch.testing.assert_close(method.scores(method.fit(x, support), query), expected)


def test_episodes_of_prototypical_networks_may_have_more_classes_than_tests():
    run = config("protonet", "paper")
    assert METHODS["protonet"].recipe("paper", Traits(), 1).settings.train_way == 30
    assert METHODS["protonet"].recipe("paper", Traits(), 5).settings.train_way == 20
    few = replace(run, settings=replace(run.settings, train_way=2))
    assert batch(few).support.n_way == 2
    assert batch(run).support.n_way == 3, "all classes that there are, at the most"


def test_episodes_of_prototypical_networks_lie_within_a_group_if_asked_to():
    run = config("protonet", within_group=True, train_way=2)
    grouped = replace(images(4), groups=("one", "one", "two", "two"))
    sampler: Any = METHODS["protonet"].sampler(grouped, run, "cpu")
    assert {tuple(sorted(sampler.classes(number))) for number in range(20)} == {(0, 1), (2, 3)}


def test_all_meta_trained_ones_start_and_train_alike():
    ours = config("matching-net")
    for name in ("protonet", "r2d2", "relation-net"):
        assert config(name).training == ours.training
        assert config(name).learner_settings == ours.learner_settings
