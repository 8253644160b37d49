"""A learner whose body stays as it is: equal to the whole learner's head, and each image is embedded once."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metalstm.learners import Conv4, HeadOnly
from metalstm.methods import GradientMethod, InnerLoop
from metalstm.methods.meta_lstm import MetaLearnerLSTM
from metalstm.optimizers import SGD
from tiny import N_QUERY, N_SHOT, N_WAY, SHAPE, episode, random


class Counted(Conv4):
    """Counts the images that it embeds, and the passes."""

    def __init__(self, **settings: Any):
        super().__init__(SHAPE, Conv4.Settings(filters=4, **settings))
        self.n_images = self.n_passes = 0

    def features(self, theta: Tensor, x: Tensor, moments: Tensor | None = None, train: bool = False):
        self.n_images += x.shape[:-3].numel()
        self.n_passes += 1
        return super().features(theta, x, moments, train)


def head_only(frozen: bool = True, **settings: Any) -> HeadOnly:
    learner = Counted(**settings)
    moments = learner.initial_moments() + 0.1 * torch.rand(
        learner.n_moments, generator=torch.Generator().manual_seed(1)
    )
    return HeadOnly(learner, learner.init_body(torch.Generator().manual_seed(0)), moments, frozen)


def method(learner: HeadOnly, **settings: Any) -> GradientMethod:
    loop = replace(InnerLoop(epochs=3, batch_size=4), **settings)
    return MetaLearnerLSTM(learner, SGD(0.1), N_WAY, loop, torch.Generator().manual_seed(0)).double()


def test_its_logits_are_those_of_the_whole_network():
    learner = head_only().double()
    head, x = random(N_WAY * (learner.n_features + 1)), random(6, *SHAPE, seed=1).sigmoid()
    whole = torch.cat([learner.body, head])
    expected = learner.learner(whole, x, learner.moments)[0]
    torch.testing.assert_close(learner(head, learner.fixed(x))[0], expected, rtol=1e-12, atol=1e-12)
    assert learner.n_body == learner.n_moments == 0
    assert learner.own_network() is not None
    assert all(map(torch.equal, learner.own_network() or (), (learner.body, learner.moments)))


def test_the_inner_loop_takes_the_steps_that_the_head_of_the_whole_network_would():
    """SGD on the head alone by the gradient of the whole network, whose body's gradient is thrown away."""
    learner = head_only()
    of, start = episode(()), method(learner)
    body, theta = learner.body.detach(), start.theta_0(N_WAY).detach()
    for x, y in list(zip(of.support.x.split(4), of.support.y.split(4), strict=True)) * 3:
        theta = theta.clone().requires_grad_()
        logits, _ = learner.learner(torch.cat([body, theta]), x, learner.moments)
        (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, y), theta)
        theta = theta.detach() - 0.1 * grad
    torch.testing.assert_close(start.adapt(of.support)["theta"], theta, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("query_norm", ["running", "support", "batch"])
@pytest.mark.parametrize("tasks", [(), (2,)])
def test_each_image_is_embedded_once_per_episode(query_norm, tasks):
    learner = head_only()
    frozen, of = method(learner, query_norm=query_norm, train_query_norm=query_norm), episode(tasks)
    n_support, n_query = of.support.y.numel(), of.query.y.numel()
    assert n_support == N_WAY * N_SHOT * len(torch.zeros(tasks).flatten())
    assert n_query == N_WAY * N_QUERY * len(torch.zeros(tasks).flatten())

    def embedded() -> tuple[int, int]:
        counted: Any = learner.learner
        seen = counted.n_images, counted.n_passes
        counted.n_images = counted.n_passes = 0
        return seen

    embedded()
    adapted = frozen.adapt(of.support)
    assert embedded() == (n_support, 1)
    frozen.logits(adapted, of.query.x)
    assert embedded() == (n_query, 1)
    frozen(of)
    assert embedded() == (n_support + n_query, 2)
    list(frozen.watch(of.support))
    assert embedded() == (n_support, 1)
    frozen.gates(of.support)
    assert embedded() == (n_support, 1)


def test_a_frozen_body_keeps_no_graph_and_is_not_trained():
    learner = head_only()
    frozen = method(learner)
    assert not learner.fixed(random(4, *SHAPE)).requires_grad
    frozen(episode())[0].backward()
    assert learner.body.grad is None
    assert all(parameter is not learner.body for group in frozen.parameter_groups().values() for parameter in group)


@pytest.mark.parametrize("mode", [True, False])
def test_a_frozen_network_is_in_evaluation_mode_whatever_the_method_is_in(mode):
    """No dropout, and once trained the mirror image: in `adapt` and in `logits`."""
    learner = head_only(dropout=0.5, mirror=True)
    frozen, plain = method(learner).train(mode), method(head_only(mirror=True))
    of = episode()
    adapted = frozen.adapt(of.support)
    assert torch.equal(adapted["theta"], plain.adapt(of.support)["theta"])
    assert torch.equal(frozen.logits(adapted, of.query.x), plain.logits(adapted, of.query.x))


def test_a_body_that_the_outer_loop_trains_gets_its_gradient():
    """Through the features of queries, and in second order through the inner loop: as central differences say."""
    learner = head_only(frozen=False)
    trained, of = method(learner, order=2, epochs=1), episode()
    trained(of)[0].backward()
    grad = learner.body.grad
    assert grad is not None
    assert any(parameter is learner.body for parameter in trained.parameter_groups()["lr"])
    start, direction = learner.body.detach().clone(), torch.nn.functional.normalize(random(learner.body.numel()), dim=0)
    losses = []
    for shift in (1e-6, -1e-6):
        learner.body.data = start + shift * direction
        losses.append(trained(of)[0].item())
    assert (grad @ direction).item() == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-5)


def test_a_head_starts_from_a_pre_trained_network():
    learner = head_only()
    start = method(learner)
    network = start.network()
    assert torch.equal(network.body, learner.body)
    assert torch.equal(network.moments, learner.moments)
