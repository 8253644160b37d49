"""MAML and its relatives: what their papers say of them, held against each other and against differences."""

from typing import Any

import pytest
import torch

from metalstm import recipes
from metalstm.methods import GradientMethod
from tiny import batch, build, config, episode


def method_of(name: str, **changes: Any) -> GradientMethod:
    """With all classes' heads their own, so that nothing about theta_0 is symmetric."""
    changes = {"shared_head": False, "keep_moments": False, "query_norm": "support", "mirror": False, **changes}
    changes["start_rate" if name in ("meta-sgd", "lslr", "alfa") else "rate"] = 0.01
    method = build(config(name, train_query_norm=changes["query_norm"], **changes))
    assert isinstance(method, GradientMethod)
    return method


def gradients(method: GradientMethod) -> dict[str, torch.Tensor]:
    method.zero_grad()
    method(episode())[0].backward()
    return {name: weight.grad.clone() for name, weight in method.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", ["maml", "anil", "boil", "meta-sgd", "lslr", "alfa"])
def test_the_meta_gradient_equals_central_differences(name):
    method = method_of(name)
    analytic = gradients(method)
    for key, weight in method.named_parameters():
        direction = torch.randn(weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(1))
        start, losses = weight.detach().clone(), []
        for sign in (1, -1):
            with torch.no_grad():
                weight.copy_(start + sign * 1e-7 * direction)
                losses.append(method(episode())[0].item())
        with torch.no_grad():
            weight.copy_(start)
        numeric = (losses[0] - losses[1]) / 2e-7
        assert numeric == pytest.approx((analytic[key] * direction).sum().item(), rel=1e-4, abs=1e-5), key


def test_first_order_leaves_second_derivatives_out():
    second, first = gradients(method_of("maml")), gradients(method_of("fomaml"))
    assert second.keys() == first.keys()
    assert not torch.allclose(second["body_0"], first["body_0"], rtol=1e-3)


@pytest.mark.parametrize("name", ["meta-sgd", "lslr", "alfa"])
def test_learned_rates_that_are_all_one_number_are_maml(name):
    """ALFA's with a network that changes nothing."""
    changes: dict[str, Any] = {"shared_head": False, "keep_moments": False}
    maml = recipes.build(config("maml", rate=0.07, **changes)).double()
    other = recipes.build(config(name, start_rate=0.07, **changes)).double()
    own = {key: value for key, value in other.state_dict().items() if key.startswith("optimizer.")}
    if name == "alfa":
        own["optimizer.output_weight"].zero_()
    other.load_state_dict(maml.state_dict() | own)
    one, two = (method.logits(method.adapt(episode().support), episode().query.x) for method in (maml, other))
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)  # 0.07 is rounded to float32 in a table


def test_alfa_without_its_network_is_a_table_of_rates():
    alfa, table = method_of("alfa"), method_of("lslr")
    state = {key: value for key, value in alfa.state_dict().items() if key in table.state_dict()}
    table.load_state_dict(state)
    with torch.no_grad():
        alfa.optimizer.get_parameter("output_weight").zero_()
        alfa.optimizer.get_parameter("output_bias").zero_()
        alfa.optimizer.get_parameter("keeps").fill_(1)
    one, two = (method.adapt(episode().support)["theta"] for method in (alfa, table))
    torch.testing.assert_close(one, two)


def test_the_gradient_of_reptile_is_the_way_from_theta_0():
    method = method_of("reptile")
    expected = (method.theta_0(3) - method.adapt(episode().support)["theta"]).mean(0)
    grads = gradients(method)
    torch.testing.assert_close(torch.cat([grads["body_0"], grads["head_0"].flatten()]), expected)


def test_reptile_reports_the_query_loss():
    reptile, maml = method_of("reptile"), method_of("fomaml", query_scale=None)
    maml.load_state_dict(reptile.state_dict())
    for one, other in zip(reptile(episode()), maml(episode()), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("optimizer", ["sgd", "meta-lstm", "alfa"])
@pytest.mark.parametrize("moves", ["head", "body"])
def test_the_inner_loop_leaves_the_rest_as_it_was(moves, optimizer):
    """Even where the rule shrinks what has no gradient."""
    method = build(config("maml", optimizer=optimizer, moves=moves, shared_head=False, keep_moments=False))
    assert isinstance(method, GradientMethod)
    theta, start = method.adapt(episode().support)["theta"], method.theta_0(3).expand(2, -1)
    n_body = method.learner.n_body
    parts = {"body": (theta[..., :n_body], start[..., :n_body]), "head": (theta[..., n_body:], start[..., n_body:])}
    for part, (after, before) in parts.items():
        assert torch.equal(after, before) == (part != moves)


def test_anil_embeds_each_image_once_or_at_each_step():
    """Once if the moments that normalize are those of the pre-training; both give the same where these are."""
    once, each = (
        config("anil", keep_moments=True, query_norm="running", query_scale=None, moves=m) for m in ("head", "all")
    )
    fast, slow = build(once), build(each)
    assert isinstance(fast, GradientMethod)
    assert isinstance(slow, GradientMethod)
    slow = slow.with_inner_loop(moves="head")
    body, moments = fast.learner.get_parameter("body"), fast.learner.get_buffer("moments")
    slow.load_state_dict({"body_0": body, "moments_0": moments, "head_0": fast.head_0})
    of = episode()
    adapted, whole = fast.adapt(of.support), slow.adapt(of.support)
    assert adapted["theta"].shape[-1] == 3 * fast.head_0.numel()
    torch.testing.assert_close(slow.logits(whole, of.query.x), fast.logits(adapted, of.query.x))
    fast(of)[0].backward()
    slow(of)[0].backward()
    assert body.grad is not None
    assert body.grad.any(), "the outer loop trains the body"
    torch.testing.assert_close(slow.body_0.grad, body.grad)


@pytest.mark.parametrize("name", ["boil", "reptile"])
def test_the_body_learns_from_a_pre_trained_network_on(name):
    """By more than rounding: heads that are all alike, or 0, would pass no gradient."""
    method = build(config(name))
    assert isinstance(method, GradientMethod)
    method.start_from(method.network())
    grads = gradients(method)
    assert grads["body_0"].abs().max() > 1e-6
    assert grads["head_0"].abs().max() > 1e-6


def test_the_paper_s_maml_is_transductive_and_says_so():
    assert config("maml", "paper").settings.query_norm == "batch"
    assert config("maml", "best").settings.query_norm != "batch"


def test_all_start_as_the_meta_lstm_does():
    """For a comparison on equal terms."""
    ours = config("meta-lstm", filters=4)
    for name in ("maml", "anil", "boil", "reptile", "meta-sgd", "lslr", "alfa"):
        other = config(name)
        assert other.training == ours.training
        assert other.learner_settings == ours.learner_settings
    assert batch(ours).support.x.shape == batch(config("maml")).support.x.shape
