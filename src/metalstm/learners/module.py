"""Any `torch.nn.Module` as a learner."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from metalstm.learners.base import Learner, each_task


class FromModule(Learner):
    """A network of your own, from images to features, with a linear head.

    For an entry of `LEARNERS`, subclass it: `Settings` and `network` are all that it takes. The module always runs in
    evaluation mode: batch normalization uses the statistics that the module brings, and dropout is off. Give it a
    normalization that needs no statistics (group norm, say) if it is to learn from nothing.

    Args:
        module: Maps images (n, channels, height, width) to features (n, ...), which are flattened.
        image_shape: Channels, height and width of an image.
        frozen: Leave the module as it is: theta is the head alone, and each image is embedded once per episode.
            Otherwise theta starts with the module's parameters, as they are now.
    """

    def __init__(self, module: nn.Module, image_shape: Sequence[int], frozen: bool = False):
        super().__init__()
        channels, height, width = image_shape
        self.image_shape, self.frozen = (channels, height, width), frozen
        self.module = module.eval().requires_grad_(False)
        like = next(module.parameters(), torch.zeros(()))  # for its type and device
        with torch.no_grad():
            self.n_features = prod(module(like.new_zeros(1, *image_shape)).shape[1:])
        parameters = {} if frozen else dict(module.named_parameters())
        self.shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}

    @classmethod
    def network(cls, settings: Any, image_shape: Sequence[int]) -> nn.Module:
        """The module that some settings describe, with random weights from torch's own generator, which is seeded.

        Args:
            settings: Of the type `Settings`.
            image_shape: Channels, height and width of an image.
        """
        raise NotImplementedError(f"{cls.__name__} has no network: define it, or build the learner from a module")

    @classmethod
    def build(cls, settings: Any, image_shape: Sequence[int], generator: torch.Generator) -> "FromModule":
        """The learner of `network`, whose first weights depend on the generator alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator, device="cpu")))
            return cls(cls.network(settings, image_shape), image_shape)

    def train(self, mode: bool = True) -> "FromModule":
        """Keeps the module in evaluation mode."""
        super().train(mode)
        self.module.eval()
        return self

    def init_body(self, generator: torch.Generator) -> Float[Tensor, " n_body"]:
        """The module's parameters."""
        return torch.cat([torch.zeros(0), *(parameter.flatten() for parameter in self._inner())]).clone()

    def fixed(self, x: Float[Tensor, "*tasks n channels height width"], train: bool = False) -> Float[Tensor, "..."]:
        """The features of images if the module is frozen; otherwise the images."""
        if not self.frozen:
            return x
        with torch.no_grad():
            return self.module(x.flatten(0, -4)).flatten(1).unflatten(0, x.shape[:-3])

    def features(
        self, theta: Tensor, x: Float[Tensor, "..."], moments: Tensor | None = None, train: bool = False
    ) -> tuple[Float[Tensor, "*tasks n n_features"], Float[Tensor, "*tasks 0"]]:
        """What the module makes of images with the parameters in theta, and no moments."""
        if self.frozen:
            return x, theta[..., :0]
        return each_task(self._call, theta, x)[0], theta[..., :0]

    def _call(self, theta: Tensor, x: Tensor) -> tuple[Tensor]:
        flat = theta[: self.n_body].split(self.lengths)
        named = {name: part.view(shape) for part, (name, shape) in zip(flat, self.shapes.items(), strict=True)}
        result: Any = functional_call(self.module, named, (x,))
        return (result.flatten(1),)

    def _inner(self) -> Iterator[Tensor]:
        return (parameter.detach() for name, parameter in self.module.named_parameters() if name in self.shapes)
