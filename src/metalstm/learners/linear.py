"""The smallest learner: a linear head on the images themselves."""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from metalstm.learners.base import Learner, LearnerSettings


class Linear(Learner):
    """A linear classifier of pixels. It normalizes nothing, and its head is all that there is.

    Args:
        image_shape: Channels, height and width of an image.
        settings: It has none of its own.
    """

    def __init__(self, image_shape: Sequence[int], settings: LearnerSettings = LearnerSettings()):
        super().__init__()
        channels, height, width = image_shape
        self.image_shape = (channels, height, width)
        self.n_features = prod(image_shape)
        self.shapes = {}

    def init_body(self, generator: torch.Generator) -> Float[Tensor, " 0"]:
        """There is none."""
        return torch.zeros(0)

    def features(
        self,
        theta: Tensor,
        x: Float[Tensor, "*tasks n channels height width"],
        moments: Tensor | None = None,
        train: bool = False,
    ) -> tuple[Float[Tensor, "*tasks n n_features"], Float[Tensor, "*tasks 0"]]:
        """The images, flat, and no moments."""
        return x.flatten(-3), theta[..., :0]
