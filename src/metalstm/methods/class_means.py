"""Nearest class mean on pre-trained features, without any further training."""

from dataclasses import replace

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from metalstm.episodes import Support
from metalstm.methods.base import Adapted, Recipe, Row
from metalstm.methods.features import OnFixedFeatures
from metalstm.methods.pretrained import on_pretrained
from metalstm.settings import Traits


class ClassMeans(OnFixedFeatures):
    """The class whose mean feature is nearest: the simplest use of a pre-trained network.

    With centered features this is SimpleShot.

    References:
        Wang et al. 2019 (arXiv 1911.04623).
    """

    label = "Nearest class mean"

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """The pre-training of `pretrained`."""
        return replace(on_pretrained(name, traits), settings=cls.Settings())

    @classmethod
    def rows(cls) -> tuple[Row, ...]:
        """With the features that are best on meta-val, and SimpleShot."""
        return (
            Row("class-means", cls.label),
            Row("simpleshot", "SimpleShot", changes={"normalize": "centered"}),
        )

    def fit(self, features: Float[Tensor, "*tasks n_support n_features"], support: Support) -> Adapted:
        """The mean of each class."""
        return {"means": class_means(features, support.y, support.n_way)}

    def scores(
        self, adapted: Adapted, features: Float[Tensor, "*tasks n_query n_features"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """Minus the squared distance to each mean."""
        return -squared_distances(features, adapted["means"])


def class_means(
    features: Float[Tensor, "*tasks n_support n_features"], y: Int[Tensor, "*tasks n_support"], n_way: int
) -> Float[Tensor, "*tasks n_way n_features"]:
    """The mean feature of each class; classes may have different numbers of images."""
    members = F.one_hot(y, n_way).to(features)  # (*tasks, n_support, n_way)
    return members.mT @ features / members.sum(-2).unsqueeze(-1)


def squared_distances(
    features: Float[Tensor, "*tasks n n_features"], means: Float[Tensor, "*tasks n_way n_features"]
) -> Float[Tensor, "*tasks n n_way"]:
    """Squared Euclidean distances, written out: `torch.cdist` has no export to ONNX."""
    cross = features @ means.mT
    return features.square().sum(-1, keepdim=True) - 2 * cross + means.square().sum(-1).unsqueeze(-2)
