"""Random changes of training images, drawn anew for each mini-batch from torch's own generator."""

from dataclasses import replace
from math import pi
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from metalstm.episodes import Episode, Labeled
from metalstm.settings import TrainingSettings

B = TypeVar("B", Episode, Labeled)

Images = Float[Tensor, "n channels height width"]
GRAY = (0.299, 0.587, 0.114)  # ITU-R BT.601


def augmented(batch: B, settings: TrainingSettings) -> B:
    """A batch with all its images changed at random, as far as the settings say; each image for itself."""
    if not (settings.crop or settings.jitter or settings.affine or settings.elastic):
        return batch
    if isinstance(batch, Labeled):
        return replace(batch, x=_change(batch.x, settings))
    support, query = batch.support, batch.query
    return Episode(
        replace(support, x=_change(support.x, settings)),
        replace(query, x=_change(query.x, settings)),
    )


def _change(x: Float[Tensor, "*tasks n channels height width"], settings: TrainingSettings) -> Tensor:
    images = x.flatten(0, -4)
    if settings.affine or settings.elastic:
        images = warp(images, settings.affine, settings.elastic)
    if settings.crop:
        images = crop(images, settings.crop)
    if settings.jitter:
        images = jitter(images, settings.jitter)
    return images.view(x.shape)


def crop(x: Images, padding: int) -> Images:
    """Pad with zeros, then cut out a random window of the old size from each image."""
    n, _, height, width = x.shape
    padded = F.pad(x, (padding,) * 4).permute(0, 2, 3, 1)
    top, left = torch.randint(2 * padding + 1, (2, n), device=x.device)
    windows = padded.unfold(1, height, 1).unfold(2, width, 1).movedim(3, -1)
    return windows[torch.arange(n, device=x.device), top, left].permute(0, 3, 1, 2)


def jitter(x: Images, share: float) -> Images:
    """Multiply brightness, contrast and (of color images) saturation by a random factor within 1 +- share."""
    factors = 1 + share * (2 * torch.rand(3, len(x), 1, 1, 1, device=x.device) - 1)
    x = (x * factors[0]).clamp(0, 1)
    x = x.lerp(_gray(x).mean((-2, -1), keepdim=True), 1 - factors[1]).clamp(0, 1)
    if x.shape[1] == 3:
        x = x.lerp(_gray(x), 1 - factors[2]).clamp(0, 1)
    return x


def warp(x: Images, affine: float, elastic: float) -> Images:
    """Turn, scale, shear and shift each image at random, and bend it; zeros come in from outside.

    Args:
        x: The images.
        affine: Strength: turns by up to 180 degrees times this, scales and shears by up to this share, shifts by up to
            half this share of the side.
        elastic: Standard deviation, in pixels, of the shifts of 4x4 points between which the shift is interpolated.

    References:
        Simard, Steinkraus & Platt 2003 for the elastic changes.
    """
    n, _, height, width = x.shape
    random = 2 * torch.rand(7, n, device=x.device) - 1
    angle = affine * pi * random[0]
    scale_x, scale_y, shear_x, shear_y = 1 + affine * random[1], 1 + affine * random[2], *(affine * random[3:5])
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(n, 2, 2)
    stretch = torch.stack([scale_x, shear_x, shear_y, scale_y], -1).view(n, 2, 2)
    matrix = torch.cat([turn @ stretch, affine * random[5:].T[:, :, None]], -1)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    if elastic:
        shifts = torch.randn(n, 2, 4, 4, device=x.device) * elastic
        shifts = F.interpolate(shifts, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
        grid = grid + shifts * shifts.new_tensor([2 / width, 2 / height])
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _gray(x: Images) -> Float[Tensor, "n 1 height width"]:
    if x.shape[1] != 3:
        return x
    return torch.einsum("nchw,c->nhw", x, x.new_tensor(GRAY)).unsqueeze(1)
