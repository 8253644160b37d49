"""Nearest neighbor on the features of a classifier of all meta-train classes: the pre-training of other methods."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalstm.data import ImagesByClass
from metalstm.episodes import BatchSampler, Labeled, Support
from metalstm.learners import Conv4, Learner
from metalstm.methods.base import Adapted, Recipe, Row, RunConfig, score
from metalstm.methods.features import OnFeatures
from metalstm.methods.pixels import best_of_class
from metalstm.methods.published import table_1
from metalstm.optimizers import InnerOptimizer
from metalstm.settings import Count, Share, TrainingSettings, Traits


class Pretrained(OnFeatures):
    """A classifier of all meta-train classes; for new classes, the class of the single nearest support image.

    Nearness is the cosine of the features before the classifier. `forward` is the pre-training: it takes mini-batches,
    not episodes.

    Args:
        learner: The network.
        n_classes: Meta-train classes.
        settings: As below.
        generator: Source of the random weights; torch's own by default.

    References:
        Ravi & Larochelle 2017, section 5.2, Baseline-nearest-neighbor.
    """

    @dataclass(frozen=True)
    class Settings:
        """Pre-training."""

        batch_size: Count = 64
        """Images in a mini-batch."""
        smoothing: Share = 0.0
        """Label smoothing: the share of each target that is spread over all classes."""

    label = "Nearest neighbor"
    phase = "pre-training"
    unit = ("mini-batch", "mini-batches")

    def __init__(
        self,
        learner: Learner,
        n_classes: int,
        settings: Settings = Settings(),
        generator: torch.Generator | None = None,
    ):
        super().__init__(learner, settings, generator)
        self.head = nn.Parameter(learner.init_head(n_classes, generator or torch.default_generator))

    @classmethod
    def build(
        cls, config: RunConfig, learner: Learner, optimizer: InnerOptimizer | None, generator: Any
    ) -> "Pretrained":
        """The classifier of as many classes as the data have, four times as many with rotations."""
        n_classes = config.n_classes * (4 if config.training.rotations else 1)
        return cls(learner, n_classes, config.settings, generator)

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """`paper`: the authors'. `best`: shorter, with a falling rate and the images that the data set allows."""
        paper = Recipe(
            cls.Settings(), TrainingSettings(episodes=30_000, clip=None), "conv4", Conv4.Settings(filters=64)
        )
        if name == "paper":
            return paper
        learner = replace(paper.learner_settings, conv_bias=False, unit_gamma=True, mirror=traits.mirrors)
        more = {"rotations": traits.rotations, "mirrors": traits.mirrors}
        training = replace(paper.training, episodes=15_000, lr_decay=True, **more)
        return replace(paper, learner_settings=learner, training=training)

    @classmethod
    def rows(cls) -> tuple[Row, ...]:
        """One."""
        return (Row("nearest-neighbor", cls.label, published=(table_1((41.08, 0.70), (51.04, 0.65)),)),)

    @classmethod
    def sampler(cls, images: ImagesByClass, config: RunConfig, device: torch.device | str) -> BatchSampler:
        """Mini-batches of all classes."""
        return BatchSampler(images, config.settings.batch_size, config.seed, device)

    def forward(self, batch: Labeled) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Cross-entropy of a mini-batch over all meta-train classes, and accuracy, as `Method.forward`."""
        x = self.learner.fixed(batch.x, train=True)
        logits, moments = self.learner(torch.cat([self.body, self.head]), x, train=True)
        self.average(moments, len(batch.y))
        loss, accuracy = score(logits, batch.y)
        if self.settings.smoothing:
            loss = F.cross_entropy(logits, batch.y, label_smoothing=self.settings.smoothing)
        return loss, accuracy

    def fit(self, features: Float[Tensor, "*tasks n_support n_features"], support: Support) -> Adapted:
        """Keep the features."""
        return {
            "features": F.normalize(features, dim=-1),
            "y": support.y,
            "n_way": torch.tensor(support.n_way),  # a tensor, so that everything adapted can be saved
        }

    def check_adapted(self, adapted: Adapted, n_way: int) -> None:
        """Features of the learner, and as many labels."""
        self.check_kept_features(adapted, n_way)

    def scores(
        self, adapted: Adapted, features: Float[Tensor, "*tasks n_query n_features"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """The cosine to the nearest support image of each class."""
        return best_of_class(F.normalize(features, dim=-1) @ adapted["features"].mT, adapted)

    def spent(self) -> set[str]:
        """The classifier of meta-train classes."""
        return {"head"}


def on_pretrained(name: str, traits: Traits) -> Recipe:
    """The recipe of a method that takes the pre-trained network as it is and meta-trains nothing."""
    own = Pretrained.recipe(name, traits, 1)
    training = TrainingSettings(
        episodes=0, pretrain=own.training.episodes, rotations=own.training.rotations, mirrors=own.training.mirrors
    )
    return Recipe(training=training, learner=own.learner, learner_settings=own.learner_settings)


def meta_trained(traits: Traits) -> Recipe:
    """The recipe that methods on features share: 10,000 episodes from the pre-trained network of all other methods."""
    start = on_pretrained("best", traits)
    training = replace(
        start.training,
        episodes=10_000,
        lr_decay=True,
        clip=None,
        val_episodes=300,
        pretrain=0 if traits.built_in else start.training.pretrain,
    )
    return replace(start, training=training)
