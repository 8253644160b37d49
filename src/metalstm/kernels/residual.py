"""A residual network's blocks on a CPU, differentiated by hand.

`learners/resnet12.py` computes the same in PyTorch. Here a pass over all blocks is one node of the graph; it keeps the
results of the convolutions and nothing else. Names as in `blocks.py`; numbers are equations of DERIVATION.md.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from metalstm.kernels.calls import LANES, can_read, kernel
from metalstm.kernels.convolution import convolution, convolution_backward

SIDES = {"conv1": 3, "conv2": 3, "conv3": 3, "shortcut": 1}  # of the convolutions of a block


class Layer(NamedTuple):
    """A convolution and the batch normalization of its result."""

    weight: Float[Tensor, "out in side side"]
    gamma: Float[Tensor, " out"]
    beta: Float[Tensor, " out"]


class Shape(NamedTuple):
    """The parts of theta, block by block, layer by layer as in `SIDES`: a weight (out, side, side, in), gamma, beta."""

    channels: int  # of the images
    widths: Sequence[int]  # filters of each block
    eps: float
    slope: float  # of the leaky ReLU below 0
    dtype: torch.dtype  # in which images are stored and convolved

    def blocks(self, theta: Tensor) -> list[list[Layer]]:
        """Views of the parameters of each layer of each block."""
        shapes = self.weights()
        sizes = [n for out, side, _, inputs in shapes for n in (out * side * side * inputs, out, out)]
        flat = theta.split(sizes)  # one backward node
        layers = [
            Layer(weight.view(shape).permute(0, 3, 1, 2), gamma, beta)
            for shape, weight, gamma, beta in zip(shapes, flat[::3], flat[1::3], flat[2::3], strict=True)
        ]
        return [layers[k : k + len(SIDES)] for k in range(0, len(layers), len(SIDES))]

    def weights(self) -> list[tuple[int, int, int, int]]:
        """The shapes of all weights, in theta."""
        inputs = [self.channels, *self.widths[:-1]]
        return [
            (width, side, side, width if name in ("conv2", "conv3") else of_block)
            for of_block, width in zip(inputs, self.widths, strict=True)
            for name, side in SIDES.items()
        ]

    def moments(self, flat: Tensor) -> list[Tensor]:
        """Views of the mean and the variance of each layer of each block: (layers, 2, width)."""
        parts = flat.split([len(SIDES) * 2 * width for width in self.widths], -1)
        return [part.unflatten(-1, (len(SIDES), 2, -1)) for part in parts]


def can_add(shape: Shape, theta: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether the kernels take these widths, images stored as `shape.dtype`, and `others` of theta's type."""
    takes = shape.dtype == theta.dtype or (shape.dtype, theta.dtype) == (torch.bfloat16, torch.float32)
    fit = all(width % LANES == 0 for width in shape.widths)
    return fit and takes and not torch.is_autocast_enabled("cpu") and can_read(theta, *others)


def features(
    shape: Shape,
    theta: Float[Tensor, " n_body"],
    x: Float[Tensor, "n channels height width"],
    moments: Float[Tensor, " n_moments"] | None,
    plain: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]],
) -> tuple[Float[Tensor, "n filters small_height small_width"], Float[Tensor, " n_moments"]]:
    """The output of the last block. Differentiable in theta and the moments, any number of times; not in x.

    Args:
        shape: The parts of theta.
        theta: Parameters of all blocks.
        x: Images.
        moments: Per layer the mean and the biased variance of each filter; None for those of the images.
        plain: The same function of theta and moments in PyTorch, for derivatives of derivatives.

    Returns:
        The features, and the moments that normalized the images.
    """
    x = x.to(shape.dtype, memory_format=torch.channels_last)
    given = None if moments is None else moments.contiguous()
    y, used = _Features.apply(theta.contiguous(), given, x, shape, plain)  # pyright: ignore[reportGeneralTypeIssues]
    return y, used if moments is None else moments


class _Features(Function):
    """y and the moments of the images; the latter are empty if moments were given."""

    @staticmethod
    def forward(
        ctx: Any, theta: Tensor, given: Tensor | None, x: Tensor, shape: Shape, plain: Any
    ) -> tuple[Tensor, Tensor]:
        moments = theta.new_empty(2 * len(SIDES) * sum(shape.widths)) if given is None else given
        keep: list[Tensor] | None = [] if any(ctx.needs_input_grad) else None
        y = _forward(shape, theta, x, moments, given is not None, keep)
        ctx.shape, ctx.plain = shape, plain
        ctx.save_for_backward(theta, given, moments if given is None else None, *(keep or []))
        return y, moments if given is None else theta.new_empty(0)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor, d_moments: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        theta, given, used, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # it is to be differentiated again
            inputs = [each for each, needs in zip((theta, given), ctx.needs_input_grad, strict=False) if needs]
            y, moments = ctx.plain(theta, given)
            outputs, d_outputs = ([y], [d_y]) if given is not None else ([y, moments], [d_y, d_moments])
            found = iter(torch.autograd.grad(outputs, inputs, d_outputs, create_graph=True))
            return *(next(found) if needs else None for needs in ctx.needs_input_grad[:2]), None, None, None
        moments, is_given = (used, False) if given is None else (given, True)
        d_moments = torch.empty_like(moments) if is_given else d_moments.contiguous()
        d_theta = _backward(ctx.shape, theta, moments, kept, d_y, d_moments, is_given)
        return d_theta, d_moments if is_given else None, None, None, None


def _forward(shape: Shape, theta: Tensor, x: Tensor, moments: Tensor, given: bool, keep: list[Tensor] | None) -> Tensor:
    """The last y; `keep` gets x, z1, y1, z2, y2, z3 and the shortcut's z of each block."""
    for layers, pairs in zip(shape.blocks(theta), shape.moments(moments), strict=True):
        first, second, third, shortcut = layers
        z1 = convolution(x, first.weight, None)
        y1 = _sum_forward(shape, [z1], [first], pairs[:1], given)
        z2 = convolution(y1, second.weight, None)
        y2 = _sum_forward(shape, [z2], [second], pairs[1:2], given)
        z3, z = convolution(y2, third.weight, None), convolution(x, shortcut.weight, None)
        if keep is not None:
            keep += [x, z1, y1, z2, y2, z3, z]
        x = _sum_forward(shape, [z3, z], [third, shortcut], pairs[2:], given, pool=2)
    return x


_KEPT = 7  # tensors per block


def _backward(
    shape: Shape, theta: Tensor, moments: Tensor, kept: list[Tensor], d_y: Tensor, d_moments: Tensor, given: bool
) -> Tensor:
    """d_theta; `d_moments` is written if the moments were given."""
    d_theta = torch.empty_like(theta)
    blocks, d_blocks = shape.blocks(theta), shape.blocks(d_theta)
    pairs, d_pairs = shape.moments(moments), shape.moments(d_moments)
    d_y = d_y.to(shape.dtype).contiguous(memory_format=torch.channels_last)
    for k in reversed(range(len(blocks))):
        x, z1, y1, z2, y2, z3, z = kept[_KEPT * k : _KEPT * (k + 1)]

        def sums(zs: list[Tensor], places: slice, d_y: Tensor, pool: int = 1, k: int = k) -> list[Tensor]:
            layers, d_layers = blocks[k][places], d_blocks[k][places]
            return _sum_backward(shape, zs, layers, d_layers, pairs[k][places], d_pairs[k][places], d_y, given, pool)

        def convolved(layer: int, d_z: Tensor, x: Tensor, need_x: bool = True, k: int = k) -> Any:
            return convolution_backward(d_z, x, blocks[k][layer].weight, need_x, d_blocks[k][layer].weight, None)

        d_z3, d_z = sums([z3, z], slice(2, 4), d_y, pool=2)
        (d_z2,) = sums([z2], slice(1, 2), convolved(2, d_z3, y2))
        (d_z1,) = sums([z1], slice(0, 1), convolved(1, d_z2, y1))
        d_y, d_x = convolved(0, d_z1, x, k > 0), convolved(3, d_z, x, k > 0)
        if k:
            d_y += d_x
    return d_theta


def _sum_forward(
    shape: Shape, zs: list[Tensor], layers: list[Layer], moments: Tensor, given: bool, pool: int = 1
) -> Tensor:
    """Leaky ReLU of the max-pool of the sum of normalized zs: (61) and (62). Writes the moments unless given."""
    n, channels, height, width = zs[0].shape
    y = zs[0].new_empty(n, height // pool, width // pool, channels).permute(0, 3, 1, 2)
    kernel("sum_forward")(**_arguments(shape, zs, layers, moments, given, pool), y=y)
    return y


def _sum_backward(
    shape: Shape,
    zs: list[Tensor],
    layers: list[Layer],
    d_layers: list[Layer],
    moments: Tensor,
    d_moments: Tensor,
    d_y: Tensor,
    given: bool,
    pool: int,
) -> list[Tensor]:
    """Gradients in zs: (63) and (64). Writes those in gamma and beta, and in the moments if they were given."""
    d_zs = [torch.empty_like(z) for z in zs]
    d_gamma, d_beta = (torch.empty(len(zs), zs[0].shape[1], dtype=moments.dtype) for _ in range(2))
    kernel("sum_backward")(
        **_arguments(shape, zs, layers, moments, given, pool),
        d_y=d_y,
        d_moments=d_moments,
        d_gamma=d_gamma,
        d_beta=d_beta,
        d_z=d_zs[0],
        d_other=d_zs[-1],
    )
    for layer, of_gamma, of_beta in zip(d_layers, d_gamma, d_beta, strict=True):
        layer.gamma.copy_(of_gamma)
        layer.beta.copy_(of_beta)
    return d_zs


def _arguments(
    shape: Shape, zs: list[Tensor], layers: list[Layer], moments: Tensor, given: bool, pool: int
) -> dict[str, Any]:
    """What both kernels take."""
    n, channels, height, width = zs[0].shape
    sizes = {"n": n, "height": height, "width": width, "channels": channels, "pool": pool, "terms": len(zs)}
    gamma, beta = (torch.stack(each) for each in zip(*(layer[1:] for layer in layers), strict=True))
    numbers = {"given": given, "eps": shape.eps, "slope": shape.slope}
    return sizes | numbers | {"z": zs[0], "other": zs[-1], "gamma": gamma, "beta": beta, "moments": moments}
