"""Learners that change one thing about another learner."""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor

from metalstm.learners.base import Learner

BATCH = 128  # images that `FixedOnce` computes at a time, which bounds memory


class Wrapped(Learner):
    """Another learner, with the same theta. Subclasses change one thing.

    Args:
        learner: The other learner.
    """

    def __init__(self, learner: Learner):
        super().__init__()
        self.learner = learner
        self.image_shape, self.n_features, self.shapes = learner.image_shape, learner.n_features, learner.shapes
        self.n_moments = learner.n_moments

    def own_network(self) -> tuple[Tensor, Tensor] | None:
        """As the learner's."""
        return self.learner.own_network()

    def init_body(self, generator: torch.Generator) -> Float[Tensor, " n_body"]:
        """As the learner's."""
        return self.learner.init_body(generator)

    def fixed(self, x: Float[Tensor, "*tasks n channels height width"], train: bool = False) -> Float[Tensor, "..."]:
        """As the learner's."""
        return self.learner.fixed(x, train)

    def features(
        self, theta: Tensor, x: Float[Tensor, "..."], moments: Tensor | None = None, train: bool = False
    ) -> tuple[Float[Tensor, "*tasks n n_features"], Float[Tensor, "*tasks n_moments"]]:
        """As the learner's."""
        return self.learner.features(theta, x, moments, train)

    def layer_of(self, name: str) -> str:
        """As the learner's."""
        return self.learner.layer_of(name)

    def initial_moments(self) -> Float[Tensor, " n_moments"]:
        """As the learner's."""
        return self.learner.initial_moments()

    def unbiased(self, moments: Tensor, n_images: int, train: bool = False) -> Tensor:
        """As the learner's."""
        return self.learner.unbiased(moments, n_images, train)


class FixedOnce(Wrapped):
    """A learner that remembers what `fixed` gave for each image that it has seen, as a search sees them many times."""

    def __init__(self, learner: Learner):
        super().__init__(learner)
        self._seen: dict[bytes, Tensor] = {}

    def fixed(self, x: Float[Tensor, "*tasks n channels height width"], train: bool = False) -> Float[Tensor, "..."]:
        """As the learner's; without gradients."""
        if train or type(self.learner).fixed is Learner.fixed:  # the latter computes nothing
            return self.learner.fixed(x, train)
        images = x.flatten(0, -4)
        keys = [hashlib.blake2b(image.tobytes()).digest() for image in images.cpu().numpy()]
        new = {key: place for place, key in enumerate(keys) if key not in self._seen}
        if new:
            parts = images[list(new.values())].split(BATCH)
            with torch.no_grad():
                self._seen |= zip(new, torch.cat([self.learner.fixed(part) for part in parts]), strict=True)
        return torch.stack([self._seen[key] for key in keys]).unflatten(0, x.shape[:-3])
