"""A block's 3x3 convolution with padding 1, as C++ kernels.

They use Winograd's method: a quarter of the multiplications. DERIVATION.md, section "The convolution, by Winograd's
method", derives it. They do not take the convolution of the images, of few channels: `norm_pool.first_forward` and
`first_backward` compute it in float32 and float64, PyTorch in bfloat16.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from metalstm.kernels.calls import LANES, kernel


def can_convolve(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels take images and a weight (out, in, 3, 3) of these sizes."""
    return weight.shape[0] % LANES == 0 and weight.shape[1] % LANES == 0


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
