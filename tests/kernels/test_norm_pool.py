"""One block's normalization, max-pool and ReLU: precision, NaN, and the choice of a pixel."""

import torch
from torch import Tensor

from metalstm.kernels.norm_pool import Block, block_forward, can_block

from .comparing import close, plain_block


def forward(z: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Block]:
    """y, the moments, and what the kernel saves."""
    moments = torch.empty(2, len(gamma), dtype=gamma.dtype)
    z = z.contiguous(memory_format=torch.channels_last)
    y, block = block_forward(z, gamma, beta, moments, 1e-3, given=False)
    return y, moments, block


def test_block_is_precise_far_from_zero(compiled_kernels: None):
    z = torch.randn(50, 16, 20, 20, generator=torch.Generator().manual_seed(0)) + 300
    gamma = torch.ones(16)
    y, moments, _ = forward(z, gamma, gamma * 0)
    exact, exact_moments = plain_block(z.double(), gamma.double(), gamma.double() * 0, 1e-3, None)
    close([moments.double()], [exact_moments], 1e-5)
    close([y.double()], [exact], 1e-4)


def test_block_keeps_nan(compiled_kernels: None):
    z = torch.zeros(2, 16, 4, 4)
    z[0, 3, 0, 0] = float("nan")
    y, _, _ = forward(z, torch.ones(16), torch.ones(16))
    assert y[:, 3].isnan().all()
    assert y[:, [0, 1, 2, *range(4, 16)]].isfinite().all()


def test_zero_gamma_takes_the_first_pixel(compiled_kernels: None):
    z = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    _, _, block = forward(z, torch.zeros(16), torch.ones(16))
    assert not block.chosen.any()


def test_what_the_block_takes(compiled_kernels: None):
    theta = torch.zeros(3)
    assert can_block(theta, [], torch.float32, 16)
    assert can_block(theta, [theta], torch.bfloat16, 32)
    assert can_block(theta.double(), [], torch.float64, 48)
    assert not can_block(theta, [], torch.float32, 17)
    assert not can_block(theta, [theta.double()], torch.float32, 16)
    assert not can_block(theta.double(), [], torch.bfloat16, 16)
    with torch.autocast("cpu"):
        assert not can_block(theta, [], torch.float32, 16)
