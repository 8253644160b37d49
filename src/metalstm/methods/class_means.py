"""Nearest class mean on pre-trained features, without any further training."""

from dataclasses import dataclass, replace

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from metalstm.episodes import Support
from metalstm.methods.base import Adapted, Recipe, Row
from metalstm.methods.features import OnFeatures
from metalstm.methods.pretrained import on_pretrained
from metalstm.settings import Traits


class ClassMeans(OnFeatures):
    """The class whose mean feature is nearest: the simplest use of a pre-trained network."""

    @dataclass(frozen=True)
    class Settings:
        """How features are compared."""

        unit: bool = True
        """Compare by the cosine, with features of unit length before and after the mean, and not by the distance."""

    label = "Nearest class mean"
    meta_trained = False

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """The pre-training of `pretrained`."""
        return replace(on_pretrained(name, traits), settings=cls.Settings())

    @classmethod
    def rows(cls) -> tuple[Row, ...]:
        """One."""
        return (Row("class-means", cls.label, ways=(5, 20)),)

    def fit(self, features: Float[Tensor, "*tasks n_support n_features"], support: Support) -> Adapted:
        """The mean of each class."""
        means = class_means(self._scaled(features), support)
        return {"means": self._scaled(means)}

    def scores(
        self, adapted: Adapted, features: Float[Tensor, "*tasks n_query n_features"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """The cosine to each mean, or minus the squared distance."""
        return -squared_distances(self._scaled(features), adapted["means"])

    def _scaled(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1) if self.settings.unit else features


def class_means(
    features: Float[Tensor, "*tasks n_support n_features"], support: Support
) -> Float[Tensor, "*tasks n_way n_features"]:
    """The mean feature of each class; classes may have different numbers of images."""
    members = F.one_hot(support.y, support.n_way).to(features)  # (*tasks, n_support, n_way)
    return members.mT @ features / members.sum(-2).unsqueeze(-1)


def squared_distances(
    features: Float[Tensor, "*tasks n n_features"], means: Float[Tensor, "*tasks n_way n_features"]
) -> Float[Tensor, "*tasks n n_way"]:
    """Squared Euclidean distances, written out: `torch.cdist` has no export to ONNX."""
    cross = features @ means.mT
    return features.square().sum(-1, keepdim=True) - 2 * cross + means.square().sum(-1).unsqueeze(-2)
