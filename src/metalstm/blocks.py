"""The learner's convolutional blocks on CPU, differentiated by hand, twice.

`learners.py` holds the same in PyTorch. Here a pass over all blocks is one node of the graph, made of nothing but
convolutions and the compiled kernels, and second derivatives take six convolutions a block.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from metalstm import kernels


class Shape(NamedTuple):
    """What theta is for, block by block: a convolution (filters, 3, 3, in), its bias if there is one, gamma, beta."""

    n_blocks: int
    channels: int  # of the images
    filters: int
    conv_bias: bool
    eps: float
    dtype: torch.dtype  # of the convolutions

    def parts(self, theta: Tensor) -> list[tuple[Tensor, Tensor | None, Tensor, Tensor]]:
        """Views of weight (filters, in, 3, 3), bias, gamma and beta of each block."""
        n, sizes = self.filters, []
        for block in range(self.n_blocks):
            sizes += [9 * n * (n if block else self.channels), *[n] * (2 + self.conv_bias)]
        # One split has one backward node; a slice per parameter would fill a vector of zeros for each.
        flat, each = theta.split(sizes), []
        for start in range(0, len(flat), 3 + self.conv_bias):
            weight, *bias, gamma, beta = flat[start : start + 3 + self.conv_bias]
            each.append((weight.view(n, 3, 3, -1).permute(0, 3, 1, 2), bias[0] if bias else None, gamma, beta))
        return each


def features(
    shape: Shape,
    theta: Float[Tensor, " n_body"],
    x: Float[Tensor, "n channels height width"],
    moments: Float[Tensor, " n_moments"] | None,
) -> tuple[Float[Tensor, "n filters small_height small_width"], Float[Tensor, " n_moments"]]:
    """What the last block gives, and the moments of the images, if none were given.

    Differentiable in theta twice, but once where the moments that are given want a gradient too; not in x.
    """
    theta, x = theta.contiguous(), x.to(shape.dtype, memory_format=torch.channels_last)
    if moments is None:
        return _Features.apply(theta, x, None, shape)  # pyright: ignore[reportReturnType]
    if moments.requires_grad:
        return _GivenFeatures.apply(theta, moments.contiguous(), x, shape), moments  # pyright: ignore[reportReturnType]
    return _Features.apply(theta, x, moments.contiguous(), shape)[0], moments  # pyright: ignore[reportOptionalSubscript]


class _Features(Function):
    """y and the moments; where these are given as constants, there are none to give."""

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
    """The gradient in theta, as a function of the cotangents and of theta, by which all that is saved is told."""

    @staticmethod
    def forward(ctx: Any, d_y: Tensor, d_moments: Tensor, theta: Tensor, *saved: Any) -> Tensor:
        *kept, shape, given = saved
        # Of given moments the gradient is written, and not wanted; of others it flows on to x.
        d_moments = theta.new_empty(shape.n_blocks * 2 * shape.filters) if given else d_moments.contiguous()
        d_theta, flown = _backward(shape, theta, kept, d_y, d_moments, given)
        ctx.shape, ctx.given = shape, given
        ctx.save_for_backward(d_moments, theta, *kept, *flown)
        return d_theta

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        d_moments, theta, *saved = ctx.saved_tensors
        by_y, by_moments, by_theta = _double_backward(ctx.shape, theta, saved, d_moments, v.contiguous(), ctx.given)
        return by_y, None if ctx.given else by_moments, by_theta, *[None] * (2 + 6 * ctx.shape.n_blocks)


class _GivenFeatures(Function):
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


# Passes over all blocks. A block convolves x to z and makes y of that, which is the next block's x. -------------------


def _forward(shape: Shape, theta: Tensor, x: Tensor, moments: Tensor, given: bool) -> tuple[Tensor, list[Tensor]]:
    """The last y, and of each block x, z, the moments' mean and rstd, and what was pooled."""
    saved = []
    for part, pair in zip(shape.parts(theta), moments.view(shape.n_blocks, 2, -1), strict=True):
        weight, bias, gamma, beta = part
        z = _convolve(x, weight, bias)
        y, block = kernels.block_forward(z, gamma, beta, pair, shape.eps, given)
        saved += [x, z, *block[2:]]
        x = y
    return x, saved


def _backward(
    shape: Shape, theta: Tensor, saved: list[Tensor], d_y: Tensor, d_moments: Tensor, given: bool
) -> tuple[Tensor, list[Tensor]]:
    """The gradient in theta, and of each block d_y and d_z."""
    d_theta = torch.empty_like(theta)
    parts, d_parts, pairs = shape.parts(theta), shape.parts(d_theta), d_moments.view(shape.n_blocks, 2, -1)
    flown = []
    d_y = d_y.contiguous(memory_format=torch.channels_last)
    for k in reversed(range(shape.n_blocks)):
        (x, block), (weight, _, _, _) = _block(parts, saved, k), parts[k]
        d_weight, d_bias, d_gamma, d_beta = d_parts[k]
        d_z = kernels.block_backward(block, d_y, d_gamma, d_beta, pairs[k], given)
        flown = [d_y, d_z, *flown]
        d_y = _convolve_backward(d_z, x, weight, k > 0, d_weight, d_bias)
    return d_theta, flown


def _double_backward(
    shape: Shape, theta: Tensor, saved: list[Tensor], d_moments: Tensor, v: Tensor, given: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward pass of `_backward`, whose d_theta has the cotangent v: gradients in d_y, d_moments and theta.

    It undoes `_backward` from the first block to the last, and then, for what came in by x and z, `_forward`.
    """
    n = shape.n_blocks
    saved, flown = saved[: 6 * n], saved[6 * n :]
    out, out_moments = torch.empty_like(theta), torch.empty_like(d_moments)
    parts, v_parts, out_parts = shape.parts(theta), shape.parts(v), shape.parts(out)
    pairs, out_pairs = d_moments.view(n, 2, -1), out_moments.view(n, 2, -1)
    v_xs: list[Tensor | None] = []  # cotangents of what `_backward` gave for x
    by_zs = []  # gradients in z
    v_x = None
    for k in range(n):
        (x, block), (weight, _, _, _) = _block(parts, saved, k), parts[k]
        v_weight, v_bias, v_gamma, v_beta = v_parts[k]
        v_z = _convolve(x, v_weight, v_bias)
        if v_x is not None:
            v_z += _convolve(v_x, weight, None)
        v_xs.append(v_x)
        v_x, by_z, out_pairs[k] = kernels.block_double_backward(
            block, flown[2 * k], pairs[k], v_z, v_gamma, v_beta, out_parts[k][2], given
        )
        by_zs.append(by_z)
    assert v_x is not None
    by_y = None
    zeros = torch.zeros_like(pairs[0])
    for k in reversed(range(n)):
        (x, block), (weight, _, _, _), by_z, d_z = _block(parts, saved, k), parts[k], by_zs[k], flown[2 * k + 1]
        out_weight, out_bias, out_gamma, out_beta = out_parts[k]
        if by_y is None:
            out_beta.zero_()
        else:
            by_gamma = torch.empty_like(out_gamma)
            by_z += kernels.block_backward(block, by_y, by_gamma, out_beta, zeros, given)
            out_gamma += by_gamma
        by_y = _convolve_backward(by_z, x, weight, k > 0, out_weight, out_bias)
        if k > 0:
            v_x_here = v_xs[k]
            assert v_x_here is not None
            more = torch.empty_like(out_weight)
            _convolve_backward(d_z, v_x_here, weight, False, more, None)
            out_weight += more
            by_y += _convolve_backward(d_z, x, v_parts[k][0], True, None, None)
    return v_x, out_moments, out


def _block(parts: list[Any], saved: list[Tensor], k: int) -> tuple[Tensor, kernels.Block]:
    x, z, *rest = saved[6 * k : 6 * (k + 1)]
    return x, kernels.Block(z, parts[k][2], *rest)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    z = torch.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=1)
    return z.contiguous(memory_format=torch.channels_last)


def _convolve_backward(
    d_z: Tensor, x: Tensor, weight: Tensor, need_x: bool, d_weight: Tensor | None, d_bias: Tensor | None
) -> Any:
    """Gradient in x, or None where it is not needed; writes those in weight and bias, if they are given."""
    biases = None if d_bias is None else list(d_bias.shape)
    mask = [need_x, d_weight is not None, d_bias is not None]
    d_x, by_weight, by_bias = torch.ops.aten.convolution_backward(
        d_z, x, weight.to(x.dtype), biases, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
    )
    if d_weight is not None:
        d_weight.copy_(by_weight)
    if d_bias is not None:
        d_bias.copy_(by_bias)
    return d_x.contiguous(memory_format=torch.channels_last) if need_x else None
