"""Prototypical Networks."""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor

from metalstm.data import ImagesByClass
from metalstm.episodes import BatchSampler, EpisodeSampler, Support
from metalstm.learners import Conv4
from metalstm.methods.base import Adapted, Recipe, Row, RunConfig
from metalstm.methods.class_means import class_means, squared_distances
from metalstm.methods.features import OnFeatures
from metalstm.methods.pretrained import meta_trained
from metalstm.methods.published import BERTINETTO, LEE, five_way
from metalstm.settings import Positive, TrainingSettings, Traits


class ProtoNet(OnFeatures):
    """A class is the mean of the embeddings of its support images; a query is of the class whose mean is nearest.

    References:
        Snell, Swersky & Zemel 2017, section 2.2, equations 1 and 2.
    """

    @dataclass(frozen=True)
    class Settings:
        """Episodes of meta-training, and how distances become class scores."""

        train_way: Annotated[int, Meta(ge=2)] | None = None
        """Classes of an episode of meta-training, all there are at the most; as many as in a test by default."""
        scale: Positive = 1.0
        """Factor of the squared distances, whose negatives are the logits."""

    label = "Prototypical Network"

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """`paper`: the authors' for mini-ImageNet. `best`: starts and trains as the Matching Network's.

        The authors halve the learning rate every 2,000 episodes; here it falls along half a cosine. Squared distances
        of pre-trained features are about 100, so that `best` scales them.
        """
        if name == "paper":
            training = TrainingSettings(
                episodes=20_000, clip=None, lr_decay=True, val_every=250, rotations=traits.rotations
            )
            settings = cls.Settings(train_way=30 if n_shot == 1 else 20)
            return Recipe(settings, training, "conv4", Conv4.Settings(filters=64))
        return replace(meta_trained(traits), settings=cls.Settings(scale=0.1))

    @classmethod
    def rows(cls) -> tuple[Row, ...]:
        """Ours and the paper's."""
        published = (five_way("cifar-fs", 55.5, 72.0, BERTINETTO), five_way("fc100", 35.3, 48.6, LEE))
        return (
            Row("protonet", cls.label, published=published),
            Row("protonet-paper", f"{cls.label}, paper", recipe="paper", published=published),
        )

    @classmethod
    def sampler(
        cls, images: ImagesByClass, config: RunConfig, device: torch.device | str
    ) -> EpisodeSampler | BatchSampler:
        """Episodes of `train_way` classes."""
        train_way = config.settings.train_way
        n_way = config.n_way if train_way is None else min(train_way, len(images.classes))
        return super().sampler(images, replace(config, n_way=n_way), device)

    def fit(self, features: Float[Tensor, "*tasks n_support n_features"], support: Support) -> Adapted:
        """The mean embedding of each class, its prototype."""
        return {"prototypes": class_means(features, support.y, support.n_way)}

    def scores(
        self, adapted: Adapted, features: Float[Tensor, "*tasks n_query n_features"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """Minus the squared Euclidean distances to the prototypes, times `scale`."""
        return -self.settings.scale * squared_distances(features, adapted["prototypes"])
