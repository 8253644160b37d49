"""ResNet-12, a larger learner for photos."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod, sqrt
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor

from metalstm.errors import UserError
from metalstm.kernels import residual
from metalstm.learners.base import LearnerSettings
from metalstm.learners.convolutional import Convolutional

GROWTH = {"double": (1, 2, 4, 8), "published": (1, 2.5, 5, 10)}  # filters of each block, times those of the first


class ResNet12(Convolutional):
    """Four residual blocks, the mean of each filter over the image, then a linear head.

    A block has three 3x3 convolutions, each with batch normalization, and leaky ReLU between them. Its input, by a 1x1
    convolution with batch normalization, is added to the result; a 2x2 max-pool and leaky ReLU follow. The pool comes
    before the ReLU, which gives the same function. Convolution weights lie in theta as (out, 3, 3, in), channels-last.
    Moments are, for each convolution, the mean and the (biased) variance of each filter.

    Args:
        image_shape: Channels, height and width of an image; sides of at least 16 pixels.
        settings: As below.

    References:
        Lee et al. 2019 (arXiv 1904.03758), section 4.1, for the network of few-shot learning; Tian et al. 2020 (arXiv
        2003.11539) for its training. DropBlock is left out.
    """

    @dataclass(frozen=True)
    class Settings(LearnerSettings):
        """How wide it is."""

        filters: Annotated[int, Meta(ge=1, le=1024)] = 32
        """Filters of each convolution in the first block."""
        growth: Literal["double", "published"] = "double"
        """Filters of the blocks: times 1, 2, 4 and 8; or times 1, 2.5, 5 and 10, which with 64 filters gives the
        published 64, 160, 320 and 640."""
        unit_features: bool = False
        """Let the head see features of one length, so that a head that starts at 0 compares by the cosine."""
        mirror: bool = False
        """Once trained, the head sees the mean of the features of an image and of its mirror image: twice the work."""

    eps = 1e-5
    slope = 0.1  # of leaky ReLU below 0

    def __init__(self, image_shape: Sequence[int], settings: Settings = Settings()):
        super().__init__()
        channels, height, width = image_shape
        if min(height, width) < 16:
            raise UserError(f"images of {height}x{width} pixels are too small for ResNet-12: it needs at least 16x16")
        self.image_shape, self.settings = (channels, height, width), settings
        self.bf16 = settings.precision == "bf16"
        self.widths = [int(settings.filters * times) for times in GROWTH[settings.growth]]
        self.n_features = self.widths[-1]
        self.n_moments = 2 * len(residual.SIDES) * sum(self.widths)
        self.shapes = {}
        names = [f"block{block}.{layer}" for block in range(1, 5) for layer in residual.SIDES]
        for name, shape in zip(names, self._shape(torch.float32).weights(), strict=True):
            self.shapes |= {f"{name}.weight": shape, f"{name}.gamma": shape[:1], f"{name}.beta": shape[:1]}

    @classmethod
    def for_pretraining(cls, settings: Settings) -> Settings:
        """A plain classifier: features of any length."""
        return replace(settings, unit_features=False)

    @classmethod
    def tag(cls, settings: Settings) -> str:
        """The number of filters: `resnet12-32f`, `resnet12-64f-published`."""
        return f"resnet12-{settings.filters}f" + ("" if settings.growth == "double" else f"-{settings.growth}")

    def init_body(self, generator: torch.Generator) -> Float[Tensor, " n_body"]:
        """Weights as He et al. for what a convolution gives, N(0, 2 / fan_out); gamma 1, beta 0."""
        parts = []
        for name, shape in self.shapes.items():
            if name.endswith("weight"):
                part = torch.randn(prod(shape), generator=generator) * sqrt(2 / prod(shape[:3]))
            else:
                part = torch.full(shape, float(name.endswith("gamma")))
            parts.append(part)
        return torch.cat(parts)

    def unbiased(
        self, moments: Float[Tensor, "*tasks n_moments"], n_images: int, train: bool = False
    ) -> Float[Tensor, "*tasks n_moments"]:
        """Moments of a batch with n / (n - 1) on the variances; a mirror image counts as an image."""
        n_images *= 1 + self._mirrors(train)
        parts = []
        for block, pairs in enumerate(self._shape(moments.dtype).moments(moments)):
            n = n_images * (self.image_shape[1] >> block) * (self.image_shape[2] >> block)
            mean, var = pairs.unbind(-2)
            parts.append(torch.stack([mean, var * (n / (n - 1))], -2).flatten(-3))
        return torch.cat(parts, -1)

    def initial_moments(self) -> Float[Tensor, " n_moments"]:
        """Mean 0, variance 1."""
        pair, n = torch.tensor([0.0, 1.0]), len(residual.SIDES)
        return torch.cat([pair.repeat_interleave(width).repeat(n) for width in self.widths])

    def _embed(self, train: bool, theta: Tensor, x: Tensor, moments: Tensor | None) -> tuple[Tensor, Tensor]:
        body = theta[: self.n_body]
        shape = self._shape(torch.bfloat16 if self.bf16 else theta.dtype)
        plain = partial(_plain, shape, x.to(theta.dtype))
        if not x.requires_grad and residual.can_add(shape, theta, [] if moments is None else [moments]):
            x, moments = residual.features(shape, body, x, moments, plain)
        else:
            x, moments = plain(body, moments)
        return x.to(theta.dtype).mean((2, 3)), moments

    def _shape(self, dtype: torch.dtype) -> residual.Shape:
        return residual.Shape(self.image_shape[0], self.widths, self.eps, self.slope, dtype)


def _plain(shape: residual.Shape, x: Tensor, theta: Tensor, moments: Tensor | None) -> tuple[Tensor, Tensor]:
    """All blocks: the features before they are averaged, and the moments that normalized the images."""
    x = x.to(shape.dtype).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # channels-last
    pairs = [[None] * len(residual.SIDES)] * len(shape.widths) if moments is None else shape.moments(moments)
    used: list[Tensor] = []

    def normalized(x: Tensor, layer: residual.Layer, pair: Tensor | None) -> Tensor:
        z = F.conv2d(x, layer.weight.to(x.dtype), padding=layer.weight.shape[-1] // 2).to(theta.dtype)
        var, mean = torch.var_mean(z, (0, 2, 3), correction=0) if pair is None else pair.flip(0).unbind()
        used.extend([mean, var])
        scale = layer.gamma * (var + shape.eps).rsqrt()
        return z * scale.view(-1, 1, 1) + (layer.beta - mean * scale).view(-1, 1, 1)

    for layers, pair in zip(shape.blocks(theta), pairs, strict=True):
        y = x
        for layer in (0, 1):
            y = F.leaky_relu(normalized(y, layers[layer], pair[layer]), shape.slope).to(x.dtype)
        y = normalized(y, layers[2], pair[2]) + normalized(x, layers[3], pair[3])
        x = F.leaky_relu(F.max_pool2d(y, 2), shape.slope).to(x.dtype)
    return x, torch.cat(used)
