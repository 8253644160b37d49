"""Inputs of kernels, the same functions in plain PyTorch, and comparisons of the two."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from metalstm.kernels import blocks


def close(actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-11) -> None:
    """Compare shapes, types and values. The tolerance is relative to the largest value, if that is above 1."""
    for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        scale = max(1.0, other.abs().max().item() if other.numel() else 0.0)
        assert (one - other).abs().max() <= tolerance * scale, number


def gradients(outputs: list[Tensor], inputs: list[Tensor], again: bool = False) -> list[Tensor]:
    """Gradients of a random function of all outputs, which is not linear."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=outputs[0].dtype)
    for output in outputs:
        total = (
            total + (torch.randn(output.shape, dtype=output.dtype, generator=generator) * output * (1 + output)).sum()
        )
    return list(torch.autograd.grad(total, inputs, create_graph=again))


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Compute with this number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cell_inputs(hidden: int, n: int, tasks: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Random inputs of `step`, whose gradients lie below and above e^-10."""
    generator = torch.Generator().manual_seed(hidden + n)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    sizes = 10 ** (12 * torch.rand(*tasks, n, generator=generator, dtype=torch.float64) - 9)
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


def plain_block(
    z: Tensor, gamma: Tensor, beta: Tensor, eps: float, moments: Tensor | None, pool: int = 2
) -> tuple[Tensor, Tensor]:
    """Batch normalization, max-pool and ReLU in PyTorch: y and the moments."""
    if moments is None:
        moments = torch.stack(torch.var_mean(z, (0, 2, 3), correction=0)[::-1])
    mean, var = (moment.view(-1, 1, 1) for moment in moments)
    normalized = (z - mean) / (var + eps).sqrt()
    return F.relu(F.max_pool2d(normalized * gamma.view(-1, 1, 1) + beta.view(-1, 1, 1), pool)), moments


def plain_features(
    shape: blocks.Shape, theta: Tensor, x: Tensor, moments: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`blocks.features` in PyTorch."""
    pairs = [None] * shape.n_blocks if moments is None else moments.view(shape.n_blocks, 2, -1)
    used = []
    for k, (weight, bias, gamma, beta) in enumerate(shape.parts(theta)):
        x, pair = plain_block(F.conv2d(x, weight, bias, padding=1), gamma, beta, shape.eps, pairs[k], shape.pool(k))
        used.append(pair)
    return x, torch.cat(used).flatten()


def block_inputs(shape: blocks.Shape, n: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random theta with gamma of both signs, images, and moments."""
    generator = torch.Generator().manual_seed(height * 100 + width)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    parts = []
    for block in range(shape.n_blocks):
        inputs = shape.filters if block else shape.channels
        parts += [normal(shape.filters * 9 * inputs) / (9 * inputs) ** 0.5]
        parts += [normal(shape.filters) / 10 for _ in range(shape.conv_bias)]
        parts += [normal(shape.filters) / 2 + 0.5, normal(shape.filters) / 10]
    x = torch.rand(n, shape.channels, height, width, generator=generator, dtype=torch.float64)
    moments = torch.rand(2 * shape.filters * shape.n_blocks, generator=generator, dtype=torch.float64) + 0.1
    return torch.cat(parts), x, moments
