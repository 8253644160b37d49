"""Every path gives the same: compiled kernels, plain PyTorch, recomputation, tasks together; and the golden values."""

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo.exc
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.comparing import cell_inputs, close, gradients, torch_threads
from metalstm import kernels, recipes
from metalstm.episodes import Episode, Query, Support
from metalstm.learners import Conv4, each_task
from metalstm.methods import Method, RunConfig
from metalstm.optimizers import meta_lstm
from tiny import TRAITS

GOLDEN = Path(__file__).with_name("golden.json")


@pytest.fixture(scope="session")
def compiled_kernels():
    if not kernels.build():
        pytest.skip("no C++ compiler is here")


@pytest.fixture
def no_kernels() -> Iterator[None]:
    with kernels.disabled():
        yield


# The blocks.


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 3),
    channels=st.integers(1, 3),
    filters=st.sampled_from([16, 32, 48]),
    height=st.integers(16, 35),
    width=st.integers(16, 35),
    conv_bias=st.booleans(),
    threads=st.integers(1, 3),
)
def test_conv4(
    compiled_kernels: None,
    n: int,
    channels: int,
    filters: int,
    height: int,
    width: int,
    conv_bias: bool,
    threads: int,
):
    """Features, moments, and their first and second derivatives; and with given moments, variable and constant."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    learner = Conv4((channels, height, width), Conv4.Settings(filters=filters, conv_bias=conv_bias))
    theta = learner.init(2, generator).double()
    theta += torch.randn(theta.shape, generator=generator, dtype=torch.float64) / 10  # gamma of both signs
    x = torch.rand(n, channels, height, width, generator=generator, dtype=torch.float64)
    given_moments = torch.rand(learner.n_moments, generator=generator, dtype=torch.float64) + 0.1

    def derivatives() -> list[Tensor]:
        leaf, moments = theta.clone().requires_grad_(), given_moments.clone().requires_grad_()
        outputs = list(learner.features(leaf, x))
        first = gradients(outputs, [leaf], again=True)
        with_given = learner.features(leaf, x, moments)[0]
        with_constant = learner.features(leaf, x, given_moments)[0]
        by_constant = gradients([with_constant], [leaf], again=True)
        return [
            *outputs, *first, *gradients(first, [leaf]), with_given, *gradients([with_given], [leaf, moments]),
            with_constant, *by_constant, *gradients(by_constant, [leaf]),
        ]  # fmt: skip

    with torch_threads(threads):
        actual = derivatives()
    with kernels.disabled():
        expected = derivatives()
    for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert (one - other).abs().max() <= 1e-9 * other.abs().max(), number


@pytest.mark.parametrize("order", [1, 2])
def test_blocks_in_bfloat16(compiled_kernels: None, order: int):
    """The same as in PyTorch within the rounding of bfloat16, of which a gradient gathers a lot."""
    learner = Conv4((3, 32, 32), Conv4.Settings(conv_bias=False, unit_gamma=True, precision="bf16"))
    generator = torch.Generator().manual_seed(0)
    theta, x = learner.init(5, generator).requires_grad_(), torch.rand(10, 3, 32, 32, generator=generator)

    def derivative() -> Tensor:
        features, moments = learner.features(theta, x)
        assert features.dtype == moments.dtype == torch.float32
        (grad,) = torch.autograd.grad(features.square().mean(), theta, create_graph=True)
        return grad if order == 1 else torch.autograd.grad(grad.square().sum(), theta)[0]

    actual = derivative()
    with kernels.disabled():
        expected = derivative()
    assert torch.cosine_similarity(actual, expected, dim=0) > 0.95


# The whole method.


# The recipe `best` is one for the demo's characters and another for photos. The golden values of the latter were taken
# in training mode, where there were no mirror images.
RECIPES = {
    "paper": ("paper", "photos", {}),
    "best": ("best", "built in", {}),
    "all layers for photos": (
        "best",
        "photos",
        {
            "mirror": False,
            "moves": "all",
            "layer_rates": True,
            "body_factor": 1e-4,
            "filters": 32,
            "pooling": "max",
        },
    ),
    "best for photos": ("best", "photos", {"mirror": False}),
}


def build(recipe: str, **changes: object) -> Method:
    name, traits, own = RECIPES[recipe]
    chosen = recipes.named("meta-lstm", name, TRAITS[traits], 5)
    values = {field.name: getattr(chosen, field.name) for field in fields(chosen)}
    config = RunConfig(**values, recipe=name, traits=TRAITS[traits], image_shape=(3, 16, 16))
    return recipes.build(recipes.with_changes(config, own | changes))


def golden_episode() -> Episode:
    random = np.random.RandomState(0)
    patterns = random.rand(5, 3, 16, 16)

    def images(n: int) -> Tensor:
        return torch.from_numpy(np.repeat(patterns, n, 0) * 0.7 + 0.3 * random.rand(5 * n, 3, 16, 16))[None]

    order = random.permutation(25)
    support = Support(images(5)[:, order], torch.from_numpy(np.repeat(np.arange(5), 5)[order])[None], 5)
    return Episode(support, Query(images(15), torch.from_numpy(np.repeat(np.arange(5), 15))[None]))


def measure(recipe: str, dtype: torch.dtype = torch.float64, **changes: object) -> dict[str, list[float]]:
    """What a recipe makes of a fixed episode from fixed weights: loss, logits, and a few numbers of the gradient."""
    method = build(recipe, **changes).to(dtype)
    weights = np.random.RandomState(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.mul_(1 + 0.1 * torch.from_numpy(np.asarray(weights.randn(*parameter.shape))))
    episode = golden_episode()
    support, query = episode.support, episode.query
    support, query = replace(support, x=support.x.to(dtype)), replace(query, x=query.x.to(dtype))
    loss, _ = method(Episode(support, query))
    loss.backward()
    with torch.no_grad():
        logits = method.logits(method.adapt(support), query.x)
    norms = [parameter.grad.norm().item() for parameter in method.parameters() if parameter.grad is not None]
    return {"loss": [loss.item()], "logits": logits[0, ::25].flatten().tolist(), "gradient norms": norms}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("path", ["pytorch", "kernels", "recompute"])
def test_golden_values(recipe: str, path: str, request: pytest.FixtureRequest):
    """Every path gives what the project gave when these numbers were written, by plain PyTorch in float64."""
    request.getfixturevalue("no_kernels" if path == "pytorch" else "compiled_kernels")
    expected = json.loads(GOLDEN.read_text())[recipe]
    actual = measure(recipe, recompute=path == "recompute")
    for name, numbers in expected.items():
        assert actual[name] == pytest.approx(numbers, rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.01), ("bf16", 0.1)])
def test_golden_loss_in_lower_precision(compiled_kernels: None, recipe: str, precision: str, tolerance: float):
    expected = json.loads(GOLDEN.read_text())[recipe]
    actual = measure(recipe, torch.float32, precision=precision)
    assert actual["loss"] == pytest.approx(expected["loss"], rel=tolerance)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_waits_for_no_value(recipe: str):
    """On the meta device there are no values: whoever read one, or had a tensor elsewhere, would fail."""
    method = build(recipe).to("meta")
    x, y = torch.empty(3, 25, 3, 16, 16, device="meta"), torch.empty(3, 25, dtype=torch.long, device="meta")
    loss, _ = method(Episode(Support(x, y, 5), Query(x, y)))
    loss.backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    with torch.no_grad():
        assert method.logits(method.adapt(Support(x, y, 5)), x).shape == (3, 25, 5)


def test_tasks_together_equal_one_by_one(no_kernels: None):
    """What a GPU does, on the CPU."""
    learner = Conv4((2, 17, 16), Conv4.Settings(filters=3))
    generator = torch.Generator().manual_seed(0)
    theta = torch.stack([learner.init(5, generator) for _ in range(3)]).double().requires_grad_()
    x = torch.rand(3, 6, 2, 17, 16, generator=generator, dtype=torch.float64)
    features = partial(learner._features, True)
    one_by_one = each_task(features, theta, x)
    together = torch.vmap(features)(theta, x)
    close([*together, *gradients(list(together), [theta])], [*one_by_one, *gradients(list(one_by_one), [theta])], 1e-9)


@pytest.mark.slow
def test_step_compiled_by_torch(no_kernels: None):
    """What a GPU runs, compiled for the CPU."""
    inputs = cell_inputs(3, 50, (2,))
    try:
        actual = list(meta_lstm._compiled_step()(10.0, *inputs))
    except torch._dynamo.exc.BackendCompilerFailed as error:
        pytest.skip(f"torch.compile does not work here: {error}")
    expected = list(meta_lstm._step(10.0, *inputs))
    close([*actual, *gradients(actual, inputs)], [*expected, *gradients(expected, inputs)])


def test_what_kernels_cannot_do_is_left_to_pytorch(compiled_kernels: None):
    learner = Conv4((1, 16, 16), Conv4.Settings(filters=16))
    theta = learner.init(2, torch.Generator().manual_seed(0))
    x = torch.rand(4, 1, 16, 16, requires_grad=True)
    assert torch.autograd.grad(learner(theta, x)[0].sum(), x)[0].abs().sum() > 0
    x = x.detach()
    (grad,) = torch.autograd.grad(learner(theta.requires_grad_(), x)[0].square().sum(), theta)
    transformed = torch.func.grad(lambda t: learner(t, x)[0].square().sum())(theta.detach())
    close([transformed], [grad], 1e-3)
    half = Conv4((1, 16, 16), Conv4.Settings(filters=16, precision="bf16"))
    with torch.no_grad():
        close([half(theta.double(), x)[0].float()], [half(theta, x)[0]], 0.05)
    with pytest.raises(RuntimeError):  # of another type than the weights: PyTorch's own complaint
        meta_lstm.MetaLSTM().double().update(theta, theta, theta.sum(), meta_lstm.MetaLSTM().init(theta))


if __name__ == "__main__":  # writes the golden values; by hand, when a recipe changes
    with kernels.disabled():
        GOLDEN.write_text(json.dumps({recipe: measure(recipe) for recipe in RECIPES}, indent=1) + "\n")
