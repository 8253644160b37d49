"""The linear learner against torch's own linear layer."""

from math import prod, sqrt

import torch
import torch.nn.functional as F

from metalstm.learners import LearnerSettings, Linear
from tiny import random

SHAPE = (2, 3, 4)


def test_it_is_a_linear_layer_on_pixels():
    learner, x, y = Linear(SHAPE), random(6, *SHAPE), torch.arange(6) % 4
    theta = random(4 * (prod(SHAPE) + 1), seed=1).requires_grad_()
    layer = torch.nn.Linear(prod(SHAPE), 4).double()
    rows = theta.detach().view(4, -1)
    layer.load_state_dict({"weight": rows[:, :-1], "bias": rows[:, -1]})
    logits, moments = learner(theta, x)
    torch.testing.assert_close(logits, layer(x.flatten(1)), rtol=1e-12, atol=1e-12)
    assert moments.shape == (0,)
    (grad,) = torch.autograd.grad(F.cross_entropy(logits, y), theta)
    F.cross_entropy(layer(x.flatten(1)), y).backward()
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    expected = torch.column_stack([layer.weight.grad, layer.bias.grad]).flatten()
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-12)


def test_its_head_is_all_that_it_has():
    learner = Linear.build(LearnerSettings(), SHAPE, torch.Generator())
    theta = learner.init(5, torch.Generator().manual_seed(0))
    assert learner.n_body == len(learner.init_body(torch.Generator())) == learner.n_moments == 0
    assert len(theta) == 5 * (prod(SHAPE) + 1)
    assert list(learner.layers(5)) == ["head"]
    scaled = theta * sqrt(prod(SHAPE))
    assert 0.9 < scaled.abs().max() <= 1 + 1e-6
    assert scaled.min() < -0.9
