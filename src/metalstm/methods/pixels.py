"""Nearest neighbor in pixels."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from metalstm.episodes import Episode, Support
from metalstm.learners import Learner, Linear
from metalstm.methods.base import Adapted, Method, Recipe, Row, RunConfig, check_neighbors, score
from metalstm.optimizers import InnerOptimizer
from metalstm.settings import TrainingSettings, Traits


class PixelNearestNeighbor(Method):
    """The class of the single support image whose pixels are nearest, by Euclidean distance.

    The floor that any method that learned something must clear.
    """

    label = "Nearest neighbor, pixels"
    meta_trained = False

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """Nothing to set and nothing to train."""
        return Recipe(training=TrainingSettings(episodes=0), learner="linear", learner_settings=Linear.Settings())

    @classmethod
    def build(
        cls, config: RunConfig, learner: Learner, optimizer: InnerOptimizer | None, generator: Any
    ) -> "PixelNearestNeighbor":
        """It looks at pixels, whatever the learner."""
        return cls()

    @classmethod
    def rows(cls) -> tuple[Row, ...]:
        """One."""
        return (Row("nearest-neighbor-pixels", cls.label),)

    def adapt(self, support: Support) -> Adapted:
        """Keep the support set; `n_way` is a tensor, so that everything adapted can be saved."""
        return {"x": support.x.flatten(-3), "y": support.y, "n_way": torch.tensor(support.n_way)}

    def features(
        self, adapted: Adapted, x: Float[Tensor, "*tasks n channels height width"]
    ) -> Float[Tensor, "*tasks n n_features"]:
        """Pixels."""
        return x.flatten(-3)

    def scores(
        self, adapted: Adapted, features: Float[Tensor, "*tasks n_query n_features"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """Minus the distance to the nearest support image of each class."""
        return best_of_class(-torch.cdist(features, adapted["x"]), adapted)

    def check_adapted(self, adapted: Adapted, n_way: int) -> None:
        """Labels, as many as images."""
        check_neighbors(adapted, n_way)
        if adapted["x"].shape[:-1] != adapted["y"].shape:
            raise ValueError("x and y are of different lengths")

    def forward(self, batch: Episode) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Query loss and accuracy; nothing is trained."""
        return score(self.logits(self.adapt(batch.support), batch.query.x), batch.query.y)


def best_of_class(
    likeness: Float[Tensor, "*tasks n_query n_support"], adapted: Adapted
) -> Float[Tensor, "*tasks n_query n_way"]:
    """Likeness to the support image of each class that is most alike."""
    per_class = [
        likeness.masked_fill((adapted["y"] != label).unsqueeze(-2), -torch.inf).amax(-1)
        for label in range(int(adapted["n_way"]))
    ]
    return torch.stack(per_class, -1)
