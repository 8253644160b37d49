"""Conv4, the learner of the paper."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod, sqrt
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor

from metalstm import kernels
from metalstm.errors import UserError
from metalstm.kernels import blocks
from metalstm.learners.base import LearnerSettings
from metalstm.learners.convolutional import Convolutional
from metalstm.settings import Share


class Conv4(Convolutional):
    """Four blocks of 3x3 convolution, batch normalization, 2x2 max-pool and ReLU, then a linear head.

    Convolution weights lie in theta as (out, 3, 3, in), so that they are channels-last, which is the faster layout on
    CPU. Moments are, for each block, the mean and the (biased) variance of each channel. Pooling before the ReLU gives
    the same function as after it and leaves it a quarter of the work.

    Args:
        image_shape: Channels, height and width of an image; sides of at least 16 pixels.
        settings: As below; the paper's by default.

    References:
        Ravi & Larochelle 2017, section 5.1 (learner); eps 1e-3 from the authors' code.
    """

    @dataclass(frozen=True)
    class Settings(LearnerSettings):
        """Four convolutions."""

        filters: Annotated[int, Meta(ge=1, le=4096)] = 32
        """Filters of each of the four convolutions."""
        conv_bias: bool = True
        """Whether the convolutions have a bias, which batch normalization cancels."""
        unit_gamma: bool = False
        """Start batch normalization's gamma at 1 instead of uniformly between 0 and 1."""
        dropout: Share = 0.0
        """Share of the numbers behind each block that meta-training sets to 0."""
        unit_features: bool = False
        """Let the head see features of one length, so that a head that starts at 0 compares by the cosine."""
        pooling: Literal["max", "average"] = "max"
        """After the last block: 2x2 maxima, as in the paper, or the mean of each filter over the image."""
        mirror: bool = False
        """Once trained, the head sees the mean of the features of an image and of its mirror image: twice the work."""

    eps = 1e-3
    n_blocks = 4

    def __init__(self, image_shape: Sequence[int], settings: Settings = Settings()):
        super().__init__()
        channels, height, width = image_shape
        if min(height, width) < 2**self.n_blocks:
            raise UserError(f"images of {height}x{width} pixels are too small for Conv4: it needs at least 16x16")
        filters = settings.filters
        self.image_shape, self.settings, self.filters = (channels, height, width), settings, filters
        self.bf16 = settings.precision == "bf16"
        self.n_pooled = self.n_blocks - (settings.pooling == "average")  # blocks with a 2x2 max-pool
        places = 1 if settings.pooling == "average" else (height >> self.n_blocks) * (width >> self.n_blocks)
        self.n_features = filters * places
        self.n_moments = 2 * filters * self.n_blocks
        self.shapes = {}
        for block in range(1, self.n_blocks + 1):
            self.shapes[f"conv{block}.weight"] = (filters, 3, 3, channels if block == 1 else filters)
            if settings.conv_bias:
                self.shapes[f"conv{block}.bias"] = (filters,)
            self.shapes[f"norm{block}.weight"] = (filters,)
            self.shapes[f"norm{block}.bias"] = (filters,)

    @classmethod
    def for_pretraining(cls, settings: Settings) -> Settings:
        """A plain classifier: features of any length, no dropout."""
        return replace(settings, unit_features=False, dropout=0.0)

    @classmethod
    def tag(cls, settings: Settings) -> str:
        """The number of filters and the pooling: `64f`, `64f-average`."""
        return f"{settings.filters}f" + ("" if settings.pooling == "max" else f"-{settings.pooling}")

    def layer_of(self, name: str) -> str:
        """A convolution and the normalization behind it are one layer."""
        return super().layer_of(name).replace("norm", "conv")

    def init_body(self, generator: torch.Generator) -> Float[Tensor, " n_body"]:
        """Draw as Torch7 does: weights and biases U(+-1/sqrt(fan_in)), beta 0, gamma U(0, 1) or 1."""
        parts = []
        bound = 1.0
        for name, shape in self.shapes.items():
            part = torch.rand(prod(shape), generator=generator)
            if name.startswith("norm"):
                if name.endswith("bias"):
                    part = torch.zeros_like(part)
                elif self.settings.unit_gamma:
                    part = torch.ones_like(part)
            else:
                if len(shape) > 1:  # a bias has the bound of the weight before it
                    bound = 1 / sqrt(prod(shape[1:]))
                part = (2 * part - 1) * bound
            parts.append(part)
        return torch.cat(parts)

    def unbiased(
        self, moments: Float[Tensor, "*tasks n_moments"], n_images: int, train: bool = False
    ) -> Float[Tensor, "*tasks n_moments"]:
        """Moments of a batch with n / (n - 1) on the variances; a mirror image counts as an image."""
        n_images *= 1 + self._mirrors(train)
        pixels = [(self.image_shape[1] >> block) * (self.image_shape[2] >> block) for block in range(self.n_blocks)]
        return moments * _unbiasing(tuple(n_images * n for n in pixels), self.filters, moments.dtype, moments.device)

    def initial_moments(self) -> Float[Tensor, " n_moments"]:
        """Mean 0, variance 1."""
        return torch.tensor([0.0, 1.0]).repeat_interleave(self.filters).repeat(self.n_blocks)

    def _embed(self, train: bool, theta: Tensor, x: Tensor, moments: Tensor | None) -> tuple[Tensor, Tensor]:
        dtype = torch.bfloat16 if self.bf16 else theta.dtype
        body, others = theta[: self.n_body], [x.to(theta.dtype), *([] if moments is None else [moments])]
        dropout = self.settings.dropout if train else 0.0
        pairs = [None] * self.n_blocks if moments is None else moments.view(self.n_blocks, 2, self.filters).unbind()
        shape = blocks.Shape(
            self.n_blocks, self.n_pooled, self.image_shape[0], self.filters, self.settings.conv_bias, self.eps, dtype
        )
        if not dropout and not x.requires_grad and kernels.can_block(theta, others, dtype, self.filters):
            x, moments = blocks.features(shape, body, x, moments)
        else:
            x, used = x.to(dtype).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), []  # channels-last
            for block, (weight, bias, gamma, beta) in enumerate(shape.parts(body)):
                x = F.conv2d(x, weight.to(dtype), None if bias is None else bias.to(dtype), padding=1)
                x, mean, var = _block(x, gamma, beta, self.eps, pairs[block], block < self.n_pooled)
                x = F.dropout(x, dropout) if dropout else x
                used += [mean, var]
            moments = torch.cat(used)
        if self.settings.pooling == "average":
            x = x.to(theta.dtype).mean((2, 3))
        return x.flatten(1).to(theta.dtype), moments


@cache  # so that on a GPU no inner step waits for it
def _unbiasing(numbers: tuple[int, ...], filters: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """1 for means and n / (n - 1) for variances, of blocks with n numbers a channel."""
    factors = [factor for n in numbers for factor in (1.0, n / (n - 1))]
    return torch.tensor(factors, dtype=dtype, device=device).repeat_interleave(filters)


def _block(
    x: Tensor, gamma: Tensor, beta: Tensor, eps: float, moments: Tensor | None, pool: bool
) -> tuple[Any, Any, Any]:
    """Batch normalization by given moments or those of `x`, 2x2 max-pool, ReLU; the arithmetic is gamma's."""
    dtype, x = x.dtype, x.to(gamma.dtype)
    if moments is None:
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    else:
        mean, var = moments.unbind()
    scale = gamma * (var + eps).rsqrt()
    x = x * scale.view(-1, 1, 1) + (beta - mean * scale).view(-1, 1, 1)
    return F.relu(F.max_pool2d(x, 2) if pool else x).to(dtype), mean, var
