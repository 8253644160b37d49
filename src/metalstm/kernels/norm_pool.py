"""Batch normalization, 2x2 max-pool or none, and ReLU of one block, as C++ kernels.

DERIVATION.md derives them in the sections "The block" and "The block, backward of the backward pass". Names here and
there: `d_a` is the gradient of the loss in `a`; `v_a` is the gradient in `d_a` of whatever is computed from the first
gradients, and `g_a` its gradient in `a` itself.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from metalstm.kernels.calls import LANES, can_read, kernel


class Block(NamedTuple):
    """What the backward pass of a block reads; images are channels-last."""

    z: Float[Tensor, "n channels height width"] | None  # float32, float64 or bfloat16, as all images; None in the first
    gamma: Float[Tensor, " channels"]
    mean: Float[Tensor, " channels"]
    rstd: Float[Tensor, " channels"]  # 1 / standard deviation
    pooled: Float[Tensor, "n channels small_height small_width"]  # the chosen pixels, normalized
    chosen: UInt8[Tensor, "n channels small_height small_width"]  # which of the four pixels, and whether the ReLU is 0
    pool: int  # side of the windows: 2, or 1 for no max-pool


def can_block(theta: Tensor, others: Sequence[Tensor], images: torch.dtype, channels: int) -> bool:
    """Whether the kernels take this number of channels, images stored as `images`, and `others` of theta's type."""
    takes = images == theta.dtype or (images, theta.dtype) == (torch.bfloat16, torch.float32)
    return channels % LANES == 0 and takes and not torch.is_autocast_enabled("cpu") and can_read(theta, *others)


def block_forward(
    z: Tensor, gamma: Tensor, beta: Tensor, moments: Tensor, eps: float, given: bool, pool: int = 2
) -> tuple[Tensor, Block]:
    """Normalize, pool, rectify: (21) to (24).

    Args:
        z: Images, channels-last.
        gamma: Scale.
        beta: Shift.
        moments: (2, channels): mean and biased variance. An input if `given`; otherwise the moments of z are written.
        eps: Added to the variance.
        given: Whether `moments` are inputs.
        pool: Side of the windows of the max-pool: 2, or 1 for no max-pool.

    Returns:
        The output of the block, and what `block_backward` needs.
    """
    y, block = _outputs(z, z, gamma, moments, pool)
    kernel("block_forward")(**_sizes(z), **block._asdict(), given=given, eps=eps, beta=beta, var=moments[1], y=y)
    return y, block


def block_backward(
    block: Block, d_y: Tensor, d_gamma: Tensor, d_beta: Tensor, d_moments: Tensor, given: bool
) -> Float[Tensor, "n channels height width"]:
    """Gradient in z: (25) to (31).

    Args:
        block: From `block_forward`.
        d_y: Gradient in the output.
        d_gamma: Is written.
        d_beta: Is written.
        d_moments: Is written if the moments were given; otherwise it is an input.
        given: Whether the moments were given.
    """
    assert block.z is not None
    d_z = torch.empty_like(block.z)
    d_mean, d_var = d_moments[0], d_moments[1]
    outputs = {"d_z": d_z, "d_gamma": d_gamma, "d_beta": d_beta}
    kernel("block_backward")(
        **_sizes(d_z), **block._asdict(), given=given, d_y=d_y, d_mean=d_mean, d_var=d_var, **outputs
    )
    return d_z


def block_double_backward(
    block: Block,
    d_y: Tensor,
    d_moments: Tensor,
    v_z: Tensor,
    v_gamma: Tensor,
    v_beta: Tensor,
    g_gamma: Tensor,
    given: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward of `block_backward`: (32) to (44). If the moments were given, they are constants.

    Args:
        block: From `block_forward`.
        d_y: The input of `block_backward`.
        d_moments: The input of `block_backward`, if the moments were not given.
        v_z: Gradient in the output d_z.
        v_gamma: Gradient in the output d_gamma.
        v_beta: Gradient in the output d_beta.
        g_gamma: Is written: the gradient in gamma.
        given: Whether the moments were given.

    Returns:
        v_y, g_z, v_moments: the gradients in d_y, in z, and in d_moments, if the moments were not given.
    """
    assert block.z is not None
    v_y, g_z, v_moments = torch.empty_like(d_y), torch.empty_like(block.z), torch.empty_like(d_moments)
    v_mean, v_var = v_moments[0], v_moments[1]
    inputs = {"d_y": d_y, "d_var": d_moments[1], "v_z": v_z, "v_gamma": v_gamma, "v_beta": v_beta}
    outputs = {"v_y": v_y, "v_mean": v_mean, "v_var": v_var, "g_z": g_z, "g_gamma": g_gamma}
    kernel("block_double_backward")(**_sizes(v_z), **block._asdict(), given=given, **inputs, **outputs)
    return v_y, g_z, v_moments


def first_forward(
    x: Float[Tensor, "n in height width"],
    weight: Float[Tensor, "channels in 3 3"],
    bias: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    moments: Tensor,
    eps: float,
    given: bool,
) -> tuple[Tensor, Block]:
    """The convolution and `block_forward` of the first block; z is not kept.

    Args:
        x: Images of few channels, channels-last.
        weight: Of the convolution.
        bias: Of the convolution.
        gamma: Scale.
        beta: Shift.
        moments: As for `block_forward`.
        eps: Added to the variance.
        given: Whether `moments` are inputs.
    """
    y, block = _outputs(x, None, gamma, moments, pool=2)
    arguments = _first(block, x, weight, bias)
    kernel("first_forward")(**arguments, given=given, eps=eps, beta=beta, var=moments[1], y=y)
    return y, block


def first_backward(
    block: Block,
    x: Float[Tensor, "n in height width"],
    weight: Float[Tensor, "channels in 3 3"],
    bias: Tensor | None,
    d_y: Tensor,
    d_weight: Float[Tensor, "channels in 3 3"],
    d_gamma: Tensor,
    d_beta: Tensor,
    d_moments: Tensor,
    given: bool,
) -> None:
    """`block_backward`, and the gradient in the weight: (46). It writes `d_weight`; d_z is not kept.

    The other arguments are those of `first_forward` and `block_backward`.
    """
    arguments = _first(block, x, weight, bias)
    matrix = torch.empty_like(arguments["weight"])
    outputs = {"d_weight": matrix, "d_gamma": d_gamma, "d_beta": d_beta}
    kernel("first_backward")(**arguments, given=given, d_y=d_y, d_mean=d_moments[0], d_var=d_moments[1], **outputs)
    d_weight.copy_(matrix.view(3, 3, x.shape[1], -1).permute(3, 2, 0, 1))


def _outputs(images: Tensor, z: Tensor | None, gamma: Tensor, moments: Tensor, pool: int) -> tuple[Tensor, Block]:
    """Where a forward pass writes."""
    n, _, height, width = images.shape
    y = images.new_empty(n, height // pool, width // pool, len(gamma)).permute(0, 3, 1, 2)
    rstd, pooled, chosen = torch.empty_like(gamma), torch.empty_like(y), torch.empty_like(y, dtype=torch.uint8)
    return y, Block(z, gamma, moments[0], rstd, pooled, chosen, pool)


def _first(block: Block, x: Tensor, weight: Tensor, bias: Tensor | None) -> dict[str, Any]:
    """The arguments of both kernels of the first block."""
    arguments = block._asdict() | _sizes(x) | {"channels": len(weight), "inputs": x.shape[1], "x": x}
    del arguments["z"]
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return arguments | {"weight": weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous(), "bias": bias}


def _sizes(images: Tensor) -> dict[str, int]:
    n, channels, height, width = images.shape
    return {"n": n, "channels": channels, "height": height, "width": width}
