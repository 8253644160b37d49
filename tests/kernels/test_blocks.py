"""The learner's blocks against the same function in PyTorch: features, moments, first and second derivatives."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metalstm.kernels import blocks

from .comparing import block_inputs, gradients, plain_features, torch_threads

Inputs = tuple[Tensor, Tensor, Tensor]


def derivatives(shape: blocks.Shape, function: Callable[..., tuple[Tensor, Tensor]], inputs: Inputs) -> list[Tensor]:
    """Everything that `features` computes: with moments of the images, and with given ones, variable and constant."""
    theta, x, given_moments = inputs
    leaf, moments = theta.clone().requires_grad_(), given_moments.clone().requires_grad_()
    outputs = list(function(shape, leaf, x, None))
    first = gradients(outputs, [leaf], again=True)
    with_given = function(shape, leaf, x, moments)[0]
    with_constant = function(shape, leaf, x, given_moments)[0]
    by_constant = gradients([with_constant], [leaf], again=True)
    return [
        *outputs, *first, *gradients(first, [leaf]), with_given, *gradients([with_given], [leaf, moments]),
        with_constant, *by_constant, *gradients(by_constant, [leaf]),
    ]  # fmt: skip


def check_features(shape: blocks.Shape, inputs: Inputs) -> None:
    """Compare the kernels with plain PyTorch."""
    actual = derivatives(shape, blocks.features, inputs)
    expected = derivatives(shape, plain_features, inputs)
    for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert (one - other).abs().max() <= 1e-9 * other.abs().max(), number


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 3),
    channels=st.integers(1, 3),
    filters=st.sampled_from([16, 32, 48]),
    height=st.integers(16, 35),
    width=st.integers(16, 35),
    conv_bias=st.booleans(),
    n_blocks=st.integers(1, 4),
    n_pooled=st.integers(0, 4),
    threads=st.integers(1, 3),
)
def test_features(
    compiled_kernels: None,
    n: int,
    channels: int,
    filters: int,
    height: int,
    width: int,
    conv_bias: bool,
    n_blocks: int,
    n_pooled: int,
    threads: int,
):
    shape = blocks.Shape(n_blocks, n_pooled, channels, filters, conv_bias, 1e-3, torch.float64)
    with torch_threads(threads):
        check_features(shape, block_inputs(shape, n, height, width))


def test_moments_that_require_a_gradient_allow_one_derivative(compiled_kernels: None):
    shape = blocks.Shape(1, 1, 1, 16, False, 1e-3, torch.float64)
    theta, x, moments = block_inputs(shape, 2, 4, 4)
    leaf = theta.requires_grad_()
    features = blocks.features(shape, leaf, x, moments.requires_grad_())[0]
    (first,) = gradients([features], [leaf], again=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
