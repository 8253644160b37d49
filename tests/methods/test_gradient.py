"""The one inner loop, whole: against the slow reference, central differences and gradient descent, in float64."""

from dataclasses import fields, replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from metalstm.episodes import Episode, Query, Support
from metalstm.errors import UserError
from metalstm.learners import Conv4, Linear
from metalstm.methods import GradientMethod, InnerLoop, Network
from metalstm.methods.meta_lstm import MetaLearnerLSTM
from metalstm.optimizers import SGD, MetaLSTM
from reference import meta_lstm_autograd
from reference.conv4 import Conv4 as ReferenceConv4
from tiny import N_WAY, SHAPE, assert_near, busy, gradient_descent, random, task, weights_of


def make_episode(image_shape: tuple[int, ...], n_way: int, n_shot: int, n_query: int, tasks: tuple[int, ...] = ()):
    def draw(n: int, seed: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(n_way).repeat(n).expand(*tasks, -1)
        return (random(*tasks, n_way * n, *image_shape, seed=seed) + 0.5 * y[..., None, None, None]).sigmoid(), y

    return Episode(Support(*draw(n_shot, 70), n_way), Query(*draw(n_query, 71)))


def reference_episode(method: GradientMethod, support: Support, query: Query, filters: int, conv_bias: bool):
    """Query loss of one task, its gradient by the name of the method's parameters, theta_T and the inner losses."""
    n_way, loop = support.n_way, method.settings
    assert loop.batch_size is not None
    network = ReferenceConv4(method.learner.image_shape, n_way, filters, conv_bias, loop.norm_momentum)
    batches = list(zip(support.x.split(loop.batch_size), support.y.split(loop.batch_size), strict=True))
    losses = [lambda theta, x=x, y=y: F.cross_entropy(network.logits(theta, x), y) for x, y in batches * loop.epochs]
    divisors = [len(y) for _, y in batches * loop.epochs] if loop.divide_gradient else None
    assert isinstance(method.optimizer, MetaLSTM)
    weights, theta_0 = weights_of(method.optimizer), method.theta_0(n_way).detach().requires_grad_()
    theta, recorded = meta_lstm_autograd.adapt(weights, theta_0, losses, order=loop.order, divisors=divisors)
    match loop.train_query_norm:
        case "batch":
            logits = network.logits(theta, query.x)
        case "support":
            logits = network.fixed_logits(theta, query.x, network.moments(theta, support.x))
        case "running":
            logits = network.running_logits(theta, query.x)
    query_loss = F.cross_entropy(logits, query.y)
    *grads, grad_0 = torch.autograd.grad(query_loss, [*weights.values(), theta_0])
    body_0, head_0 = grad_0[: method.learner.n_body], grad_0[method.learner.n_body :].view(n_way, -1)
    if len(method.head_0) == 1:
        head_0 = head_0.sum(0, keepdim=True)
    expected = {f"optimizer.{name}": grad for name, grad in zip(weights, grads, strict=True)}
    return query_loss, expected | {"body_0": body_0, "head_0": head_0}, theta, [loss for _, loss in recorded]


def check_episode(method: GradientMethod, episode: Episode, filters: int, conv_bias: bool = True) -> None:
    """Loss, meta-gradient, and the inner loop's thetas and losses, task by task."""
    leaves = dict(method.named_parameters())
    query_loss, _ = method(episode)
    grads = dict(zip(leaves, torch.autograd.grad(query_loss, list(leaves.values())), strict=True))
    steps = list(method.trajectory(episode.support))
    indices = list(product(*map(range, episode.support.y.shape[:-1])))
    total, expected = 0.0, {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for index in indices:
        support = Support(episode.support.x[index], episode.support.y[index], episode.support.n_way)
        query = Query(episode.query.x[index], episode.query.y[index])
        loss, grad, theta, losses = reference_episode(method, support, query, filters, conv_bias)
        torch.testing.assert_close(steps[-1].theta[index], theta, rtol=0, atol=1e-10)
        torch.testing.assert_close(torch.stack([step.loss[index] for step in steps]), torch.stack(losses))
        total = total + loss / len(indices)
        expected = {name: value + grad[name] / len(indices) for name, value in expected.items()}
    torch.testing.assert_close(query_loss, total, rtol=0, atol=1e-10)
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        assert_near(grad, expected[name], 1e-8, name)


def make_method(
    image_shape: tuple[int, int, int] = (2, 16, 16),
    filters: int = 3,
    n_way: int = 3,
    *,
    conv_bias: bool = True,
    hidden_size: int = 4,
    **settings: Any,
) -> GradientMethod:
    learner = Conv4(image_shape, Conv4.Settings(filters=filters, conv_bias=conv_bias))
    optimizer = busy(MetaLSTM(MetaLSTM.Settings(hidden_size=hidden_size)))
    loop = InnerLoop(**{"epochs": 2, "batch_size": 4, **settings})
    return MetaLearnerLSTM(learner, optimizer, n_way, loop, torch.Generator().manual_seed(4)).double()


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("query_norm", ["batch", "support", "running"])
def test_episode_equals_reference(order, query_norm):
    method = make_method(order=order, train_query_norm=query_norm)
    check_episode(method, make_episode((2, 16, 16), 3, n_shot=2, n_query=3), filters=3)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    ("conv_bias", "options"),
    [
        (True, {"divide_gradient": True}),
        (False, {"shared_head": True}),
        (True, {"epochs": 4, "batch_size": 6, "norm_momentum": 0.9, "train_query_norm": "running"}),
    ],
)
def test_options_equal_reference(order, conv_bias, options):
    method = make_method(order=order, conv_bias=conv_bias, **options)
    check_episode(method, make_episode((2, 16, 16), 3, n_shot=2, n_query=2), 3, conv_bias)


@pytest.mark.parametrize("tasks", [(2,), (2, 1)])
def test_batch_of_episodes_equals_reference(tasks):
    method = make_method(order=2, train_query_norm="support")
    check_episode(method, make_episode((2, 16, 16), 3, n_shot=2, n_query=2, tasks=tasks), filters=3)


@pytest.mark.parametrize("order", [1, 2])
def test_full_size_equals_reference(order):
    """Omniglot's learner, hidden size 20."""
    method = make_method((1, 28, 28), 32, 5, hidden_size=20, order=order, epochs=2, batch_size=5)
    check_episode(method, make_episode((1, 28, 28), 5, n_shot=1, n_query=2), filters=32)


@pytest.mark.parametrize("query_norm", ["batch", "support"])
def test_episode_equals_central_differences(query_norm):
    """Along random directions; the learner has no convolution biases, whose gradients are rounding noise."""
    method = make_method(conv_bias=False, order=2, train_query_norm=query_norm)
    episode = make_episode((2, 16, 16), 3, n_shot=2, n_query=3)
    parameters = dict(method.named_parameters())
    grads = torch.autograd.grad(method(episode)[0], list(parameters.values()))
    for k, ((name, parameter), grad) in enumerate(zip(parameters.items(), grads, strict=True)):
        start = parameter.detach().clone()
        direction = F.normalize(random(parameter.numel(), seed=80 + k), dim=0).view(parameter.shape)
        # Five points, as the logarithms of small gradients bend strongly with theta_0.
        eps, slope = 1e-5 if name.startswith("optimizer") else 1e-6, 0.0
        for shift, factor in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            parameter.data = start + shift * eps * direction
            slope += factor * method(episode)[0].item() / (12 * eps)
        parameter.data = start
        assert (grad * direction).sum().item() == pytest.approx(slope, rel=1e-6), name


# Gradient descent as a special case


def test_zero_weights_train_conv4_by_gradient_descent():
    episode = make_episode((1, 28, 28), 5, n_shot=1, n_query=1)
    loop = InnerLoop(epochs=12, batch_size=5)
    by_sgd, by_meta_lstm = (
        MetaLearnerLSTM(Conv4((1, 28, 28)), rule, 5, loop, torch.Generator().manual_seed(4)).double()
        for rule in (SGD(0.1), gradient_descent(0.1))
    )
    with torch.no_grad():
        expected, actual = (list(method.trajectory(episode.support)) for method in (by_sgd, by_meta_lstm))
    assert len(expected) == 12
    for step, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(other.theta, step.theta, rtol=0, atol=1e-12)
        torch.testing.assert_close(other.loss, step.loss, rtol=0, atol=1e-12)
    assert expected[-1].loss < 0.5 * expected[0].loss


# Steps, moments, classes


def descent(**settings: Any) -> GradientMethod:
    learner = Conv4(SHAPE, Conv4.Settings(filters=4))
    loop = InnerLoop(**{"epochs": 2, "batch_size": 4, **settings})
    return MetaLearnerLSTM(learner, SGD(0.1), N_WAY, loop, torch.Generator().manual_seed(0)).double()


def test_the_trajectory_has_a_step_for_each_mini_batch():
    method = descent()  # 2 epochs; 6 support images in mini-batches of 4
    support = tiny.episode().support
    steps = list(method.trajectory(support))
    assert len(steps) == method.n_steps(support) == 4
    adapted = method.adapt(support)
    assert torch.equal(adapted["theta"], steps[-1].theta)
    assert torch.equal(adapted["moments"], steps[-1].moments)
    start = method.start(support)
    assert torch.equal(start.theta, method.theta_0(N_WAY).expand(2, -1))
    assert start.loss.isnan().all()
    assert torch.equal(method.finish(steps[-1], support)["theta"], adapted["theta"])


@pytest.mark.parametrize(("n_shot", "epochs"), [(1, 3), (4, 3), (5, 8), (6, 8)])
def test_below_five_shots_there_is_another_number_of_passes(n_shot, epochs):
    support = tiny.episode((), n_shot=n_shot).support
    assert descent(epochs=8, few_shot_epochs=3, batch_size=None).n_steps(support) == epochs
    assert descent(epochs=8, batch_size=None).n_steps(support) == 8
    assert len(list(descent(epochs=8, few_shot_epochs=3, batch_size=None).watch(support))) == epochs


def test_running_moments_are_those_of_torch():
    """One block of running averages against BatchNorm2d's own, the last updated before the last step."""
    method = descent()
    support = task(tiny.episode(), 0).support
    x, y = support.x[:4], support.y[:4]
    norm = torch.nn.BatchNorm2d(4, eps=1e-3, momentum=0.95).double()
    learner, theta = method.learner, method.theta_0(N_WAY)
    place, shape = learner.layout(N_WAY)["conv1.weight"]
    bias, _ = learner.layout(N_WAY)["conv1.bias"]
    norm(F.conv2d(x, theta[place].view(shape).permute(0, 3, 1, 2), theta[bias], padding=1))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    step = next(method.trajectory(Support(x, y, N_WAY)))
    torch.testing.assert_close(step.moments[:4], norm.running_mean)
    torch.testing.assert_close(step.moments[4:8], norm.running_var)


def test_kept_moments_do_not_move_and_normalize_everything():
    method, support = descent(keep_moments=True), tiny.episode(()).support
    moments = method.moments_0.copy_(random(method.moments_0.numel()).abs())
    theta = method.theta_0(N_WAY).detach()
    for step, x, y in zip(method.trajectory(support), support.x.split(4), support.y.split(4), strict=False):
        theta.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(method.learner(theta, x, moments)[0], y), theta)
        theta = theta.detach() - 0.1 * grad
        torch.testing.assert_close(step.theta, theta, rtol=1e-10, atol=1e-12)
        assert torch.equal(step.moments, moments)


def test_the_scale_of_queries_leaves_the_inner_loop_alone():
    plain, scaled = descent(), descent(query_scale=3.0)
    of = tiny.episode()
    adapted = plain.adapt(of.support)
    assert torch.equal(scaled.adapt(of.support)["theta"], adapted["theta"])
    torch.testing.assert_close(
        scaled.logits(adapted, of.query.x), 3 * plain.logits(adapted, of.query.x), rtol=1e-6, atol=0
    )


def test_with_another_number_of_classes_gradients_are_scaled():
    """As a mean loss over three times as many classes has a third of each class's images."""
    method = descent(shared_head=True, batch_size=None, epochs=1)
    support = tiny.episode((), n_way=2).support
    theta = method.theta_0(2).detach().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(method.learner(theta, support.x)[0], support.y), theta)
    torch.testing.assert_close(method.adapt(support)["theta"], theta.detach() - 0.1 * grad * 2 / N_WAY)


def test_a_shared_head_serves_any_number_of_classes():
    method = descent(shared_head=True)
    assert method.theta_0(7).shape[0] - method.theta_0(5).shape[0] == 2 * (method.learner.n_features + 1)
    method.check_way(17)
    assert method.head_0.shape[0] == 1
    rows = method.theta_0(3)[method.learner.n_body :].view(3, -1)
    assert torch.equal(rows, method.head_0.expand(3, -1))


def test_a_head_of_its_own_serves_one_number_of_classes():
    message = r"^this method was meta-trained for 3 classes and serves no other number: got 4$"
    for call in (descent().theta_0, descent().check_way):
        with pytest.raises(UserError, match=message):
            call(4)


def test_watching_does_not_switch_gradients_off_for_whoever_watches():
    for _ in descent().watch(tiny.episode().support):
        assert torch.is_grad_enabled()


def test_a_changed_copy_shares_the_parameters_and_leaves_the_method_as_it_was():
    method, of = descent(), tiny.episode()
    before = method.adapt(of.support)["theta"]
    other = method.with_inner_loop(SGD(0.01), epochs=1)
    assert other.body_0 is method.body_0
    assert other.moments_0 is method.moments_0
    assert len(list(other.trajectory(of.support))) == 2
    assert (method.settings.epochs, other.settings.epochs) == (2, 1)
    assert other.optimizer is not method.optimizer
    assert torch.equal(method.adapt(of.support)["theta"], before)
    assert not torch.equal(other.adapt(of.support)["theta"], before)
    same = method.with_inner_loop()
    assert torch.equal(same.adapt(of.support)["theta"], before)
    linear = Linear(SHAPE)
    assert method.with_inner_loop(learner=linear).learner is linear
    assert method.learner is not linear


def test_a_pre_trained_network_gets_a_head_of_zeros():
    method = descent()
    start = tiny.other_network(method.network())
    method.start_from(start)
    assert torch.equal(method.body_0, start.body)
    assert torch.equal(method.moments_0, start.moments)
    assert not method.head_0.any()
    with pytest.raises(UserError, match=r"^a network of 516 parameters cannot start from one of 3: pre-train with"):
        method.start_from(Network(torch.zeros(3), start.moments))


def test_the_inner_optimizer_and_the_scale_have_a_learning_rate_of_their_own():
    method = make_method(query_scale=2.0)
    groups = method.parameter_groups()
    own = {name for name, each in method.named_parameters() if any(each is one for one in groups["optimizer_lr"])}
    assert own == {f"optimizer.{name}" for name in method.optimizer.state_dict()} | {"log_scale"}
    assert {id(each) for each in groups["lr"]} == {id(method.body_0), id(method.head_0)}


@pytest.mark.parametrize("order", [1, 2])
def test_recomputed_steps_give_the_same_gradient(order):
    """Two ways of spending memory; the loss and every gradient agree to rounding."""
    of, results = tiny.episode(), []
    for recompute in (False, True):
        learner = Conv4(SHAPE, Conv4.Settings(filters=4))
        loop = InnerLoop(epochs=2, batch_size=4, order=order, recompute=recompute)
        optimizer = busy(MetaLSTM(MetaLSTM.Settings(hidden_size=3)))
        method = MetaLearnerLSTM(learner, optimizer, N_WAY, loop, torch.Generator().manual_seed(0)).double()
        loss, _ = method(of)
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in method.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_in_first_order_no_gradient_flows_through_the_inner_gradients():
    """The meta-gradient of theta_0 by SGD is then the gradient at the final theta."""
    method, of = descent(train_query_norm="batch"), tiny.episode(())
    method(of)[0].backward()
    theta = method.adapt(of.support)["theta"].requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(method.learner(theta, of.query.x)[0], of.query.y), theta)
    assert method.body_0.grad is not None
    assert method.head_0.grad is not None
    torch.testing.assert_close(torch.cat([method.body_0.grad, method.head_0.grad.flatten()]), grad)


def test_settings_are_those_of_the_paper_for_five_shots():
    loop = InnerLoop()
    assert (loop.epochs, loop.batch_size, loop.norm_momentum, loop.order) == (8, 25, 0.95, 1)
    assert (loop.query_norm, loop.train_query_norm) == ("running", "batch")
    assert {field.name for field in fields(replace(loop))} >= {
        "shared_head",
        "keep_moments",
        "query_scale",
        "recompute",
    }
