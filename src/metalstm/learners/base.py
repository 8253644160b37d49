"""What a learner is: a network as a pure function of a flat parameter vector theta."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod, sqrt
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalstm.settings import Precision

Layout = dict[str, tuple[slice, tuple[int, ...]]]


@dataclass(frozen=True)
class LearnerSettings:
    """What every learner can be set by."""

    precision: Precision = "fp32"
    """bf16: convolve in bfloat16, which is faster where the hardware has it; tf32: matrix products and convolutions in
    TF32, on CUDA only."""


class Learner(nn.Module, ABC):
    """A network as a pure function of theta.

    theta holds the coordinates that the inner loop changes and nothing else: the body first, then the head with one
    row for each class, weight then bias, so that theta's length gives the number of classes. Everything else is an
    ordinary parameter or buffer of the module. Normalization moments are an argument and a result, never hidden state.
    Nothing depends on `.training`: whether a pass belongs to meta-training is the argument `train`.

    A subclass sets `image_shape`, `n_features`, `shapes` (the body's parameters in theta, by name) and, if it
    normalizes, `n_moments`; it implements `init_body` and `features`.
    """

    Settings: ClassVar[Any] = LearnerSettings  # a subclass of it, also a frozen dataclass

    image_shape: tuple[int, int, int]  # channels, height, width
    n_features: int  # length of what the head sees
    shapes: dict[str, tuple[int, ...]]  # of the body's parameters in theta, in order
    n_moments: int = 0
    bf16: bool = False
    light: ClassVar[bool] = False  # whether `build` makes no tensors, so that its sizes can be asked at no cost

    @classmethod
    def build(cls, settings: Any, image_shape: Sequence[int], generator: torch.Generator) -> "Learner":
        """The learner that some settings describe; by default the constructor takes image shape and settings.

        Args:
            settings: Of the type `Settings`.
            image_shape: Channels, height and width of an image.
            generator: Source of random weights, for a learner that has parameters outside theta.
        """
        return cls(image_shape, settings)  # pyright: ignore[reportCallIssue]

    @classmethod
    def for_pretraining(cls, settings: Any) -> Any:
        """The settings by which a network is pre-trained that a learner with `settings` starts from."""
        return settings

    @classmethod
    def tag(cls, settings: Any) -> str:
        """A word for names of run folders that tells networks of different settings apart: `64f`, for example.

        By default the name of the class, with all settings that are not the default's but the precision.
        """
        default = cls.Settings()
        changed = [f"{name}={value}" for name, value in vars(settings).items() if value != getattr(default, name)]
        return "-".join([cls.__name__.lower(), *(each for each in changed if not each.startswith("precision="))])

    def own_network(self) -> tuple[Tensor, Tensor] | None:
        """Body and moments of a network outside theta that can be pre-trained; None if there is none."""
        return None

    @abstractmethod
    def init_body(self, generator: torch.Generator) -> Float[Tensor, " n_body"]:
        """Draw the body."""

    @abstractmethod
    def features(
        self,
        theta: Float[Tensor, "*tasks n_params"],
        x: Float[Tensor, "..."],
        moments: Float[Tensor, "*tasks n_moments"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Tensor, "*tasks n n_features"], Float[Tensor, "*tasks n_moments"]]:
        """What the head sees, and the moments that normalized the images.

        Args:
            theta: Parameters, one vector for each task; the head's part is not looked at and may be missing.
            x: What `fixed` makes of images.
            moments: Statistics to normalize by. Without them, those of `x` itself are used. Gradients flow through
                them either way.
            train: Whether the pass belongs to meta-training: dropout, say, is on only then.
        """

    def fixed(self, x: Float[Tensor, "*tasks n channels height width"], train: bool = False) -> Float[Tensor, "..."]:
        """The part of the network that does not depend on theta; computed once per episode, not at each inner step.

        Args:
            x: Images, values in 0..1.
            train: As in `features`.
        """
        return x

    def forward(
        self,
        theta: Float[Tensor, "*tasks n_params"],
        x: Float[Tensor, "..."],
        moments: Float[Tensor, "*tasks n_moments"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Tensor, "*tasks n n_way"], Float[Tensor, "*tasks n_moments"]]:
        """Logits, and the moments that normalized the images; arguments as in `features`."""
        features, moments = self.features(theta, x, moments, train)
        return self.head(theta, features), moments

    def head(
        self, theta: Float[Tensor, "*tasks n_params"], features: Float[Tensor, "*tasks n n_features"]
    ) -> Float[Tensor, "*tasks n n_way"]:
        """Logits of features."""
        rows = theta[..., self.n_body :].unflatten(-1, (-1, self.n_features + 1))
        return features @ rows[..., :-1].mT + rows[..., -1].unsqueeze(-2)

    def init_head(self, n_way: int, generator: torch.Generator) -> Float[Tensor, " n_head"]:
        """Draw the head as Torch7 does: U(+-1/sqrt(n_features))."""
        return (2 * torch.rand(n_way * (self.n_features + 1), generator=generator) - 1) * (1 / sqrt(self.n_features))

    def init(self, n_way: int, generator: torch.Generator) -> Float[Tensor, " n_params"]:
        """Draw theta: the body, then the head."""
        return torch.cat([self.init_body(generator), self.init_head(n_way, generator)])

    def layout(self, n_way: int) -> Layout:
        """Where each parameter lies in theta: name -> (slice, shape), in order, the head last."""
        layout: Layout = {}
        start = 0
        for name, shape in (self.shapes | {"head": (n_way, self.n_features + 1)}).items():
            layout[name] = slice(start, start + prod(shape)), shape
            start += prod(shape)
        return layout

    def layers(self, n_way: int) -> dict[str, slice]:
        """The stretch of theta that each layer takes; parameters of one layer share the first part of their names."""
        layers: dict[str, slice] = {}
        for name, (place, _) in self.layout(n_way).items():
            layer = self.layer_of(name)
            layers[layer] = slice(layers[layer].start if layer in layers else place.start, place.stop)
        return layers

    def layer_of(self, name: str) -> str:
        """The layer that a parameter of `layout` belongs to."""
        return name.rpartition(".")[0] or name

    def n_way(self, theta: Float[Tensor, "*tasks n_params"]) -> int:
        """The number of classes that theta has a head for."""
        return (theta.shape[-1] - self.n_body) // (self.n_features + 1)

    @cached_property
    def lengths(self) -> list[int]:
        """Numbers of theta that each parameter of the body takes."""
        return [prod(shape) for shape in self.shapes.values()]

    @cached_property
    def n_body(self) -> int:
        """Length of theta without the head."""
        return sum(self.lengths)

    def initial_moments(self) -> Float[Tensor, " n_moments"]:
        """Where running averages of the moments start."""
        return torch.zeros(0)

    def unbiased(
        self, moments: Float[Tensor, "*tasks n_moments"], n_images: int, train: bool = False
    ) -> Float[Tensor, "*tasks n_moments"]:
        """Moments of a batch of images with n / (n - 1) on the variances, as Torch7's running averages take them."""
        return moments


def set_precision(module: nn.Module, bf16: bool) -> None:
    """Let all learners in a module convolve in bfloat16, or in float32."""
    for part in module.modules():
        if isinstance(part, Learner):
            part.bf16 = bf16


def each_task(function: Callable[..., tuple[Tensor, ...]], *args: Tensor) -> tuple[Tensor, ...]:
    """Apply a function of one task to any number of leading task dimensions, those of the first argument, theta.

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
