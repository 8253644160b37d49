"""The smallest learner: a linear head on the images themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from metalstm.learners.base import Learner, LearnerSettings
from metalstm.settings import Positive


class Linear(Learner):
    """A linear classifier of pixels, or of features that another network has made. Its head is all that there is.

    Args:
        image_shape: Channels, height and width of an image; their product is the number of features.
        settings: As below.
    """

    light = True

    @dataclass(frozen=True)
    class Settings(LearnerSettings):
        """What is done to the features."""

        length: Positive | None = None
        """Length that the features of each image are scaled to; None leaves them as they are."""

    def __init__(self, image_shape: Sequence[int], settings: LearnerSettings = Settings()):
        super().__init__()
        self.length = getattr(settings, "length", None)
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
        features = x.flatten(-3)
        if self.length is not None:
            features = F.normalize(features, dim=-1) * self.length
        return features, theta[..., :0]
