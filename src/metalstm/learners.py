"""Learners: the networks that are trained on a support set, as pure functions of a flat parameter vector theta."""

from collections.abc import Callable, Sequence
from functools import cache
from math import prod, sqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalstm import blocks, kernels
from metalstm.errors import UserError

Layout = dict[str, tuple[slice, tuple[int, ...]]]


class Conv4(nn.Module):
    """Four blocks of 3x3 convolution, batch normalisation, 2x2 max-pool and ReLU, then a linear head.

    The module holds no parameters and no running statistics: theta and the normalisation moments are arguments.
    Convolution weights lie in theta as (out, 3, 3, in), so that they are channels-last, which is the faster layout on
    CPU. The head comes last with one row a class, weight then bias, so that the number of classes is told by the
    length of theta. Pooling before the ReLU gives the same function as after it and leaves it a quarter of the work.

    Args:
        image_shape: Channels, height and width of an image; sides of at least 16 pixels.
        filters: Filters of every block; 32 in the paper.
        conv_bias: Whether convolutions have a bias, as the paper's do. Batch normalisation cancels it.
        unit_gamma: Start batch-norm's gamma at 1 instead of U(0, 1).
        bf16: Convolve in bfloat16, which is faster where the hardware has it. theta, moments and logits stay as they
            are.
        dropout: Share of the numbers behind each block that are set to 0 while the module is in training mode.
        unit_features: Let the head see features of one length, so that a head that starts at 0 compares by the cosine.
        mirror: In evaluation mode, let the head see the mean of the features of an image and of its mirror image; twice
            the work.

    References:
        Ravi & Larochelle 2017, section 5.1 (learner); eps 1e-3 from the authors' code.
    """

    eps = 1e-3
    length = sqrt(128)  # of features, at all sizes of images, so that the same rates suit their heads
    n_blocks = 4

    def __init__(
        self,
        image_shape: Sequence[int],
        filters: int = 32,
        conv_bias: bool = True,
        unit_gamma: bool = False,
        bf16: bool = False,
        dropout: float = 0.0,
        unit_features: bool = False,
        mirror: bool = False,
    ):
        super().__init__()
        channels, height, width = image_shape
        if min(height, width) < 2**self.n_blocks:
            raise UserError(f"images of {height}x{width} pixels are too small for Conv4: it needs at least 16x16")
        self.image_shape = (channels, height, width)
        self.filters = filters
        self.conv_bias, self.unit_gamma, self.bf16 = conv_bias, unit_gamma, bf16
        self.dropout, self.unit_features, self.mirror = dropout, unit_features, mirror
        self.n_features = filters * (height >> self.n_blocks) * (width >> self.n_blocks)
        self.n_moments = 2 * filters * self.n_blocks
        self._shapes: dict[str, tuple[int, ...]] = {}
        for block in range(1, self.n_blocks + 1):
            self._shapes[f"conv{block}.weight"] = (filters, 3, 3, channels if block == 1 else filters)
            if conv_bias:
                self._shapes[f"conv{block}.bias"] = (filters,)
            self._shapes[f"norm{block}.weight"] = (filters,)
            self._shapes[f"norm{block}.bias"] = (filters,)
        self.lengths = [prod(shape) for shape in self._shapes.values()]  # of theta's stretches, without the head
        self.n_body = sum(self.lengths)

    def layout(self, n_way: int) -> Layout:
        """Where each parameter lies in theta: name -> (slice, shape), in order, head last."""
        layout: Layout = {}
        start = 0
        for name, shape in (self._shapes | {"head": (n_way, self.n_features + 1)}).items():
            layout[name] = slice(start, start + prod(shape)), shape
            start += prod(shape)
        return layout

    def init(self, n_way: int, generator: torch.Generator) -> Float[Tensor, " n_params"]:
        """Draw theta as Torch7 does.

        Convolution and linear weights and biases are U(+-1/sqrt(fan_in)), batch-norm's beta is 0 and its gamma U(0, 1),
        or 1 with `unit_gamma`.
        """
        parts = []
        bound = 1.0
        for name, (_, shape) in self.layout(n_way).items():
            part = torch.rand(prod(shape), generator=generator)
            if name.startswith("norm"):
                if name.endswith("bias"):
                    part = torch.zeros_like(part)
                elif self.unit_gamma:
                    part = torch.ones_like(part)
            else:
                if len(shape) > 1:  # a bias has the bound of the weight before it; the head's row holds its own bias
                    bound = 1 / sqrt(self.n_features if name == "head" else prod(shape[1:]))
                part = (2 * part - 1) * bound
            parts.append(part)
        return torch.cat(parts)

    def features(
        self,
        theta: Float[Tensor, "*tasks n_params"],
        x: Float[Tensor, "*tasks n channels height width"],
        moments: Float[Tensor, "*tasks n_moments"] | None = None,
    ) -> tuple[Float[Tensor, "*tasks n n_features"], Float[Tensor, "*tasks n_moments"]]:
        """What the head sees; arguments and moments as in `forward`."""
        if moments is None:
            features, moments = _each_task(self._features, theta, x)
        else:
            features, _ = _each_task(self._features, theta, x, moments)
        return features, moments

    def forward(
        self,
        theta: Float[Tensor, "*tasks n_params"],
        x: Float[Tensor, "*tasks n channels height width"],
        moments: Float[Tensor, "*tasks n_moments"] | None = None,
    ) -> tuple[Float[Tensor, "*tasks n n_way"], Float[Tensor, "*tasks n_moments"]]:
        """Logits, and the moments by which the images were normalised.

        Args:
            theta: Parameters, one vector a task.
            x: Images, values in 0..1.
            moments: Per block the mean and the (biased) variance of each channel. Without them, those of `x` itself
                are used. Gradients flow through them either way.
        """
        features, moments = self.features(theta, x, moments)
        return _head(theta[..., self.n_body :], features), moments

    def unbiased(self, moments: Float[Tensor, "*tasks n_moments"], n_images: int) -> Float[Tensor, "*tasks n_moments"]:
        """Moments of a batch with n / (n - 1) on the variances, as Torch7's running averages take them."""
        pixels = [(self.image_shape[1] >> block) * (self.image_shape[2] >> block) for block in range(self.n_blocks)]
        n_images *= 1 + (self.mirror and not self.training)
        return moments * _unbiasing(tuple(n_images * n for n in pixels), self.filters, moments.dtype, moments.device)

    def initial_moments(self) -> Float[Tensor, " n_moments"]:
        """Where running averages start: mean 0, variance 1."""
        return torch.tensor([0.0, 1.0]).repeat_interleave(self.filters).repeat(self.n_blocks)

    def _features(self, theta: Tensor, x: Tensor, moments: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.mirror and not self.training:
            features, moments = self._embed(theta, torch.cat([x, x.flip(-1)]), moments)
            features = features.unflatten(0, (2, -1)).mean(0)
        else:
            features, moments = self._embed(theta, x, moments)
        if self.unit_features:
            features = F.normalize(features, dim=-1) * self.length
        return features, moments

    def _embed(self, theta: Tensor, x: Tensor, moments: Tensor | None) -> tuple[Tensor, Tensor]:
        dtype = torch.bfloat16 if self.bf16 else theta.dtype
        shape = blocks.Shape(self.n_blocks, self.image_shape[0], self.filters, self.conv_bias, self.eps, dtype)
        body, others = theta[: self.n_body], [x.to(theta.dtype), *([] if moments is None else [moments])]
        dropout = self.dropout if self.training else 0.0
        if not dropout and not x.requires_grad and kernels.can_block(theta, others, dtype, self.filters):
            x, moments = blocks.features(shape, body, x, moments)
            return x.flatten(1).to(theta.dtype), moments
        pairs = [None] * self.n_blocks if moments is None else moments.view(self.n_blocks, 2, self.filters).unbind()
        used = []
        x = x.to(dtype).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # channels-last
        for (weight, bias, gamma, beta), given in zip(shape.parts(body), pairs, strict=True):
            x = F.conv2d(x, weight.to(dtype), None if bias is None else bias.to(dtype), padding=1)
            x, mean, var = _block(x, gamma, beta, self.eps, given)
            x = F.dropout(x, dropout) if dropout else x
            used += [mean, var]
        return x.flatten(1).to(theta.dtype), torch.cat(used)


class Linear(nn.Module):
    """A linear head on features that come as images: (n_features, 1, 1), say. It normalises nothing.

    Args:
        image_shape: Channels, height and width of what comes in.
    """

    n_body = 0
    n_moments = 0

    def __init__(self, image_shape: Sequence[int]):
        super().__init__()
        channels, height, width = image_shape
        self.image_shape = (channels, height, width)
        self.n_features = prod(image_shape)

    def layout(self, n_way: int) -> Layout:
        """As `Conv4.layout`: the head is all."""
        shape = n_way, self.n_features + 1
        return {"head": (slice(0, prod(shape)), shape)}

    def init(self, n_way: int, generator: torch.Generator) -> Float[Tensor, " n_params"]:
        """As `Conv4.init`: U(+-1/sqrt(n_features))."""
        return (2 * torch.rand(n_way * (self.n_features + 1), generator=generator) - 1) / sqrt(self.n_features)

    def features(
        self, theta: Tensor, x: Float[Tensor, "*tasks n channels height width"], moments: Tensor | None = None
    ) -> tuple[Float[Tensor, "*tasks n n_features"], Float[Tensor, "*tasks 0"]]:
        """The images, flat, and no moments."""
        return x.flatten(-3), theta[..., :0]

    def forward(
        self,
        theta: Float[Tensor, "*tasks n_params"],
        x: Float[Tensor, "*tasks n channels height width"],
        moments: Tensor | None = None,
    ) -> tuple[Float[Tensor, "*tasks n n_way"], Float[Tensor, "*tasks 0"]]:
        """Logits, and no moments."""
        features, moments = self.features(theta, x)
        return _head(theta, features), moments

    def unbiased(self, moments: Tensor, n_images: int) -> Tensor:
        """There are none."""
        return moments

    def initial_moments(self) -> Float[Tensor, " 0"]:
        """There are none."""
        return torch.zeros(0)


def set_precision(module: nn.Module, bf16: bool) -> None:
    """Let all Conv4 in a module convolve in bfloat16, or in float32."""
    for part in module.modules():
        if isinstance(part, Conv4):
            part.bf16 = bf16


def layers(layout: Layout) -> dict[str, slice]:
    """The stretch of theta that each layer of a learner takes: its convolution and normalisation, or its head."""
    places: dict[str, slice] = {}
    for name, (place, _) in layout.items():
        layer = name.split(".")[0].replace("norm", "conv")
        start = places[layer].start if layer in places else place.start
        places[layer] = slice(start, place.stop)
    return places


def _head(theta: Tensor, features: Tensor) -> Float[Tensor, "*tasks n n_way"]:
    """Logits by the end of theta, where there is a row a class: weight, then bias."""
    rows = theta.unflatten(-1, (-1, features.shape[-1] + 1))
    return features @ rows[..., :-1].mT + rows[..., -1].unsqueeze(-2)


@cache  # so that on a GPU no inner step waits for it
def _unbiasing(numbers: tuple[int, ...], filters: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """1 for means and n / (n - 1) for variances, of blocks with n numbers a channel."""
    factors = [factor for n in numbers for factor in (1.0, n / (n - 1))]
    return torch.tensor(factors, dtype=dtype, device=device).repeat_interleave(filters)


def _block(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, moments: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Batch normalisation by given moments or those of `x`, 2x2 max-pool, ReLU; the arithmetic is gamma's."""
    dtype, x = x.dtype, x.to(gamma.dtype)
    if moments is None:
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    else:
        mean, var = moments.unbind()
    scale = gamma * (var + eps).rsqrt()
    x = x * scale.view(-1, 1, 1) + (beta - mean * scale).view(-1, 1, 1)
    return F.relu(F.max_pool2d(x, 2)).to(dtype), mean, var


def _each_task(function: Callable[..., tuple[Tensor, ...]], *args: Tensor) -> tuple[Tensor, ...]:
    """Apply a function of one task to any number of leading task dimensions, told by theta, the first argument.

    On CPU a loop over tasks beats vmap and grouped convolutions about 2 to 1; elsewhere tasks go together.
    """
    theta = args[0]
    tasks = theta.shape[:-1]
    if not tasks:
        return function(*args)
    flat = [arg.flatten(0, len(tasks) - 1) for arg in args]
    if theta.device.type == "cpu" or prod(tasks) == 1:
        results = [function(*task) for task in zip(*flat, strict=True)]
        stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    else:
        stacked = torch.vmap(function, randomness="different")(*flat)
    return tuple(parts.unflatten(0, tasks) for parts in stacked)
