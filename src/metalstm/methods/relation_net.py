"""Relation Networks."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from metalstm.episodes import Support
from metalstm.learners import Conv4, Learner
from metalstm.methods.base import Adapted, Recipe, Row, score
from metalstm.methods.class_means import class_means
from metalstm.methods.features import OnFeatures
from metalstm.methods.pretrained import meta_trained
from metalstm.settings import Count, TrainingSettings, Traits


class RelationNet(OnFeatures):
    """A learned network scores how a query relates to a class, from the query's embedding and the class's mean one.

    Embeddings are vectors, so that any learner serves, and the relation module is a network of two fully connected
    layers. That of the authors has two convolutions before these and takes feature maps. Their class embedding is the
    sum of the support images', where this one is the mean, which does not depend on the number of shots.

    References:
        Sung et al. 2018 (arXiv 1711.06025), equations 1 and 2.
    """

    @dataclass(frozen=True)
    class Settings:
        """The relation module and its loss."""

        relation_size: Count = 64
        """Hidden units of the relation module."""
        objective: Literal["cross-entropy", "squared-error"] = "cross-entropy"
        """Loss of the scores: cross-entropy, or the mean squared difference of their sigmoids to 1 for the query's
        class and 0 for others."""

    label = "Relation Network"

    def __init__(self, learner: Learner, settings: Any = None, generator: torch.Generator | None = None):
        super().__init__(learner, settings, generator)
        n_inputs, n_hidden = 2 * learner.n_features, self.settings.relation_size

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) * shape[-1] ** -0.5)

        self.hidden_weight, self.hidden_bias = drawn(n_hidden, n_inputs), nn.Parameter(torch.zeros(n_hidden))
        self.score_weight = drawn(n_hidden)
        # Cross-entropy does not depend on it.
        self.score_bias = nn.Parameter(torch.zeros(()), self.settings.objective == "squared-error")

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """`paper`: the authors' code. `best`: starts and trains as the Matching Network's, by cross-entropy.

        The authors halve the learning rate every 100,000 episodes; here it falls along half a cosine.
        """
        if name == "paper":
            training = TrainingSettings(episodes=500_000, clip=0.5, lr_decay=True)
            settings = cls.Settings(relation_size=8, objective="squared-error")
            return Recipe(settings, training, "conv4", Conv4.Settings(filters=64))
        return replace(meta_trained(traits), settings=cls.Settings())

    @classmethod
    def rows(cls) -> tuple[Row, ...]:
        """One."""
        return (Row("relation-net", cls.label),)

    def fit(self, features: Float[Tensor, "*tasks n_support n_features"], support: Support) -> Adapted:
        """What the relation module's first layer makes of the mean embedding of each class.

        Of a concatenated pair it makes the sum of what it makes of class and query, so that no pair is needed.
        """
        means = class_means(features, support.y, support.n_way)
        return {"hidden": means @ self.hidden_weight.chunk(2, -1)[0].mT + self.hidden_bias}

    def scores(
        self, adapted: Adapted, features: Float[Tensor, "*tasks n_query n_features"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """The relation of each query to each class, before the sigmoid."""
        of_query = features @ self.hidden_weight.chunk(2, -1)[1].mT
        hidden = torch.relu(adapted["hidden"].unsqueeze(-3) + of_query.unsqueeze(-2))
        return hidden @ self.score_weight + self.score_bias

    def loss(
        self, scores: Float[Tensor, "*tasks n_query n_way"], y: Int[Tensor, "*tasks n_query"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The loss that `objective` names, and the accuracy."""
        loss, accuracy = score(scores, y)
        if self.settings.objective == "squared-error":
            loss = (scores.sigmoid() - F.one_hot(y, scores.shape[-1])).square().mean()
        return loss, accuracy
