"""The blocks' convolutions: those of 3x3 pixels with padding 1 as C++ kernels, others by PyTorch.

The kernels use Winograd's method: a quarter of the multiplications. DERIVATION.md, section "The convolution, by
Winograd's method", derives it. They do not take the convolution of the images, of few channels. In Conv4,
`norm_pool.first_forward` and `first_backward` compute it in float32 and float64; elsewhere PyTorch does.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from metalstm.kernels.calls import LANES, kernel

MOST_WEIGHTS = 2**16  # of out * in: above, PyTorch's convolution in bfloat16 is faster


def can_convolve(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels take images and a weight (out, in, 3, 3) of these sizes."""
    out, inputs, side, _ = weight.shape
    suits = x.dtype != torch.bfloat16 or out * inputs <= MOST_WEIGHTS
    return out % LANES == 0 and inputs % LANES == 0 and side == 3 and suits


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of channels-last images by a weight (out, in, side, side), with padding: (45)."""
    if can_convolve(x, weight):
        return convolve(x, weight.permute(1, 2, 3, 0), bias)
    bias = None if bias is None else bias.to(x.dtype)
    z = torch.conv2d(x, weight.to(x.dtype), bias, padding=weight.shape[-1] // 2)
    return z.contiguous(memory_format=torch.channels_last)


def convolution_backward(
    d_z: Tensor, x: Tensor, weight: Tensor, need_x: bool, d_weight: Tensor | None, d_bias: Tensor | None
) -> Any:
    """d_x, or None if it is not needed; writes d_weight and d_bias unless they are None: (46) to (48)."""
    if d_bias is not None:
        torch.sum(d_z, (0, 2, 3), dtype=d_bias.dtype, out=d_bias)
    if can_convolve(x, weight):
        if d_weight is not None:
            d_weight.copy_(convolve_weight(x, d_z).permute(3, 0, 1, 2))
        return convolve(d_z, weight.flip(2, 3).permute(0, 2, 3, 1), None) if need_x else None
    padding = [weight.shape[-1] // 2] * 2
    mask = [need_x, d_weight is not None, False]
    d_x, new_weight, _ = torch.ops.aten.convolution_backward(
        d_z, x, weight.to(x.dtype), None, [1, 1], padding, [1, 1], False, [0, 0], 1, mask
    )
    if d_weight is not None:
        d_weight.copy_(new_weight)
    return d_x.contiguous(memory_format=torch.channels_last) if need_x else None


def convolve(
    x: Float[Tensor, "n in height width"], weight: Float[Tensor, "in 3 3 out"], bias: Float[Tensor, " out"] | None
) -> Float[Tensor, "n out height width"]:
    """Convolve channels-last images: (59)."""
    n, _, height, width = x.shape
    out = weight.shape[-1]
    z = x.new_empty(n, height, width, out).permute(0, 3, 1, 2)
    bias = weight.new_zeros(out) if bias is None else bias
    kernel("convolve")(**_sizes(x, out), x=x, weight=weight.contiguous(), bias=bias, z=z)
    return z


def convolve_weight(
    x: Float[Tensor, "n in height width"], d_z: Float[Tensor, "n out height width"]
) -> Float[Tensor, "in 3 3 out"]:
    """The gradient in the weight: (60)."""
    out = d_z.shape[1]
    d_weight = torch.empty(x.shape[1], 3, 3, out, dtype=torch.promote_types(x.dtype, torch.float32))
    kernel("convolve_weight")(**_sizes(x, out), x=x, d_z=d_z, d_weight=d_weight)
    return d_weight


def _sizes(x: Tensor, out: int) -> dict[str, int]:
    n, inputs, height, width = x.shape
    return {"n": n, "height": height, "width": width, "inputs": inputs, "channels": out}
