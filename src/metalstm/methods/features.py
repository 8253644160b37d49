"""Methods that look at images through features alone: one network embeds them, and some rule compares."""

from abc import abstractmethod
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalstm.episodes import Support
from metalstm.learners import Conv4, Learner
from metalstm.methods.base import Adapted, Method, Network, Recipe, copy_network, score
from metalstm.optimizers import InnerOptimizer
from metalstm.settings import TrainingSettings, Traits

F = TypeVar("F", bound="OnFeatures")

NORM_MOMENTUM = 0.1  # weight of the new batch in the running averages of training


class OnFeatures(Method):
    """An embedding of images, and a rule on the embedded support set; a subclass gives the rule by `fit` and `scores`.

    In meta-training the images of an episode, support and queries together, are normalized by their own moments, and
    `scores` are taken for logits; afterwards the running averages of meta-training normalize, so that no query depends
    on another.

    Args:
        learner: The network that embeds; its head is not used.
        settings: Of the type `Settings`.
        generator: Source of the random weights; torch's own by default.
    """

    moments: Tensor

    def __init__(self, learner: Learner, settings: Any = None, generator: torch.Generator | None = None):
        super().__init__()
        self.learner = learner
        self.settings = self.Settings() if settings is None else settings
        self.body = nn.Parameter(learner.init_body(generator or torch.default_generator))
        self.register_buffer("moments", learner.initial_moments())

    @classmethod
    def build(cls: type[F], config: Any, learner: Learner, optimizer: InnerOptimizer | None, generator: Any) -> F:
        """The method of a configuration."""
        return cls(learner, config.settings, generator)

    @abstractmethod
    def fit(self, features: Float[Tensor, "*tasks n_support n_features"], support: Support) -> Adapted:
        """Learn from the features of a support set, whose labels are `support.y`."""

    @abstractmethod
    def scores(
        self, adapted: Adapted, features: Float[Tensor, "*tasks n_query n_features"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """Class scores of the features of new images."""

    def embed(self, x: Float[Tensor, "*tasks n channels height width"]) -> Float[Tensor, "*tasks n n_features"]:
        """Features, normalized by the running averages of training."""
        tasks = x.shape[:-4]
        moments = self.moments.expand(*tasks, -1)
        return self.learner.features(self.body.expand(*tasks, -1), self.learner.fixed(x), moments)[0]

    def adapt(self, support: Support) -> Adapted:
        """Embed the support set, and `fit`."""
        with torch.no_grad():
            return self.fit(self.embed(support.x), support)

    def logits(
        self, adapted: Adapted, query_x: Float[Tensor, "*tasks n_query channels height width"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """Embed, and `scores`."""
        return self.scores(adapted, self.embed(query_x))

    def forward(self, batch: Any) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Query loss and accuracy of episodes, with a gradient through `fit` and `scores`."""
        support, query = batch.support, batch.query
        x = self.learner.fixed(torch.cat([support.x, query.x], -4), train=True)
        body = self.body.expand(*support.y.shape[:-1], -1)
        features, moments = self.learner.features(body, x, train=True)
        self.average(moments, x.shape[support.y.dim() - 1])
        support_features, query_features = features.split([support.y.shape[-1], query.y.shape[-1]], -2)
        return score(self.scores(self.fit(support_features, support), query_features), query.y)

    @torch.no_grad()
    def average(self, moments: Float[Tensor, "*tasks n_moments"], n_images: int) -> None:
        """Move the running averages towards the moments of a batch of so many images in each task."""
        new = torch.atleast_2d(self.learner.unbiased(moments.detach(), n_images, train=True)).flatten(0, -2).mean(0)
        self.moments.lerp_(new, NORM_MOMENTUM)

    def start_from(self, network: Network) -> None:
        """Take the body and the moments."""
        copy_network(network, self.body, self.moments)

    def network(self) -> Network:
        """The body and the running averages."""
        return Network(self.body.detach(), self.moments)


def meta_trained(traits: Traits) -> Recipe:
    """The recipe that methods on features share: 10,000 episodes from the pre-trained network of all other methods."""
    training = TrainingSettings(
        episodes=10_000,
        lr_decay=True,
        clip=None,
        pretrain=0 if traits.built_in else 15_000,
        rotations=traits.rotations,
        mirrors=traits.mirrors,
        val_episodes=300,
    )
    learner = Conv4.Settings(filters=64, conv_bias=False, unit_gamma=True, mirror=traits.mirrors)
    return Recipe(training=training, learner_settings=learner)
