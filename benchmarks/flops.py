"""Floating-point operations of an episode of the Meta-Learner LSTM, by formula.

Convolutions and matrix products only, two operations a multiply-add; what is computed a second time to save memory
does not count, nor does what is element by element (normalization, gates' non-linearities, Adam).
"""

from math import ceil

from metalstm.learners import Conv4
from metalstm.methods import RunConfig


def layers(image_shape: tuple[int, int, int], n_way: int, filters: int = 32) -> list[int]:
    """Conv4 forward on one image: each of the four convolutions, then the head."""
    channels, height, width = image_shape
    flops = []
    for _ in range(Conv4.n_blocks):
        flops.append(2 * height * width * filters * 9 * channels)
        channels, height, width = filters, height // 2, width // 2
    return [*flops, 2 * filters * height * width * n_way]


def forward_backward(layers: list[int]) -> int:
    """Forward and backward: gradients of weights and of inputs cost a forward pass each.

    Nobody needs the gradient of the images.
    """
    return 3 * sum(layers) - layers[0]


def hessian_vector(layers: list[int]) -> int:
    """What second order adds to one gradient of the learner: the backward pass of its forward and backward pass.

    That is the Hessian times the meta-gradient's vector v. A layer is y = W x; its backward pass is
    gx = W' gy and gW = gy x'. With vgx and vW what flows to gx and gW, the backward pass of this makes

        W vgx + vW x        for gy        (2 products)
        gy vgx' and vW' gy  for W and x   (2 products)

    and then the backward pass of y = W x once more, for W and for x (2 products). Each of the six costs as much as
    the layer's forward pass. The first layer's x are the images: gx, vgx and all gradients for x fall away, and two
    products remain, vW x and the last one for W.
    """
    return 6 * sum(layers[1:]) + 2 * layers[0]


def meta_learner(n_params: int, hidden_size: int) -> int:
    """One step of the LSTM and its two gates for all coordinates, forward and, at twice the cost, backward."""
    multiply_adds = 4 * hidden_size * (4 + hidden_size) + 2 * (hidden_size + 2)
    return 3 * 2 * n_params * multiply_adds


def training_episode(config: RunConfig) -> int:
    """One meta-training episode, forward and backward.

    Inner steps: the learner's gradient on the support set, as often as there are epochs, and in second order its
    Hessian-vector product. The meta-learner's steps. The queries, forward and backward. Where queries are normalized
    by the support set's moments, the convolutions on the support set once more, forward and backward.
    """
    settings, hidden_size = config.settings, config.optimizer_settings.hidden_size
    learner = Conv4(config.image_shape, config.learner_settings)
    costs = layers(config.image_shape, config.n_way, learner.filters)
    n_support = config.n_way * config.n_shot
    n_params = learner.n_body + config.n_way * (learner.n_features + 1)
    n_steps = settings.epochs * ceil(n_support / (settings.batch_size or n_support))
    gradient = forward_backward(costs) + (hessian_vector(costs) if settings.order == 2 else 0)
    moments = forward_backward(costs[:-1]) if settings.train_query_norm == "support" else 0
    return (
        settings.epochs * n_support * gradient
        + n_steps * meta_learner(n_params, hidden_size)
        + config.n_way * config.n_query * forward_backward(costs)
        + n_support * moments
    )
