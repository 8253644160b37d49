"""The learner's convolutional blocks on a CPU, differentiated twice by hand.

The learners compute the same in PyTorch. Here a pass over all blocks is one node of the graph. It consists of
convolutions and compiled kernels only; second derivatives take six convolutions per block. DERIVATION.md, section "All
blocks", derives them; numbers in parentheses, such as (50), are its equations. Names as in `norm_pool.py`.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from metalstm.kernels.calls import LANES
from metalstm.kernels.convolution import convolution, convolution_backward
from metalstm.kernels.norm_pool import (
    Block,
    block_backward,
    block_double_backward,
    block_forward,
    first_backward,
    first_forward,
)


class Shape(NamedTuple):
    """The parts of theta, block by block: a convolution (filters, 3, 3, in), its bias if it has one, gamma, beta."""

    n_blocks: int
    n_pooled: int  # the first blocks, which have a max-pool
    channels: int  # of the images
    filters: int
    conv_bias: bool
    eps: float
    dtype: torch.dtype  # in which images are stored and convolved

    def parts(self, theta: Tensor) -> list[tuple[Tensor, Tensor | None, Tensor, Tensor]]:
        """Views of weight (filters, in, 3, 3), bias, gamma and beta of each block."""
        n, sizes = self.filters, []
        for block in range(self.n_blocks):
            sizes += [9 * n * (n if block else self.channels), *[n] * (2 + self.conv_bias)]
        # One split is one backward node; a slice for each parameter would each fill a vector with zeros.
        flat, each = theta.split(sizes), []
        for start in range(0, len(flat), 3 + self.conv_bias):
            weight, *bias, gamma, beta = flat[start : start + 3 + self.conv_bias]
            each.append((weight.view(n, 3, 3, -1).permute(0, 3, 1, 2), bias[0] if bias else None, gamma, beta))
        return each

    def pool(self, block: int) -> int:
        """The side of the windows of a block's max-pool, or 1."""
        return 2 if block < self.n_pooled else 1


def features(
    shape: Shape,
    theta: Float[Tensor, " n_body"],
    x: Float[Tensor, "n channels height width"],
    moments: Float[Tensor, " n_moments"] | None,
) -> tuple[Float[Tensor, "n filters small_height small_width"], Float[Tensor, " n_moments"]]:
    """The output of the last block.

    Differentiable twice in theta; once if `moments` are given and require a gradient. Not differentiable in x.

    Args:
        shape: The parts of theta.
        theta: Parameters of all blocks.
        x: Images.
        moments: Per block the mean and the biased variance of each channel; None for those of the images.

    Returns:
        The features, and the moments that normalized the images.
    """
    theta, x = theta.contiguous(), x.to(shape.dtype, memory_format=torch.channels_last)
    if moments is None:
        return _Features.apply(theta, x, None, shape)  # pyright: ignore[reportReturnType]
    if moments.requires_grad:
        return _GivenFeatures.apply(theta, moments.contiguous(), x, shape), moments  # pyright: ignore[reportReturnType]
    return _Features.apply(theta, x, moments.contiguous(), shape)[0], moments  # pyright: ignore[reportOptionalSubscript]


class _Features(Function):
    """y and the moments of the images; moments that are given are constants, and the second output is empty."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, x: Tensor, given: Tensor | None, shape: Shape) -> tuple[Tensor, Tensor]:
        moments = theta.new_empty(shape.n_blocks * 2 * shape.filters) if given is None else given
        y, saved = _forward(shape, theta, x, moments, given is not None)
        ctx.shape, ctx.given = shape, given is not None
        ctx.save_for_backward(theta, *saved)
        return y, moments if given is None else theta.new_empty(0)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor, d_moments: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        d_theta = _FeaturesBackward.apply(d_y, d_moments, *ctx.saved_tensors, ctx.shape, ctx.given)
        return d_theta, None, None, None  # pyright: ignore[reportReturnType]


class _FeaturesBackward(Function):
    """d_theta as a function of d_y, d_moments and theta. What the forward pass saved follows from theta."""

    @staticmethod
    def forward(ctx: Any, d_y: Tensor, d_moments: Tensor, theta: Tensor, *rest: Any) -> Tensor:
        *saved, shape, given = rest
        # If moments are given, their gradient is written here and discarded. Otherwise it is an input.
        d_moments = theta.new_empty(shape.n_blocks * 2 * shape.filters) if given else d_moments.contiguous()
        d_theta, gradients = _backward(shape, theta, saved, d_y, d_moments, given)
        ctx.shape, ctx.given = shape, given
        ctx.save_for_backward(d_moments, theta, *saved, *gradients)
        return d_theta

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_theta: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        n = _SAVED * ctx.shape.n_blocks
        d_moments, theta, *rest = ctx.saved_tensors
        v_y, v_moments, g_theta = _double_backward(
            ctx.shape, theta, rest[:n], rest[n:], d_moments, v_theta.contiguous(), ctx.given
        )
        return v_y, None if ctx.given else v_moments, g_theta, *[None] * (n + 2)


class _GivenFeatures(Function):
    """y, differentiable once in theta and in the given moments."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, moments: Tensor, x: Tensor, shape: Shape) -> Tensor:
        y, saved = _forward(shape, theta, x, moments, given=True)
        ctx.shape = shape
        ctx.save_for_backward(theta, *saved)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        shape, (theta, *saved) = ctx.shape, ctx.saved_tensors
        d_moments = theta.new_empty(shape.n_blocks * 2 * shape.filters)
        d_theta, _ = _backward(shape, theta, saved, d_y, d_moments, given=True)
        return d_theta, d_moments, None, None


# Passes over all blocks. A block convolves x to z, and makes y from z; y is the x of the next block.


def _forward(
    shape: Shape, theta: Tensor, x: Tensor, moments: Tensor, given: bool
) -> tuple[Tensor, list[Tensor | None]]:
    """The last y, and for each block x and the tensors of `Block` but gamma: six."""
    saved: list[Tensor | None] = []
    pairs = moments.view(shape.n_blocks, 2, -1)
    for k, (weight, bias, gamma, beta) in enumerate(shape.parts(theta)):
        if _is_fused(shape, k):
            y, block = first_forward(x, weight, bias, gamma, beta, pairs[k], shape.eps, given)
        else:
            z = convolution(x, weight, bias)
            y, block = block_forward(z, gamma, beta, pairs[k], shape.eps, given, shape.pool(k))
        saved += [x, block.z, block.mean, block.rstd, block.pooled, block.chosen]
        x = y
    return x, saved


_SAVED = 6  # tensors per block


def _backward(
    shape: Shape, theta: Tensor, saved: list[Any], d_y: Tensor, d_moments: Tensor, given: bool
) -> tuple[Tensor, list[Tensor | None]]:
    """d_theta, and for each block d_y and d_z, which a fused block does not keep."""
    d_theta = torch.empty_like(theta)
    parts, d_parts, pairs = shape.parts(theta), shape.parts(d_theta), d_moments.view(shape.n_blocks, 2, -1)
    gradients: list[Tensor | None] = []
    d_y = d_y.contiguous(memory_format=torch.channels_last)
    for k in reversed(range(shape.n_blocks)):
        (x, block), (weight, bias, _, _) = _block(shape, parts, saved, k), parts[k]
        d_weight, d_bias, d_gamma, d_beta = d_parts[k]
        if _is_fused(shape, k):
            first_backward(block, x, weight, bias, d_y, d_weight, d_gamma, d_beta, pairs[k], given)
            if d_bias is not None:  # (47), by (28) or (30)
                d_bias.copy_(-pairs[k][0] if given else pairs[k][0])
            gradients = [d_y, None, *gradients]
        else:
            d_z = block_backward(block, d_y, d_gamma, d_beta, pairs[k], given)
            gradients = [d_y, d_z, *gradients]
            d_y = convolution_backward(d_z, x, weight, k > 0, d_weight, d_bias)  # (46) to (48)
    return d_theta, gradients


def _double_backward(
    shape: Shape,
    theta: Tensor,
    saved: list[Any],
    gradients: list[Any],
    d_moments: Tensor,
    v_theta: Tensor,
    given: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward pass of `_backward`: v_y, v_moments and g_theta.

    It runs backward through `_backward`, from the first block to the last, and then backward through `_forward`.
    """
    n = shape.n_blocks
    g_theta, v_moments = torch.empty_like(theta), torch.empty_like(d_moments)
    parts, v_parts, g_parts = shape.parts(theta), shape.parts(v_theta), shape.parts(g_theta)
    d_pairs, v_pairs = d_moments.view(n, 2, -1), v_moments.view(n, 2, -1)
    each = [_block(shape, parts, saved, k) for k in range(n)]
    if _is_fused(shape, 0):
        x, block = each[0]
        each[0] = x, block._replace(z=convolution(x, *parts[0][:2]))
    v_xs: list[Tensor | None] = []
    g_zs = []
    v_x = None  # images have no gradient
    for k in range(n):
        (x, block), weight, d_y = each[k], parts[k][0], gradients[2 * k]
        v_weight, v_bias, v_gamma, v_beta = v_parts[k]
        v_z = convolution(x, v_weight, v_bias)  # (50)
        if v_x is not None:
            v_z += convolution(v_x, weight, None)
        v_xs.append(v_x)
        v_y, g_z, v_pairs[k] = block_double_backward(block, d_y, d_pairs[k], v_z, v_gamma, v_beta, g_parts[k][2], given)
        g_zs.append(g_z)
        v_x = v_y
    assert v_x is not None
    g_y = None
    zeros = torch.zeros_like(d_pairs[0])
    for k in reversed(range(n)):
        (x, block), weight, g_z, d_z = each[k], parts[k][0], g_zs[k], gradients[2 * k + 1]
        g_weight, g_bias, g_gamma, g_beta = g_parts[k]
        if g_y is None:
            g_beta.zero_()
        else:  # (53)
            more_gamma = torch.empty_like(g_gamma)
            g_z += block_backward(block, g_y, more_gamma, g_beta, zeros, given)
            g_gamma += more_gamma
        g_y = convolution_backward(g_z, x, weight, k > 0, g_weight, g_bias)  # (54)
        v_x_here = v_xs[k]
        if v_x_here is not None:
            more_weight = torch.empty_like(g_weight)
            convolution_backward(d_z, v_x_here, weight, False, more_weight, None)  # (51)
            g_weight += more_weight
            g_y += convolution_backward(d_z, x, v_parts[k][0], True, None, None)  # (52)
    return v_x, v_moments, g_theta


def _is_fused(shape: Shape, k: int) -> bool:
    """Whether a block is computed by `first_forward` and `first_backward`.

    PyTorch's convolution of images in bfloat16 is so fast that this does not pay there.
    """
    return k == 0 and shape.channels < LANES and shape.pool(k) == 2 and shape.dtype != torch.bfloat16


def _block(shape: Shape, parts: list[Any], saved: list[Any], k: int) -> tuple[Tensor, Block]:
    x, z, mean, rstd, pooled, chosen = saved[_SAVED * k : _SAVED * (k + 1)]
    return x, Block(z, parts[k][2], mean, rstd, pooled, chosen, shape.pool(k))
