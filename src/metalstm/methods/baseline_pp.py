"""Baseline++: a cosine classifier trained on pre-trained features."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from metalstm.episodes import Support
from metalstm.methods.base import Adapted, Recipe, Row
from metalstm.methods.class_means import class_means
from metalstm.methods.features import OnFixedFeatures
from metalstm.methods.logistic import each_task, in_span, minimum
from metalstm.methods.pretrained import on_pretrained
from metalstm.settings import Positive, Traits


class BaselinePlusPlus(OnFixedFeatures):
    """A weight vector for each class, trained on the support set; a query is like a class by their cosine.

    The network is the one that all methods start from, where the authors pre-train another with a cosine classifier.
    Weights start at the class means and are trained until the loss is least, where the authors' start at random and
    take 100 passes of gradient descent.

    References:
        Chen et al. 2019 (arXiv 1904.04232), section 3.2.
    """

    @dataclass(frozen=True)
    class Settings(OnFixedFeatures.Settings):
        """The classifier."""

        scale: Positive | None = None
        """Factor of the cosines, which gives logits; None chooses it on meta-val."""

    label = "Baseline++"
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        "normalize": ("unit", "centered"),  # the cosine makes features of any length unit ones
        "scale": (10.0, 2.0, 5.0, 20.0, 50.0),
    }

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """The pre-training of `pretrained`. `paper`: the authors' scale for few classes, features as they are."""
        settings = cls.Settings(normalize="none", scale=2.0) if name == "paper" else cls.Settings()
        return replace(on_pretrained(name, traits), settings=settings)

    @classmethod
    def rows(cls) -> tuple[Row, ...]:
        """One."""
        return (Row("baseline-pp", cls.label),)

    def trained_part(self) -> Literal["head"]:
        """The weight vectors are the head."""
        return "head"

    def fit(self, features: Float[Tensor, "*tasks n_support n_features"], support: Support) -> Adapted:
        """The weight vectors of each task, of unit length."""
        scale = self.chosen("scale")
        return {"weights": each_task(lambda x, y: solve(x, y, support.n_way, scale), features, support)}

    def scores(
        self, adapted: Adapted, features: Float[Tensor, "*tasks n_query n_features"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """The scaled cosine to each weight vector."""
        return self.chosen("scale") * F.normalize(features, dim=-1) @ adapted["weights"].mT


def solve(
    x: Float[Tensor, "n n_features"], y: Int[Tensor, " n"], n_way: int, scale: float
) -> Float[Tensor, "n_way n_features"]:
    """The vectors of unit length whose scaled cosines to x have the least cross-entropy, near the class means."""
    z, basis = in_span(F.normalize(x, dim=-1))

    def loss(weights: Tensor) -> Tensor:
        return F.cross_entropy(scale * z @ F.normalize(weights, dim=-1).mT, y, reduction="sum")

    start = F.normalize(class_means(z, y, n_way), dim=-1)
    return F.normalize(minimum(loss, start), dim=-1) @ basis
