"""Ways to learn from a support set."""

import torch

from metalstm.learners import Conv4
from metalstm.methods.base import Adapted, Method
from metalstm.methods.gradient import GradientMethod, Step
from metalstm.methods.metric import PixelNearestNeighbor
from metalstm.optimizers import MetaLSTM
from metalstm.recipes import RunConfig

__all__ = ["Adapted", "GradientMethod", "Method", "PixelNearestNeighbor", "Step", "build"]


def build(config: RunConfig) -> GradientMethod:
    """The method that a configuration describes, with weights drawn by its seed."""
    settings = config.settings
    bf16 = settings.precision == "bf16"
    generator = torch.Generator().manual_seed(config.seed)
    return GradientMethod(
        Conv4(config.image_shape, settings.filters, settings.conv_bias, settings.unit_gamma, bf16),
        MetaLSTM(settings.hidden_size, settings.forget_bias, settings.input_bias, generator),
        config.n_way,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        order=settings.order,
        query_norm=settings.query_norm,
        train_query_norm=settings.train_query_norm,
        norm_momentum=settings.norm_momentum,
        divide_gradient=settings.divide_gradient,
        shared_head=settings.shared_head,
        recompute=settings.recompute,
        generator=generator,
    )
