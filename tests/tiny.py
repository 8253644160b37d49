"""What the tests of learners, inner optimizers and methods share: tiny images, episodes and configurations."""

from dataclasses import fields, is_dataclass, replace
from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalstm import recipes
from metalstm.data import ImagesByClass
from metalstm.episodes import Episode, Query, Support
from metalstm.methods import METHODS, Method, Network, RunConfig
from metalstm.optimizers import MetaLSTM
from metalstm.settings import Traits

SHAPE = (1, 16, 16)  # the least that Conv4 takes
N_WAY, N_SHOT, N_QUERY = 3, 2, 4
TRAITS = {
    "photos": Traits(),
    "drawings": Traits(drawing=True, mirrors=False, rotations=True),
    "built in": Traits(drawing=True, mirrors=False, built_in=True),
}
# Of those settings that a configuration has.
SMALL: dict[str, Any] = {"filters": 4, "hidden_size": 3, "epochs": 2, "batch_size": 4, "rate": 0.1}


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def busy(meta: MetaLSTM, seed: int = 0) -> MetaLSTM:
    """A learned optimizer whose weights all matter, unlike those that it starts with; in float64."""
    with torch.no_grad():
        for k, parameter in enumerate(meta.double().parameters()):
            parameter.copy_(0.5 * random(*parameter.shape, seed=100 * seed + k))
        meta.bias_f.add_(3)
        meta.bias_i.sub_(1)
    return meta


def gradient_descent(rate: float, forget_bias: float = 40.0) -> MetaLSTM:
    """A learned optimizer with zero weights: f = sigmoid(b_F), i = rate."""
    meta = MetaLSTM().double()
    with torch.no_grad():
        for parameter in meta.parameters():
            parameter.zero_()
        meta.bias_i.fill_(log(rate / (1 - rate)))
        meta.bias_f.fill_(forget_bias)
    return meta


def weights_of(meta: MetaLSTM) -> dict[str, Tensor]:
    """Copies of its weights that a reference can differentiate."""
    return {name: value.detach().clone().requires_grad_() for name, value in meta.named_parameters()}


def assert_near(actual: Tensor, expected: Tensor, tolerance: float, name: str = "") -> None:
    """Relative to the tensor's own size, which must not be zero."""
    size = expected.norm().item()
    assert size > 1e-6, name
    assert (actual - expected).norm().item() <= tolerance * size, name


def episode(
    tasks: tuple[int, ...] = (2,), n_way: int = N_WAY, n_shot: int = N_SHOT, n_query: int = N_QUERY, seed: int = 0
) -> Episode:
    """A batch of tasks whose classes differ in brightness, in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(*tasks, n_way * (n_shot + n_query), *SHAPE, generator=generator, dtype=torch.double)
    y = torch.arange(n_way).repeat(n_shot + n_query).expand(*tasks, -1)
    x += 0.5 * y[..., None, None, None]  # so that there is something to learn
    n = n_way * n_shot
    return Episode(Support(x[..., :n, :, :, :], y[..., :n], n_way), Query(x[..., n:, :, :, :], y[..., n:]))


def task(batch: Episode, index: int) -> Episode:
    """One task of a batch, without a dimension of tasks."""
    support = replace(batch.support, x=batch.support.x[index], y=batch.support.y[index])
    return Episode(support, Query(batch.query.x[index], batch.query.y[index]))


def images(n_classes: int = N_WAY, n_images: int = N_SHOT + N_QUERY) -> ImagesByClass:
    """Classes that differ in brightness, below noise."""
    noise = np.random.RandomState(0).randint(0, 100, (n_classes, n_images, *SHAPE[1:], 1))
    pixels = noise + 150 * np.arange(n_classes)[:, None, None, None, None] // n_classes
    stops = n_images * np.arange(1, n_classes + 1)
    names = tuple(f"class {k}" for k in range(n_classes))
    return ImagesByClass(
        pixels.reshape(-1, *pixels.shape[2:]).astype(np.uint8), names, np.stack([stops - n_images, stops], 1)
    )


def config(
    method: str,
    recipe: str = "best",
    traits: str = "photos",
    learner: str | None = None,
    optimizer: str | None = None,
    seed: int = 0,
    **changes: Any,
) -> RunConfig:
    """A small run of any method; `changes` are settings."""
    named = recipes.named(method, recipe, TRAITS[traits], N_SHOT, learner, optimizer)
    run = RunConfig(
        **{field.name: getattr(named, field.name) for field in fields(named)},
        method=method,
        recipe=recipe,
        traits=TRAITS[traits],
        image_shape=SHAPE,
        n_classes=N_WAY,
        n_way=N_WAY,
        n_shot=N_SHOT,
        n_query=N_QUERY,
        seed=seed,
    )
    small = {name: value for name, value in SMALL.items() if recipes.has_setting(run, name)}
    return recipes.with_changes(run, small | changes)


def build(run: RunConfig) -> Method:
    """The method in float64, its weights and moments a little off their starts, so that each of them matters."""
    method = recipes.build(run).double()
    with torch.no_grad():
        for k, tensor in enumerate(method.state_dict().values()):
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.1 * random(*tensor.shape, seed=k))
    return method


def batch(run: RunConfig, numbers: range = range(2)) -> Any:
    """What the method of a run is trained on, in float64."""
    rotations = recipes.has_setting(run, "rotations") and run.training.rotations
    source = images().rotated() if rotations else images()
    return double(METHODS[run.method].sampler(source, run, "cpu").batch(numbers))


def double(value: Any) -> Any:
    """The same with all images in float64."""
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: double(getattr(value, field.name)) for field in fields(value)})
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def logits(method: Method, batch: Episode) -> Tensor:
    """Of the queries, once the method has adapted."""
    with torch.no_grad():
        return method.logits(method.adapt(batch.support), batch.query.x)


def other_network(network: Network) -> Network:
    """A network of the same shape with other numbers."""
    # Small, and no variance near 0: through the many layers of a residual network larger ones end in NaN.
    return Network(0.1 * random(*network.body.shape, seed=1), 0.5 + random(*network.moments.shape, seed=2).square())
