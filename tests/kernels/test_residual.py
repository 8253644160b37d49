"""The residual network by kernels against itself in PyTorch: features, moments, first and second derivatives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metalstm import kernels
from metalstm.kernels import residual
from metalstm.learners import ResNet12

from .comparing import gradients, torch_threads


def inputs(learner: ResNet12, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random theta with gamma of both signs, images, and moments."""
    generator = torch.Generator().manual_seed(n)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    theta = learner.init_body(generator).double()
    moments = normal(learner.n_moments).abs() + 0.1
    return (
        theta + 0.5 * normal(len(theta)) * (theta.abs() == 1) + 0.1 * normal(len(theta)),
        normal(n, *learner.image_shape).sigmoid(),
        moments,
    )


def derivatives(learner: ResNet12, n: int, second: bool) -> list[Tensor]:
    """Everything that it computes: with moments of the images, and with given ones, variable and constant."""
    theta, x, given_moments = inputs(learner, n)
    leaf, moments = theta.requires_grad_(), given_moments.clone().requires_grad_()
    outputs = list(learner.features(leaf, x))
    with_given = learner.features(leaf, x, moments)[0]
    with_constant = learner.features(leaf, x, given_moments)[0]
    found = [*outputs, with_given, with_constant, *gradients([with_given], [leaf, moments])]
    for each in (outputs, [with_constant]):
        found += gradients(each, [leaf])
        if second:
            first = gradients(list(learner.features(leaf, x, None if each is outputs else moments)), [leaf], again=True)
            found += [*first, *gradients(first, [leaf])]
    return found


def check_network(channels: int, height: int, width: int, n: int = 2, second: bool = True) -> None:
    """Compare the kernels with plain PyTorch."""
    learner = ResNet12((channels, height, width), ResNet12.Settings(filters=16))
    actual = derivatives(learner, n, second)
    with kernels.disabled():
        expected = derivatives(learner, n, second)
    for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert (one - other).abs().max() <= 1e-9 * other.abs().max(), number


@settings(max_examples=4, deadline=None)
@given(
    channels=st.integers(1, 3),
    height=st.integers(16, 21),
    width=st.integers(16, 21),
    n=st.integers(2, 3),
    threads=st.integers(1, 3),
)
def test_network(compiled_kernels: None, channels: int, height: int, width: int, n: int, threads: int):
    with torch_threads(threads):
        check_network(channels, height, width, n)


def test_images_in_bfloat16_are_rounded_and_nothing_else(compiled_kernels: None):
    learner = ResNet12((3, 16, 16), ResNet12.Settings(filters=16, precision="bf16"))
    theta, x, _ = (each.float() for each in inputs(learner, 8))
    features, moments = learner.features(theta, x)
    with kernels.disabled():
        learner.bf16 = False
        exact, exact_moments = learner.features(theta, x)
    assert (features - exact).norm() < 0.03 * exact.norm()
    assert (moments - exact_moments).norm() < 0.01 * exact_moments.norm()


@pytest.mark.parametrize(("filters", "takes"), [(16, True), (24, False)])
def test_what_the_kernels_take(compiled_kernels: None, filters: int, takes: bool):
    learner = ResNet12((3, 16, 16), ResNet12.Settings(filters=filters))
    shape = learner._shape(torch.float32)
    assert residual.can_add(shape, torch.zeros(3), []) is takes
    assert not residual.can_add(shape, torch.zeros(3).double(), [])
