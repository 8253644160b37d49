"""Methods that look at images through features alone: one network embeds them, and some rule compares."""

import copy
from abc import abstractmethod
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from metalstm.console import track
from metalstm.data import ImagesByClass
from metalstm.episodes import BatchSampler, Episode, Support
from metalstm.learners import FixedOnce, HeadOnly, Learner
from metalstm.methods.base import Adapted, Method, Network, Tuning, check_neighbors, copy_network, score
from metalstm.optimizers import InnerOptimizer

M = TypeVar("M", bound="OnFeatures")

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
    def build(cls: type[M], config: Any, learner: Learner, optimizer: InnerOptimizer | None, generator: Any) -> M:
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
        tasks, network = x.shape[:-4], self.network()
        moments = network.moments.expand(*tasks, -1)
        return self.learner.features(network.body.expand(*tasks, -1), self.learner.fixed(x), moments)[0]

    def adapt(self, support: Support) -> Adapted:
        """Embed the support set, and `fit`."""
        with torch.no_grad():
            return self.fit(self.embed(support.x), support)

    def remembering(self: M) -> M:
        """With a learner that remembers features."""
        network, other = self.network(), copy.copy(self)
        other._modules = dict(self._modules)
        other.learner = FixedOnce(HeadOnly(self.learner, network.body, network.moments))
        return other

    def features(
        self, adapted: Adapted, x: Float[Tensor, "*tasks n channels height width"]
    ) -> Float[Tensor, "*tasks n n_features"]:
        """`embed`, whatever it has adapted to."""
        return self.embed(x)

    def forward(self, batch: Any) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Query loss and accuracy of episodes, with a gradient through `fit` and `scores`."""
        support, query = batch.support, batch.query
        x = self.learner.fixed(torch.cat([support.x, query.x], -4), train=True)
        body = self.body.expand(*support.y.shape[:-1], -1)
        features, moments = self.learner.features(body, x, train=True)
        self.average(moments, x.shape[support.y.dim() - 1])
        support_features, query_features = features.split([support.y.shape[-1], query.y.shape[-1]], -2)
        return self.loss(self.scores(self.fit(support_features, support), query_features), query.y)

    def loss(
        self, scores: Float[Tensor, "*tasks n_query n_way"], y: Int[Tensor, "*tasks n_query"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """What `forward` returns: the mean cross-entropy, unless a method has a loss of its own, and the accuracy."""
        return score(scores, y)

    def check_kept_features(self, adapted: Adapted, n_way: int) -> None:
        """`check_adapted` for methods that keep the `features` of the support set, beside `y` and `n_way`.

        Raises:
            ValueError: They are not features of the learner, or not as many as labels.
        """
        check_neighbors(adapted, n_way)
        if adapted["features"].shape != (len(adapted["y"]), self.learner.n_features):
            raise ValueError("features are not those of the learner")

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


class OnFixedFeatures(OnFeatures):
    """A rule on the features of a pre-trained network that is taken as it is; nothing is meta-trained.

    `fit` and `scores` get features that are normalized as the settings say. Settings that are None are chosen on
    meta-val, from `choices`.
    """

    @dataclass(frozen=True)
    class Settings:
        """Features."""

        normalize: Literal["none", "unit", "centered"] | None = None
        """Take features as they are, of unit length, or less the mean feature of meta-train and then of unit length;
        None chooses on meta-val."""

    meta_trained = False
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {"normalize": ("unit", "none", "centered")}
    """Values of settings that are None, to choose from; until then, the first is taken."""

    center: Tensor

    def __init__(self, learner: Learner, settings: Any = None, generator: torch.Generator | None = None):
        super().__init__(learner, settings, generator)
        self.body.requires_grad_(False)
        self.register_buffer("center", torch.zeros(learner.n_features))

    def chosen(self, name: str) -> Any:
        """The value of a setting, or while it is None the first that it may get."""
        value = getattr(self.settings, name)
        return self.choices[name][0] if value is None else value

    def embed(self, x: Float[Tensor, "*tasks n channels height width"]) -> Float[Tensor, "*tasks n n_features"]:
        """Normalized features.

        References:
            Wang et al. 2019 (arXiv 1911.04623), section 3, for those that are centered.
        """
        return self._normalized(super().embed(x))

    def forward(self, batch: Episode) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Query loss and accuracy; nothing is trained."""
        return score(self.logits(self.adapt(batch.support), batch.query.x), batch.query.y)

    @torch.no_grad()
    def look_at(self, images: ImagesByClass) -> None:
        """Take the mean feature of 2,000 images for the center."""
        sampler, means = BatchSampler(images, 100, device=self.center.device), []
        for number in range(20):
            means.append(super().embed(sampler[number].x.to(self.center.dtype)).mean(0))
        self.center.copy_(torch.stack(means).mean(0))

    def tune(self, tuning: Tuning) -> dict[str, Any]:
        """Those of the settings that are None."""
        names = [name for name in self.choices if getattr(self.settings, name) is None]
        if not names:
            return {}
        chosen = tuning.keep("settings", lambda: self._best(names, tuning))
        return {"settings": replace(self.settings, **{name: chosen[name] for name in names}), "chosen": chosen}

    @torch.no_grad()
    def _best(self, names: list[str], tuning: Tuning) -> dict[str, Any]:
        """The values of settings that are best on meta-val, and the accuracy that they reach."""
        rivals = []
        for values in product(*(self.choices[name] for name in names)):
            rivals.append(copy.copy(self))
            rivals[-1].settings = replace(self.settings, **dict(zip(names, values, strict=True)))
        right = torch.zeros(len(rivals), dtype=torch.float64)
        for number in track(range(tuning.search.many), tuning.description):
            episode = tuning.episodes(number)
            support, query = (super(OnFixedFeatures, self).embed(part.x) for part in (episode.support, episode.query))
            for k, rival in enumerate(rivals):
                adapted = rival.fit(rival._normalized(support), episode.support)
                logits = rival.scores(adapted, rival._normalized(query))
                right[k] += (logits.argmax(-1) == episode.query.y).double().mean().cpu()
        best = int(right.argmax())
        values = {name: getattr(rivals[best].settings, name) for name in names}
        percent = 100 * right[best].item() / tuning.search.many
        return {**values, "meta_val": percent, "episodes": tuning.search.many}

    def _normalized(self, features: Float[Tensor, "*n n_features"]) -> Float[Tensor, "*n n_features"]:
        match self.chosen("normalize"):
            case "none":
                return features
            case "unit":
                return F.normalize(features, dim=-1)
            case "centered":
                return F.normalize(features - self.center, dim=-1)
            case other:
                raise ValueError(f"unknown normalization {other!r}")
