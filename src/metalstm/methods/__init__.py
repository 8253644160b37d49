"""Ways to learn from a support set."""

from typing import overload

import torch

from metalstm.learners import Conv4, Linear
from metalstm.methods.base import Adapted, Method
from metalstm.methods.finetune import HeadOnly
from metalstm.methods.gradient import GradientMethod, Step
from metalstm.methods.metric import MatchingNet, PixelNearestNeighbor, Pretrained
from metalstm.optimizers import RULES, MetaLSTM
from metalstm.recipes import (
    FinetuneSettings,
    MatchingNetSettings,
    MetaLSTMSettings,
    PretrainedSettings,
    RunConfig,
    Settings,
)

__all__ = [
    "Adapted",
    "GradientMethod",
    "HeadOnly",
    "MatchingNet",
    "Method",
    "PixelNearestNeighbor",
    "Pretrained",
    "Step",
    "build",
]


@overload
def build(config: RunConfig[MetaLSTMSettings]) -> GradientMethod: ...
@overload
def build(config: RunConfig) -> Method: ...
def build(config: RunConfig) -> Method:
    """The method that a configuration describes, with weights drawn by its seed."""
    settings: Settings = config.settings
    generator = torch.Generator().manual_seed(config.seed)
    learner = Conv4(
        config.image_shape,
        settings.filters,
        settings.conv_bias,
        settings.unit_gamma,
        settings.precision == "bf16",
        settings.dropout if isinstance(settings, MatchingNetSettings) else 0.0,
        isinstance(settings, MetaLSTMSettings) and settings.unit_features,
        settings.mirror,
    )
    match settings:
        case MetaLSTMSettings():
            return GradientMethod(
                learner,
                MetaLSTM(
                    settings.hidden_size,
                    settings.forget_bias,
                    settings.input_bias,
                    learner.lengths if settings.layer_rates else None,
                    settings.body_factor,
                    generator,
                ),
                config.n_way,
                epochs=settings.epochs,
                batch_size=settings.batch_size,
                order=settings.order,
                query_norm=settings.query_norm,
                train_query_norm=settings.train_query_norm,
                norm_momentum=settings.norm_momentum,
                keep_moments=settings.keep_moments,
                divide_gradient=settings.divide_gradient,
                query_scale=settings.query_scale,
                shared_head=settings.shared_head,
                recompute=settings.recompute,
                generator=generator,
            )
        case MatchingNetSettings():
            return MatchingNet(learner, settings.class_score, settings.scale, settings.fce, generator)
        case PretrainedSettings():
            n_classes = config.n_classes * (4 if config.training.rotations else 1)
            return Pretrained(learner, n_classes, generator)
        case _:
            return _finetune(learner, settings, config.n_way, generator)


def _finetune(
    learner: Conv4, settings: FinetuneSettings, n_way: int, generator: torch.Generator
) -> GradientMethod | HeadOnly:
    """Not pre-trained yet: `Pretrained` has the weights."""
    trained = Linear((learner.n_features, 1, 1)) if settings.head_only else learner
    method = GradientMethod(
        trained,
        RULES[settings.rule](settings.lr, settings.decay),
        n_way,
        epochs=settings.steps,
        batch_size=None,
        norm_momentum=0.1,
        generator=generator,
    )
    if not settings.head_only:
        return method
    return HeadOnly(learner, learner.init(0, generator), learner.initial_moments(), method)
