"""Conv4 against torch's own modules, in float64."""

import hashlib
from itertools import product
from math import prod, sqrt

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metalstm.errors import UserError
from metalstm.learners import Conv4, set_precision
from reference.conv4 import Conv4 as ReferenceConv4

N_WAY = 4
# Sides that halve evenly, sides that don't, one pixel left, several left, with and without biases.
CASES = [((3, 16, 16), 5, True), ((1, 28, 21), 6, True), ((3, 35, 50), 4, False), ((2, 32, 32), 3, False)]


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(image_shape=(2, 19, 24), filters=4, conv_bias=True, tasks=(), n=6, seed=0):
    """A learner, random theta in which no part is zero, and images."""
    learner = Conv4(image_shape, Conv4.Settings(filters=filters, conv_bias=conv_bias))
    n_params = max(part.stop for part, _ in learner.layout(N_WAY).values())
    theta = 0.5 * random(*tasks, n_params, seed=seed)
    return learner, theta, random(*tasks, n, *image_shape, seed=seed + 1)


def random_moments(learner: Conv4, tasks: tuple[int, ...] = ()) -> Tensor:
    """Means around 0 and variances in 0.5..1.5."""
    pairs = 0.3 * random(*tasks, 4, 2, learner.filters, seed=7)
    pairs[..., 1, :] = 0.5 + torch.sigmoid(pairs[..., 1, :])
    return pairs.flatten(-3)


@pytest.mark.parametrize(("image_shape", "filters", "conv_bias"), CASES)
def test_forward_and_gradient_equal_modules(image_shape, filters, conv_bias):
    learner, theta, x = make(image_shape, filters, conv_bias)
    reference = ReferenceConv4(image_shape, N_WAY, filters, conv_bias)
    y = torch.arange(len(x)) % N_WAY
    theta.requires_grad_()
    logits, moments = learner(theta, x)
    expected = reference.logits(theta, x)
    close(logits, expected)
    close(moments, reference.moments(theta, x))
    (grad,) = torch.autograd.grad(F.cross_entropy(logits, y), theta)
    (expected_grad,) = torch.autograd.grad(F.cross_entropy(expected, y), theta)
    close(grad, expected_grad)
    assert expected_grad.norm() > 0.1


@pytest.mark.parametrize(("image_shape", "filters", "conv_bias"), CASES)
def test_fixed_moments_equal_modules(image_shape, filters, conv_bias):
    learner, theta, x = make(image_shape, filters, conv_bias)
    reference = ReferenceConv4(image_shape, N_WAY, filters, conv_bias)
    moments = random_moments(learner).requires_grad_()
    theta.requires_grad_()
    logits, returned = learner(theta, x, moments)
    expected = reference.fixed_logits(theta, x, moments)
    close(logits, expected)
    assert returned is moments
    gradients = zip(
        torch.autograd.grad(logits.square().sum(), (theta, moments)),
        torch.autograd.grad(expected.square().sum(), (theta, moments)),
        strict=True,
    )
    for grad, expected_grad in gradients:
        close(grad, expected_grad, 1e-11)
        assert expected_grad.norm() > 0.1
    assert not torch.allclose(logits, learner(theta, x)[0], rtol=0.01, atol=0.01)


def test_fixed_moments_equal_batchnorm_in_eval_mode():
    learner, theta, x = make()
    reference = ReferenceConv4((2, 19, 24), N_WAY, 4)
    moments = random_moments(learner)
    for norm, (mean, var) in zip(reference.norms(), moments.view(4, 2, -1), strict=True):
        norm.running_mean, norm.running_var = mean, var
    close(learner(theta, x, moments)[0], reference.running_logits(theta, x))


def test_own_moments_change_nothing():
    learner, theta, x = make()
    logits, moments = learner(theta, x)
    close(learner(theta, x, moments)[0], logits)
    close(learner.features(theta, x, moments)[0], learner.features(theta, x)[0])


def test_gradients_flow_through_moments():
    learner, theta, x = make()
    theta.requires_grad_()
    moments = learner(theta, x)[1]
    expected = ReferenceConv4((2, 19, 24), N_WAY, 4).moments(theta, x)
    weights = random(learner.n_moments, seed=3)
    (grad,) = torch.autograd.grad(weights @ moments, theta)
    (expected_grad,) = torch.autograd.grad(weights @ expected, theta)
    close(grad, expected_grad)


def test_moments_gradcheck():
    learner, theta, x = make((1, 16, 16), filters=2, n=3)
    assert torch.autograd.gradcheck(lambda t: learner(t, x)[1], theta.requires_grad_(), atol=1e-6, rtol=1e-6)


def test_second_derivative_equals_central_difference():
    learner, theta, x = make(filters=3)
    y = torch.arange(len(x)) % N_WAY

    def gradient(theta: Tensor) -> Tensor:
        theta = theta if theta.requires_grad else theta.requires_grad_()
        return torch.autograd.grad(F.cross_entropy(learner(theta, x)[0], y), theta, create_graph=True)[0]

    for seed in range(5):
        direction, eps = F.normalize(random(len(theta), seed=10 + seed), dim=0), 1e-6
        leaf = theta.clone().requires_grad_()
        (product_,) = torch.autograd.grad(gradient(leaf) @ direction, leaf)
        difference = (gradient(theta + eps * direction) - gradient(theta - eps * direction)).detach() / (2 * eps)
        assert (product_ - difference).norm() < 1e-6 * product_.norm()


@pytest.mark.parametrize("tasks", [(), (3,), (2, 3)])
def test_batch_of_tasks_equals_loop(tasks):
    learner, theta, x = make((2, 17, 16), filters=3, tasks=tasks, n=5)
    fixed = random_moments(learner, tasks) * (1 + 0.1 * random(*tasks, learner.n_moments, seed=5).tanh())
    logits, moments = learner(theta, x)
    features, _ = learner.features(theta, x)
    fixed_logits, _ = learner(theta, x, fixed)
    assert logits.shape == (*tasks, 5, N_WAY)
    assert features.shape == (*tasks, 5, learner.n_features)
    assert moments.shape == (*tasks, learner.n_moments)
    for index in product(*map(range, tasks)):
        one_logits, one_moments = learner(theta[index], x[index])
        close(logits[index], one_logits)
        close(moments[index], one_moments)
        close(features[index], learner.features(theta[index], x[index])[0])
        close(fixed_logits[index], learner(theta[index], x[index], fixed[index])[0])


def test_head_is_one_row_a_class():
    learner, theta, x = make()
    logits, _ = learner(theta, x)
    features, _ = learner.features(theta, x)
    head_slice, shape = learner.layout(N_WAY)["head"]
    for label, row in enumerate(theta[head_slice].view(shape)):
        close(logits[:, label], features @ row[:-1] + row[-1])


@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 4),
    height=st.integers(16, 90),
    width=st.integers(16, 90),
    filters=st.integers(1, 40),
    n_way=st.integers(1, 20),
    conv_bias=st.booleans(),
)
def test_layout_tiles_theta(channels, height, width, filters, n_way, conv_bias):
    learner = Conv4((channels, height, width), Conv4.Settings(filters=filters, conv_bias=conv_bias))
    reference = ReferenceConv4((channels, height, width), n_way, filters, conv_bias)
    layout = learner.layout(n_way)
    end = 0
    for part, shape in layout.values():
        assert part.start == end
        assert part.stop - part.start == prod(shape) > 0
        assert part.step is None
        end = part.stop
    assert end == sum(value.numel() for value in reference.parameters())
    assert end == len(learner.init(n_way, torch.Generator().manual_seed(0)))
    assert list(layout)[-1] == "head"
    assert layout["head"][1] == (n_way, learner.n_features + 1)
    assert learner.n_moments == sum(norm.num_features * 2 for norm in reference.norms())


@pytest.mark.parametrize("conv_bias", [True, False])
def test_layout_names_what_lies_there(conv_bias):
    learner, theta, _ = make(conv_bias=conv_bias)
    parameters = ReferenceConv4((2, 19, 24), N_WAY, 4, conv_bias).named(theta)
    found = 0
    for name, (part, shape) in learner.layout(N_WAY).items():
        value = theta[part].view(shape)
        if name == "head":
            expected = torch.column_stack([parameters["17.weight"], parameters["17.bias"]])
        else:
            layer, which = name.split(".")
            place = 4 * (int(layer[-1]) - 1) + ["conv", "norm"].index(layer[:-1])
            expected = parameters[f"{place}.{which}"]
            if expected.ndim == 4:
                expected = expected.permute(0, 2, 3, 1)
        assert torch.equal(value, expected)
        found += 1
    assert found == (17 if conv_bias else 13)


@pytest.mark.parametrize(
    ("image_shape", "n_params"), [((3, 84, 84), 32_901), ((3, 32, 32), 29_541), ((1, 28, 28), 28_320 + 165)]
)
def test_sizes_of_the_paper(image_shape, n_params):
    assert len(Conv4(image_shape).init(5, torch.Generator().manual_seed(0))) == n_params


def test_init_is_that_of_torch7():
    learner = Conv4((3, 84, 84))
    theta = learner.init(5, torch.Generator().manual_seed(0))
    parts = {name: theta[part].view(shape) for name, (part, shape) in learner.layout(5).items()}
    fan_in = {"conv1": 27, "conv2": 288, "conv3": 288, "conv4": 288, "head": 800}
    for name, part in parts.items():
        kind = name.split(".")[0]
        if kind in fan_in:
            for values in [part[:, :-1], part[:, -1]] if kind == "head" else [part]:
                scaled = values * sqrt(fan_in[kind])
                assert scaled.abs().max() <= 1 + 1e-6
                if values.numel() > 30:  # a uniform distribution that reaches both ends
                    assert scaled.max() > 0.7
                    assert scaled.min() < -0.7
                    assert abs(scaled.std() - 1 / sqrt(3)) < 0.1
        elif name.endswith("bias"):
            assert not part.any()
        else:
            assert 0 <= part.min() < 0.2
            assert 0.8 < part.max() <= 1
            assert abs(part.mean() - 0.5) < 0.2
    assert not torch.equal(parts["conv2.bias"], parts["conv3.bias"])


def test_init_is_seeded():
    learner = Conv4((1, 16, 16), Conv4.Settings(filters=3))
    first, again, other = (learner.init(3, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_running_averages_equal_batchnorm():
    learner, theta, x = make(n=3)
    reference = ReferenceConv4((2, 19, 24), N_WAY, 4, momentum=0.9)
    running = learner.initial_moments().double()
    for n in (3, 2):
        moments = learner.unbiased(learner(theta, x[:n])[1], n)
        running = running.lerp(moments, 0.9)
        reference.logits(theta, x[:n])
    buffers = ("running_mean", "running_var")
    close(running, torch.cat([norm.state_dict()[name] for norm in reference.norms() for name in buffers]))


def test_small_images_are_refused():
    with pytest.raises(UserError, match=r"^images of 40x15 pixels are too small for Conv4: it needs at least 16x16$"):
        Conv4((3, 40, 15))


def test_layers_tile_theta():
    places = Conv4((3, 16, 16), Conv4.Settings(filters=4)).layers(5)
    assert list(places) == ["conv1", "conv2", "conv3", "conv4", "head"]
    stops = [0, *(place.stop for place in places.values())]
    assert [place.start for place in places.values()] == stops[:-1]


# Settings -------------------------------------------------------------------------------------------------------------


# sha256 of theta, by conv_bias and unit_gamma.
DIGESTS = {
    (True, True): "3c2c5b19fb608c68",
    (True, False): "bde73619b8be5fe9",
    (False, True): "660e4aac402656d8",
    (False, False): "34ae30124513085b",
}


def test_init_is_the_same_forever():
    """What `Conv4` and the head drew when checkpoints and results were made."""
    digests = {}
    for conv_bias, unit_gamma in product((True, False), repeat=2):
        learner = Conv4((3, 32, 32), Conv4.Settings(conv_bias=conv_bias, unit_gamma=unit_gamma))
        theta = learner.init(5, torch.Generator().manual_seed(0))
        digests[conv_bias, unit_gamma] = hashlib.sha256(theta.numpy().astype("<f4").tobytes()).hexdigest()[:16]
    assert digests == DIGESTS


def test_mirror_takes_the_mean_of_two_embeddings_once_trained():
    plain = Conv4((2, 19, 24), Conv4.Settings(filters=4))
    mirror = Conv4((2, 19, 24), Conv4.Settings(filters=4, mirror=True))
    _, theta, x = make()
    moments = random_moments(plain)
    both = [plain.features(theta, images, moments)[0] for images in (x, x.flip(-1))]
    close(mirror.features(theta, x, moments)[0], sum(both) / 2)  # pyright: ignore[reportArgumentType]
    assert torch.equal(mirror.features(theta, x, moments, train=True)[0], both[0])
    # Without given moments, those of both kinds of images normalize; in meta-training there is one kind.
    close(mirror.features(theta, x)[1], plain.features(theta, torch.cat([x, x.flip(-1)]))[1])
    assert torch.equal(mirror.features(theta, x, train=True)[1], plain.features(theta, x)[1])
    own = plain.features(theta, x)[1]
    assert torch.equal(mirror.unbiased(own, 3), plain.unbiased(own, 6))
    assert torch.equal(mirror.unbiased(own, 3, train=True), plain.unbiased(own, 3))


def test_dropout_acts_in_meta_training_alone():
    plain, drops = (Conv4((2, 19, 24), Conv4.Settings(filters=4, dropout=share)) for share in (0.0, 0.5))
    _, theta, x = make()
    assert torch.equal(drops.features(theta, x)[0], plain.features(theta, x)[0])
    torch.manual_seed(0)
    one, other = drops.features(theta, x, train=True)[0], drops.features(theta, x, train=True)[0]
    assert not torch.equal(one, other)
    torch.manual_seed(0)
    assert torch.equal(drops.features(theta, x, train=True)[0], one)


def test_unit_features_have_one_length():
    plain, unit = (Conv4((2, 19, 24), Conv4.Settings(filters=4, unit_features=on)) for on in (False, True))
    _, theta, x = make()
    features = unit.features(theta, x)[0]
    close(features.norm(dim=-1), torch.full((len(x),), sqrt(128), dtype=torch.float64))
    expected = plain.features(theta, x)[0]
    close(features, expected / expected.norm(dim=-1, keepdim=True) * sqrt(128))


def test_average_pooling_takes_the_mean_over_the_image():
    """The last block has no max-pool; its maps are averaged."""
    learner, theta, x = make()
    average = Conv4((2, 19, 24), Conv4.Settings(filters=4, pooling="average"))
    assert average.n_features == 4
    assert average.n_body == learner.n_body
    modules = ReferenceConv4((2, 19, 24), N_WAY, 4)
    named = {name.removeprefix("body."): value for name, value in modules.named(theta).items()}
    maps = x
    for name, layer in list(modules.named_children())[:-3]:  # the last max-pool, flatten and the head are left out
        own = {key.split(".")[1]: value for key, value in named.items() if key.split(".")[0] == name}
        maps = torch.func.functional_call(layer.train(), own, (maps,), strict=False)
    close(average.features(theta, x)[0], maps.mean((2, 3)))
    assert Conv4.tag(average.settings) == "4f-average"


def test_a_network_is_pre_trained_without_what_would_harm_a_classifier():
    settings = Conv4.Settings(filters=8, dropout=0.1, unit_features=True, mirror=True, conv_bias=False)
    assert Conv4.for_pretraining(settings) == Conv4.Settings(filters=8, mirror=True, conv_bias=False)


def test_bfloat16_keeps_the_type_of_theta():
    learner, theta, x = make((1, 16, 16), filters=16)
    half = Conv4((1, 16, 16), Conv4.Settings(filters=16, precision="bf16"))
    assert half.bf16
    assert not learner.bf16
    logits, moments = half(theta.float(), x.float())
    assert logits.dtype == moments.dtype == torch.float32
    expected = learner(theta.float(), x.float())[0]
    assert not torch.equal(logits, expected)
    torch.testing.assert_close(logits, expected, rtol=0.1, atol=0.1)
    set_precision(half, False)
    assert torch.equal(half(theta.float(), x.float())[0], expected)
