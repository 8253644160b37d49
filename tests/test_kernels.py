"""Compiled kernels against the same functions in PyTorch, in float64; golden values; machines without a compiler."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo.exc
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metalstm import kernels, learners
from metalstm.episodes import Episode, Query, Support
from metalstm.methods import build
from metalstm.optimizers import meta_lstm
from metalstm.recipes import RunConfig, named

GOLDEN = Path(__file__).with_name("golden.json")


@pytest.fixture(scope="session")
def compiled_kernels():
    if not kernels.build():
        pytest.skip("no C++ compiler is here")


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "library", lambda: None)


def close(actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-11) -> None:
    for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        scale = max(1.0, other.abs().max().item() if other.numel() else 0.0)
        assert (one - other).abs().max() <= tolerance * scale, number


def gradients(outputs: list[Tensor], inputs: list[Tensor], again: bool = False) -> list[Tensor]:
    """Of a random and not linear function of all outputs."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=outputs[0].dtype)
    for output in outputs:
        total = (
            total + (torch.randn(output.shape, dtype=output.dtype, generator=generator) * output * (1 + output)).sum()
        )
    return list(torch.autograd.grad(total, inputs, create_graph=again))


# The cell -------------------------------------------------------------------------------------------------------------


def cell_inputs(hidden: int, n: int, tasks: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(hidden + n)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    sizes = 10 ** (12 * torch.rand(*tasks, n, generator=generator, dtype=torch.float64) - 9)  # below and above e^-10
    inputs = [normal(4 * hidden, 4) / 2, normal(4 * hidden, hidden) / 2, normal(4 * hidden)]
    inputs += [normal(hidden + 2), normal(hidden + 2), normal(), normal()]
    inputs += [normal(*tasks, n) * sizes, normal(*tasks).abs()]
    inputs += [
        normal(*tasks, n),
        normal(*tasks, hidden, n),
        normal(*tasks, hidden, n),
        normal(*tasks, n),
        normal(*tasks, n),
    ]
    return [tensor.to(dtype).requires_grad_() for tensor in inputs]


@settings(max_examples=25, deadline=None)
@given(
    hidden=st.sampled_from([1, 2, 3, 8, 20]),
    n=st.sampled_from([1, 15, 16, 127, 128, 129, 400]),
    tasks=st.sampled_from([(), (1,), (3,), (2, 2)]),
    threads=st.integers(1, 3),
)
def test_cell(compiled_kernels: None, hidden: int, n: int, tasks: tuple[int, ...], threads: int):
    inputs = cell_inputs(hidden, n, tasks)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        actual = list(kernels.step(10.0, *inputs))
        actual += gradients(actual, inputs)
    finally:
        torch.set_num_threads(before)
    expected = list(meta_lstm._step(10.0, *inputs))
    expected += gradients(expected, inputs)
    close(actual, expected)


def test_cell_in_float32(compiled_kernels: None):
    inputs = cell_inputs(20, 5000, (2,), torch.float32)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    actual, expected = list(kernels.step(10.0, *inputs)), list(meta_lstm._step(10.0, *exact))
    close([tensor.double() for tensor in actual], expected, 2e-6)


def test_cell_saturated(compiled_kernels: None):
    """Gates far beyond where exp overflows or sigmoid is 1 to the last bit."""
    inputs = [tensor.detach() * 1000 for tensor in cell_inputs(3, 50, (2,), torch.float32)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    actual, expected = list(kernels.step(10.0, *inputs)), list(meta_lstm._step(10.0, *inputs))
    close(actual, expected, 1e-5)
    assert all(grad.isfinite().all() for grad in gradients(actual[1:3], inputs))


@pytest.mark.parametrize("where", [7, 9, 10, 11, 12, 13])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_cell_does_not_hide_what_diverged(compiled_kernels: None, where: int, bad: float):
    inputs = cell_inputs(3, 40, (), torch.float32)
    with torch.no_grad():
        inputs[where][..., 7] = bad
        theta = kernels.step(10.0, *inputs)[0]
        expected = meta_lstm._step(10.0, *inputs)[0]
    assert theta[torch.arange(40) != 7].isfinite().all()
    if not expected[7].isfinite():
        assert not theta[7].isfinite()


# The blocks -----------------------------------------------------------------------------------------------------------


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
def test_blocks(
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
    learner = learners.Conv4((channels, height, width), filters, conv_bias)
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

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        actual = derivatives()
    finally:
        torch.set_num_threads(before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "library", lambda: None)
        expected = derivatives()
    for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert (one - other).abs().max() <= 1e-9 * other.abs().max(), number


def block(x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """One block's kernel: y and the moments."""
    moments = torch.empty(2, len(gamma), dtype=gamma.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    return kernels.block_forward(x, gamma, beta, moments, 1e-3, given=False)[0], moments


def test_block_is_precise_far_from_zero(compiled_kernels: None):
    x = torch.randn(50, 16, 20, 20, generator=torch.Generator().manual_seed(0)) + 300
    gamma = torch.ones(16)
    y, moments = block(x, gamma, gamma * 0)
    exact, *exact_moments = learners._block(x.double(), gamma.double(), gamma.double() * 0, 1e-3, None)
    close([moments.double()], [torch.stack(exact_moments)], 1e-5)
    close([y.double()], [exact], 1e-4)


def test_block_keeps_nan(compiled_kernels: None):
    x = torch.zeros(2, 16, 4, 4)
    x[0, 3, 0, 0] = float("nan")
    y, _ = block(x, torch.ones(16), torch.ones(16))
    assert y[:, 3].isnan().all()
    assert y[:, [0, 1, 2, *range(4, 16)]].isfinite().all()


def test_zero_gamma_takes_the_first_pixel(compiled_kernels: None):
    x = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    _, kept = kernels.block_forward(x, torch.zeros(16), torch.ones(16), torch.empty(2, 16), 1e-3, given=False)
    assert not kept.chosen.any()


@pytest.mark.parametrize("order", [1, 2])
def test_blocks_in_bfloat16(compiled_kernels: None, order: int):
    """The same as in PyTorch within the rounding of bfloat16, of which a gradient gathers a lot."""
    learner = learners.Conv4((3, 32, 32), conv_bias=False, unit_gamma=True, bf16=True)
    generator = torch.Generator().manual_seed(0)
    theta, x = learner.init(5, generator).requires_grad_(), torch.rand(10, 3, 32, 32, generator=generator)

    def derivative() -> Tensor:
        features, moments = learner.features(theta, x)
        assert features.dtype == moments.dtype == torch.float32
        (grad,) = torch.autograd.grad(features.square().mean(), theta, create_graph=True)
        return grad if order == 1 else torch.autograd.grad(grad.square().sum(), theta)[0]

    actual = derivative()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "library", lambda: None)
        expected = derivative()
    assert torch.cosine_similarity(actual, expected, dim=0) > 0.95


# The whole method -----------------------------------------------------------------------------------------------------


# The recipe `best` is one for characters and another for photos.
RECIPES = {"paper": ("paper", "cifar-fs"), "best": ("best", "glyphs"), "best for photos": ("best", "cifar-fs")}


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
    chosen, training = named("meta-lstm", *RECIPES[recipe], 5)
    config = RunConfig(recipe=recipe, image_shape=(3, 16, 16), settings=replace(chosen, **changes), training=training)  # pyright: ignore[reportArgumentType]
    method = build(config).to(dtype)
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
    chosen, training = named("meta-lstm", *RECIPES[recipe], 5)
    config = RunConfig(recipe=recipe, image_shape=(3, 16, 16), settings=chosen, training=training)
    method = build(config).to("meta")
    x, y = torch.empty(3, 25, 3, 16, 16, device="meta"), torch.empty(3, 25, dtype=torch.long, device="meta")
    loss, _ = method(Episode(Support(x, y, 5), Query(x, y)))
    loss.backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    with torch.no_grad():
        assert method.logits(method.adapt(Support(x, y, 5)), x).shape == (3, 25, 5)


def test_tasks_together_equal_one_by_one(no_kernels: None):
    """What a GPU does, on the CPU."""
    learner = learners.Conv4((2, 17, 16), filters=3)
    generator = torch.Generator().manual_seed(0)
    theta = torch.stack([learner.init(5, generator) for _ in range(3)]).double().requires_grad_()
    x = torch.rand(3, 6, 2, 17, 16, generator=generator, dtype=torch.float64)
    one_by_one = learners._each_task(learner._features, theta, x)
    together = torch.vmap(learner._features)(theta, x)
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


# The build ------------------------------------------------------------------------------------------------------------

TRY = """
import logging, sys, torch
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from metalstm import kernels
print(kernels.library() is not None, kernels.build(), kernels.build())
"""


def try_build(cache: Path, **environment: str) -> str:
    env = os.environ | {"METALSTM_CACHE": str(cache)} | environment
    return subprocess.run([sys.executable, "-c", TRY], env=env, capture_output=True, text=True, check=True).stdout


def test_build_once(compiled_kernels: None, tmp_path: Path):
    first, second = try_build(tmp_path), try_build(tmp_path)
    assert first.splitlines() == ["compiling kernels for this machine; once, some seconds", "False True True"]
    assert second.splitlines() == ["True True True"]
    assert len(list((tmp_path / "kernels").iterdir())) == 1


def test_no_compiler(tmp_path: Path):
    told, result = try_build(tmp_path, PATH=str(tmp_path), CXX="").splitlines()
    assert told == "no C++ compiler (c++, g++, clang++) is here: training runs in plain PyTorch, which is slower"
    assert result == "False False False"


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script as a compiler")
def test_broken_compiler(tmp_path: Path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'no such header' >&2\nexit 1\n")
    compiler.chmod(0o755)
    output = try_build(tmp_path, CXX=str(compiler))
    assert f"which is slower; {compiler} cannot compile them: no such header" in output
    assert output.splitlines()[-1] == "False False False"
    assert not list((tmp_path / "kernels").iterdir())


def test_unwritable_cache(tmp_path: Path):
    (tmp_path / "kernels").write_text("in the way")
    output = try_build(tmp_path).splitlines()
    assert "training runs in plain PyTorch, which is slower; they cannot be kept in" in output[1]
    assert output[2:] == ["False False False"]


def test_damaged_build_is_made_anew(compiled_kernels: None, tmp_path: Path):
    try_build(tmp_path)
    (made,) = (tmp_path / "kernels").iterdir()
    made.write_bytes(b"no library")
    assert try_build(tmp_path).splitlines()[-1] == "False True True"


def test_what_kernels_cannot_do_is_left_to_pytorch(compiled_kernels: None):
    learner = learners.Conv4((1, 16, 16), filters=16)
    theta = learner.init(2, torch.Generator().manual_seed(0))
    x = torch.rand(4, 1, 16, 16, requires_grad=True)
    assert torch.autograd.grad(learner(theta, x)[0].sum(), x)[0].abs().sum() > 0
    x = x.detach()
    (grad,) = torch.autograd.grad(learner(theta.requires_grad_(), x)[0].square().sum(), theta)
    transformed = torch.func.grad(lambda t: learner(t, x)[0].square().sum())(theta.detach())
    close([transformed], [grad], 1e-3)
    half = learners.Conv4((1, 16, 16), filters=16, bf16=True)
    with torch.no_grad():
        close([half(theta.double(), x)[0].float()], [half(theta, x)[0]], 0.05)
    with pytest.raises(RuntimeError):  # of another type than the weights: PyTorch's own complaint
        meta_lstm.MetaLSTM(3).double().update(theta, theta, theta.sum(), meta_lstm.MetaLSTM(3).init(theta))


def test_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("METALSTM_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    kernels.library.cache_clear()
    try:
        with caplog.at_level(logging.INFO):
            assert not kernels.build()
            assert not kernels.build()
        assert len(caplog.records) == 1
    finally:
        kernels.library.cache_clear()


if __name__ == "__main__":  # writes the golden values; by hand, when a recipe changes
    kernels.library = lambda: None
    GOLDEN.write_text(json.dumps({recipe: measure(recipe) for recipe in RECIPES}, indent=1) + "\n")
