"""MAML and its relatives: what their papers say of them, held against each other and against differences."""

import pytest
import torch

from metalstm import recipes
from metalstm.methods import GradientMethod
from tests.tiny import batch, build, config, episode


def method_of(name: str, **changes: object) -> GradientMethod:
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
    """ALFA's network starts so that it changes nothing."""
    changes = {"shared_head": False, "keep_moments": False}
    maml = recipes.build(config("maml", rate=0.07, **changes)).double()
    other = recipes.build(config(name, start_rate=0.07, **changes)).double()
    own = {key: value for key, value in other.state_dict().items() if key.startswith("optimizer.")}
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


def test_the_inner_loop_of_anil_moves_the_head_alone():
    method = method_of("anil", query_norm="running")
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    adapted = method.adapt(episode().support)
    assert adapted["theta"].shape[-1] == method.head_0.numel()
    assert all(torch.equal(before[name], tensor) for name, tensor in method.state_dict().items())
    assert gradients(method)["learner.body"].abs().max() > 0, "the outer loop trains the body"


def test_the_inner_loop_of_boil_leaves_the_head_alone():
    method = method_of("boil")
    theta, start = method.adapt(episode().support)["theta"], method.theta_0(3)
    n_body = method.learner.n_body
    assert torch.equal(theta[..., n_body:], start[n_body:].expand(2, -1))
    assert not torch.allclose(theta[..., :n_body], start[:n_body].expand(2, -1))


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
