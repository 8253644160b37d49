"""Methods that look at features alone: what the base class does for them, by a rule of a few lines."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalstm.episodes import Episode, Query, Support
from metalstm.errors import UserError
from metalstm.learners import Conv4
from metalstm.methods import Adapted, OnFeatures, Recipe
from metalstm.settings import Traits
from tiny import N_WAY, SHAPE, episode, other_network, random, task


class Means(OnFeatures):
    """Minus the squared distance to the mean of each class."""

    label = "Means"

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        return Recipe()

    def fit(self, features: Tensor, support: Support) -> Adapted:
        members = F.one_hot(support.y, support.n_way).to(features)
        return {"means": members.mT @ features / members.sum(-2).unsqueeze(-1)}

    def scores(self, adapted: Adapted, features: Tensor) -> Tensor:
        return -(features.unsqueeze(-2) - adapted["means"].unsqueeze(-3)).square().sum(-1)


def make(**settings) -> Means:
    learner = Conv4(SHAPE, Conv4.Settings(filters=4, **settings))
    return Means(learner, generator=torch.Generator().manual_seed(0)).double()


def test_meta_training_normalizes_an_episode_by_itself_and_keeps_running_moments():
    method, of = make(), episode(())
    before = method.moments.clone()
    loss, accuracy = method(of)
    x = torch.cat([of.support.x, of.query.x])
    features, moments = method.learner.features(method.body, x)
    expected = 0.9 * before + 0.1 * method.learner.unbiased(moments, len(x))
    torch.testing.assert_close(method.moments, expected.detach())
    n = len(of.support.y)
    logits = method.scores(method.fit(features[:n], of.support), features[n:])
    torch.testing.assert_close(loss, F.cross_entropy(logits, of.query.y))
    assert accuracy == (logits.argmax(-1) == of.query.y).float().mean()
    # Used with these very moments, the method gives the same logits.
    method.moments.copy_(moments.detach())
    with torch.no_grad():
        used = method.logits(method.adapt(of.support), of.query.x)
    torch.testing.assert_close(used, logits.detach())


def test_running_moments_of_a_batch_are_the_mean_of_its_tasks():
    together, both = make(), episode((2,))
    together(both)
    alone = make()
    start = alone.moments.clone()
    moved = []
    for index in range(2):
        alone.moments.copy_(start)
        alone(task(both, index))
        moved.append(alone.moments.clone())
    torch.testing.assert_close(together.moments, torch.stack(moved).mean(0))


def test_adapting_normalizes_by_the_running_moments_which_stay():
    method, of = make(), episode(())
    for seed in range(5):
        method(episode((2,), seed=seed))
    before = method.moments.clone()
    with torch.no_grad():
        adapted = method.adapt(of.support)
        logits = method.logits(adapted, of.query.x)
        features = [method.learner.features(method.body, x, method.moments)[0] for x in (of.support.x, of.query.x)]
    means = torch.stack([features[0][of.support.y == label].mean(0) for label in range(N_WAY)])
    torch.testing.assert_close(adapted["means"], means)
    torch.testing.assert_close(logits, -torch.cdist(features[1], means).square(), rtol=1e-9, atol=1e-9)
    assert torch.equal(method.moments, before)


def test_a_mirror_image_counts_once_trained_and_not_in_meta_training():
    mirror, plain, of = make(mirror=True), make(), episode(())
    assert torch.equal(mirror(of)[0], plain(of)[0])
    assert torch.equal(mirror.moments, plain.moments)
    with torch.no_grad():
        embedded = mirror.embed(of.query.x)
        both = [plain.embed(x) for x in (of.query.x, of.query.x.flip(-1))]
    torch.testing.assert_close(embedded, (both[0] + both[1]) / 2)


def test_a_network_is_taken_over_and_given_back():
    method = make()
    start = other_network(method.network())
    method.start_from(start)
    assert torch.equal(method.body, start.body)
    assert torch.equal(method.moments, start.moments)
    assert not method.network().body.requires_grad
    with pytest.raises(UserError, match=r"^a network of 516 parameters cannot start from one of 480: pre-train with"):
        method.start_from(make(conv_bias=False).network()._replace(body=random(480)))


def test_the_gradient_is_that_of_central_differences():
    method, of = make(), Episode(episode(()).support, Query(episode(()).query.x, episode(()).query.y))
    method(of)[0].backward()
    assert method.body.grad is not None
    start, direction = method.body.detach().clone(), F.normalize(random(method.body.numel()), dim=0)
    losses = []
    for shift in (1e-6, -1e-6):
        method.body.data = start + shift * direction
        losses.append(method(of)[0].item())
    assert (method.body.grad @ direction).item() == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-6)
