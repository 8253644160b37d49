"""What convolutional learners share: mirror images, features of one length, and tasks."""

from abc import abstractmethod
from functools import partial
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from metalstm.learners.base import Learner, each_task


class Convolutional(Learner):
    """A learner with batch normalization, whose settings have `mirror` and `unit_features`; a subclass embeds."""

    settings: Any
    light = True
    length = sqrt(128)  # of unit features, whatever the network and the size of images: the same rates suit their heads

    @abstractmethod
    def _embed(self, train: bool, theta: Tensor, x: Tensor, moments: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features and moments of the images of one task, as `features`."""

    def features(
        self,
        theta: Float[Tensor, "*tasks n_params"],
        x: Float[Tensor, "*tasks n channels height width"],
        moments: Float[Tensor, "*tasks n_moments"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Tensor, "*tasks n n_features"], Float[Tensor, "*tasks n_moments"]]:
        """What the head sees, and the moments, as `Learner.features`."""
        one_task = partial(self._features, train)
        if moments is None:
            features, moments = each_task(one_task, theta, x)
        else:
            features, _ = each_task(one_task, theta, x, moments)
        return features, moments

    def _mirrors(self, train: bool) -> bool:
        return self.settings.mirror and not train

    def _features(self, train: bool, theta: Tensor, x: Tensor, moments: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self._mirrors(train):
            features, moments = self._embed(train, theta, torch.cat([x, x.flip(-1)]), moments)
            features = features.unflatten(0, (2, -1)).mean(0)
        else:
            features, moments = self._embed(train, theta, x, moments)
        if self.settings.unit_features:
            features = F.normalize(features, dim=-1) * self.length
        return features, moments
