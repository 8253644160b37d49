"""Winograd's convolution against the definition: in float64, and its rounding in the types of training."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d
from torch.nn.grad import conv2d_input, conv2d_weight

from metalstm.kernels.convolution import convolution, convolution_backward

from .comparing import torch_threads


def inputs(n: int, channels: int, filters: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias and d_z in float64; x is positive, as behind a ReLU."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    shapes = [(n, channels, height, width), (filters, channels, 3, 3), (filters,), (n, filters, height, width)]
    x, weight, bias, d_z = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return x.relu(), weight / (9 * channels) ** 0.5, bias, d_z


def ours(x: Tensor, weight: Tensor, bias: Tensor, d_z: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """z, d_weight, d_bias and d_x of images in a type."""
    x, d_z = (images.to(dtype).contiguous(memory_format=torch.channels_last) for images in (x, d_z))
    numbers = torch.promote_types(dtype, torch.float32)
    weight, bias = weight.to(numbers), bias.to(numbers)
    d_weight, d_bias = torch.empty_like(weight), torch.empty_like(bias)
    d_x = convolution_backward(d_z, x, weight, True, d_weight, d_bias)
    return [convolution(x, weight, bias), d_weight, d_bias, d_x]


def exact(x: Tensor, weight: Tensor, bias: Tensor, d_z: Tensor) -> list[Tensor]:
    """The same by the definition."""
    d_weight, d_x = conv2d_weight(x, weight.shape, d_z, padding=1), conv2d_input(x.shape, weight, d_z, padding=1)
    return [conv2d(x, weight, bias, padding=1), d_weight, d_z.sum((0, 2, 3)), d_x]


def errors(actual: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Root mean square, as a share of that of what is expected."""
    return [((a - e).norm() / e.norm()).item() for a, e in zip(actual, expected, strict=True)]


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 7),
    channels=st.sampled_from([16, 32, 48, 80]),
    filters=st.sampled_from([16, 32, 48, 80]),
    height=st.integers(1, 11),
    width=st.integers(1, 11),
    threads=st.integers(1, 3),
)
def test_convolution(
    compiled_kernels: None, n: int, channels: int, filters: int, height: int, width: int, threads: int
):
    given = inputs(n, channels, filters, height, width)
    with torch_threads(threads):
        assert max(errors(ours(*given, torch.float64), exact(*given))) < 1e-14


def test_rounding_in_float32(compiled_kernels: None):
    x, weight, bias, d_z = (each.float().double() for each in inputs(64, 64, 64, 16, 16))
    given = x, weight, bias, d_z
    assert max(errors(ours(*given, torch.float32), exact(*given))) < 4e-6


@pytest.mark.parametrize("side", [4, 16])
def test_rounding_in_bfloat16_is_no_more_than_that_of_pytorch(compiled_kernels: None, side: int):
    x, weight, bias, d_z = inputs(16, 64, 64, side, side)
    x, d_z = x.bfloat16().double(), d_z.bfloat16().double()
    by_definition = exact(x, weight, bias, d_z)
    pytorchs = exact(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), d_z.bfloat16())
    for own, other in zip(
        errors(ours(x, weight, bias, d_z, torch.bfloat16), by_definition), errors(pytorchs, by_definition), strict=True
    ):
        assert own <= other
