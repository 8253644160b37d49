"""ResNet-12 against torch's own modules, in float64, and its settings."""

import pytest
import torch
from torch import nn

from metalstm.errors import UserError
from metalstm.learners import ResNet12
from reference.resnet12 import ResNet12 as Reference
from tiny import random


@pytest.mark.parametrize(("filters", "growth"), [(4, "double"), (4, "published"), (16, "double")])
def test_it_is_the_network_of_its_authors(filters, growth):
    learner = ResNet12((3, 16, 18), ResNet12.Settings(filters=filters, growth=growth))
    body = learner.init_body(torch.Generator().manual_seed(0)).double()
    body = (body + 0.1 * random(len(body), seed=1)).requires_grad_()
    reference, x = Reference(3, learner.widths).double(), random(4, 3, 16, 18, seed=2).sigmoid()
    reference.set_body(body)
    features, moments = learner.features(body, x)
    expected = reference(x)
    torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-11)
    weights = random(*features.shape, seed=3)
    (grad,) = torch.autograd.grad((features * weights).sum(), body)
    (expected * weights).sum().backward()
    torch.testing.assert_close(grad, torch.cat(reference.body_gradient()), rtol=1e-8, atol=1e-9)

    norms = [part for part in reference.modules() if isinstance(part, nn.BatchNorm2d)]  # running averages after a step
    running = [each for norm in norms for each in (norm.running_mean, norm.running_var) if each is not None]
    ours = learner.initial_moments().double().lerp(learner.unbiased(moments, 4), 0.1)
    torch.testing.assert_close(ours, torch.cat(running), rtol=1e-9, atol=1e-11)
    reference.eval()
    torch.testing.assert_close(learner.features(body, x, ours)[0], reference(x), rtol=1e-9, atol=1e-11)


def test_the_published_network_has_its_published_size():
    learner = ResNet12((3, 84, 84), ResNet12.Settings(filters=64, growth="published"))
    assert learner.widths == [64, 160, 320, 640]
    assert learner.n_features == 640
    assert learner.n_body == 12_424_320
    assert ResNet12.tag(learner.settings) == "resnet12-64f-published"


def test_mirror_images_have_the_same_features():
    learner = ResNet12((3, 16, 16), ResNet12.Settings(filters=4, mirror=True, unit_features=True)).double()
    body, x = learner.init_body(torch.Generator().manual_seed(0)).double(), random(3, 3, 16, 16)
    moments = learner.initial_moments().double()
    features, turned = learner.features(body, x, moments)[0], learner.features(body, x.flip(-1), moments)[0]
    torch.testing.assert_close(features, turned, rtol=1e-12, atol=1e-12)
    assert not torch.equal(features, learner.features(body, x, moments, train=True)[0])


def test_small_images_are_refused():
    with pytest.raises(UserError) as error:
        ResNet12((3, 16, 15))
    assert str(error.value) == "images of 16x15 pixels are too small for ResNet-12: it needs at least 16x16"
