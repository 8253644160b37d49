"""Matching Networks, with and without full-context embeddings."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalstm.episodes import Support
from metalstm.learners import Conv4, Learner
from metalstm.methods.base import Adapted, Recipe, Row
from metalstm.methods.features import OnFeatures
from metalstm.methods.pretrained import meta_trained
from metalstm.methods.published import table_1
from metalstm.settings import Positive, TrainingSettings, Traits


class MatchingNet(OnFeatures):
    """A query is like a class by the cosines of its embedding to those of the class's support images.

    References:
        Vinyals et al. 2016, section 2.1, equations 1 and 2.
    """

    @dataclass(frozen=True)
    class Settings:
        """How cosines become class scores."""

        class_score: Literal["sum", "attention"] = "attention"
        """sum: of the cosines of a class is its logit, as in the authors' code of Ravi & Larochelle; attention: softmax
        over all cosines, summed over a class, is its probability, as in the Matching Networks paper."""
        scale: Positive = 1.0
        """Factor of the cosines before the softmax of `attention`."""

    label = "Matching Network"

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """`paper`: the authors'. `best`: from a pre-trained network, as the Meta-LSTM, with a softmax over cosines."""
        if name == "paper":
            training = TrainingSettings(episodes=75_000, lr=1e-4, clip=None)
            return Recipe(cls.Settings(class_score="sum"), training, "conv4", Conv4.Settings(filters=64, dropout=0.1))
        return replace(meta_trained(traits), settings=cls.Settings(scale=10.0))

    @classmethod
    def rows(cls) -> tuple[Row, ...]:
        """Ours and the paper's."""
        published = (table_1((43.40, 0.78), (51.09, 0.71)),)
        return (
            Row("matching-net", cls.label, published=published),
            Row("matching-net-paper", f"{cls.label}, paper", recipe="paper", published=published),
        )

    def fit(self, features: Float[Tensor, "*tasks n_support n_features"], support: Support) -> Adapted:
        """Keep the embeddings."""
        return {"features": features, "y": support.y, "n_way": torch.tensor(support.n_way)}

    def check_adapted(self, adapted: Adapted, n_way: int) -> None:
        """Features of the learner, and as many labels."""
        self.check_kept_features(adapted, n_way)

    def scores(
        self, adapted: Adapted, features: Float[Tensor, "*tasks n_query n_features"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """Class scores as `class_score` says."""
        cosines = F.normalize(features, dim=-1) @ F.normalize(adapted["features"], dim=-1).mT
        members = F.one_hot(adapted["y"], int(adapted["n_way"])).to(cosines)  # (*tasks, n_support, n_way)
        if self.settings.class_score == "sum":
            return cosines @ members
        # The logarithm of a class's attention, up to a constant that is the same for all classes.
        return (self.settings.scale * cosines).unsqueeze(-1).add(members.log().unsqueeze(-3)).logsumexp(-2)


class MatchingNetFCE(MatchingNet):
    """A Matching Network with full-context embeddings, by `FullContext`.

    References:
        Vinyals et al. 2016, appendix A.
    """

    label = "Matching Network FCE"

    def __init__(self, learner: Learner, settings: Any = None, generator: torch.Generator | None = None):
        super().__init__(learner, settings, generator)
        self.context = FullContext(learner.n_features, generator=generator)

    @classmethod
    def rows(cls) -> tuple[Row, ...]:
        """One."""
        return (Row("matching-net-fce", cls.label, published=(table_1((43.56, 0.84), (55.31, 0.73)),)),)

    def fit(self, features: Float[Tensor, "*tasks n_support n_features"], support: Support) -> Adapted:
        """Keep the embeddings, each in the context of the support set, in its order."""
        return super().fit(self.context.support(features), support)

    def scores(
        self, adapted: Adapted, features: Float[Tensor, "*tasks n_query n_features"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """Class scores of queries in the context of the support set."""
        return super().scores(adapted, self.context.query(features, adapted["features"]))


class FullContext(nn.Module):
    """Full-context embeddings: each embedding sees the whole support set.

    The support set goes through a bidirectional LSTM *as a sequence*, so that its order matters: the same support set
    in another order gives other embeddings. The sampler shuffles it. Queries read the support set by attention, which
    has no order.

    Args:
        n_features: Size of an embedding, and of every hidden state.
        steps: K, the reading steps of a query.
        generator: Source of the random weights; torch's own by default.

    References:
        Vinyals et al. 2016, appendix A.1 (query, f) and A.2 (support set, g).
    """

    def __init__(self, n_features: int, steps: int = 3, generator: torch.Generator | None = None):
        super().__init__()
        self.steps = steps
        self.lstm = nn.LSTM(n_features, n_features, batch_first=True, bidirectional=True)
        self.cell = nn.LSTMCell(2 * n_features, n_features)
        for parameter in self.parameters():
            bound = n_features**-0.5
            parameter.data = (2 * torch.rand(parameter.shape, generator=generator) - 1) * bound

    def support(
        self, features: Float[Tensor, "*tasks n_support n_features"]
    ) -> Float[Tensor, "*tasks n_support n_features"]:
        """g(x_i, S) = h_forward_i + h_backward_i + g'(x_i)."""
        states, _ = self.lstm(features.reshape(-1, *features.shape[-2:]))
        return features + states.unflatten(-1, (2, -1)).sum(-2).view(features.shape)

    def query(
        self,
        features: Float[Tensor, "*tasks n_query n_features"],
        support: Float[Tensor, "*tasks n_support n_features"],
    ) -> Float[Tensor, "*tasks n_query n_features"]:
        """f(x, S): K steps of an LSTM; before each it reads g(S) by attention; its input is f'(x) and what was read."""
        h, c = torch.zeros_like(features), torch.zeros_like(features)
        flat = features.shape[-1]
        for _ in range(self.steps):
            read = (h @ support.mT).softmax(-1) @ support  # the mean of g(S) at first, as h is 0
            h, c = self.cell(
                torch.cat([features, read], -1).view(-1, 2 * flat), (h.reshape(-1, flat), c.reshape(-1, flat))
            )
            h, c = h.view(features.shape) + features, c.view(features.shape)
        return h
