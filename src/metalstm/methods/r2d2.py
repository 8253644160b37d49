"""R2D2: ridge regression on meta-trained features, solved exactly and differentiated through."""

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
from metalstm.methods.published import BERTINETTO, five_way
from metalstm.settings import Positive, TrainingSettings, Traits


class R2D2(OnFeatures):
    """Ridge regression of one-hot labels on the features; the penalty and the scale of the logits are meta-learned.

    References:
        Bertinetto et al. 2019 (arXiv 1805.08136), equations 4 to 6.
    """

    @dataclass(frozen=True)
    class Settings:
        """Where the learned numbers start."""

        start_penalty: Positive = 1.0
        """Where the learned penalty of the squared weights starts."""
        start_scale: Positive = 1.0
        """Where the learned factor of the logits starts."""

    label = "R2D2"

    def __init__(self, learner: Learner, settings: Any = None, generator: torch.Generator | None = None):
        super().__init__(learner, settings, generator)
        self.log_penalty = nn.Parameter(torch.tensor(self.settings.start_penalty).log())
        self.log_scale = nn.Parameter(torch.tensor(self.settings.start_scale).log())

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """`paper`: from random weights, as its authors train. `best`: as the Matching Network's."""
        if name == "paper":
            training = TrainingSettings(episodes=60_000, lr=5e-3, lr_decay=True, clip=None)
            return Recipe(cls.Settings(), training, "conv4", Conv4.Settings(filters=64))
        return replace(meta_trained(traits), settings=cls.Settings(start_scale=10.0))

    @classmethod
    def rows(cls) -> tuple[Row, ...]:
        """Ours and the paper's."""
        published = (five_way("cifar-fs", 62.3, 77.4, BERTINETTO),)
        return (
            Row("r2d2", cls.label, published=published),
            Row("r2d2-paper", f"{cls.label}, paper", recipe="paper", published=published),
        )

    def trained_part(self) -> Literal["head"]:
        """The regression is the head."""
        return "head"

    def fit(self, features: Float[Tensor, "*tasks n_support n_features"], support: Support) -> Adapted:
        """The weights of the regression, bias last, by the Woodbury identity: a system of n_support equations."""
        x = _with_one(features)
        y = F.one_hot(support.y, support.n_way).to(x)
        penalty = self.log_penalty.exp() * torch.eye(x.shape[-2]).to(x)
        return {"weights": x.mT @ torch.linalg.solve_ex(x @ x.mT + penalty, y)[0]}

    def scores(
        self, adapted: Adapted, features: Float[Tensor, "*tasks n_query n_features"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """The scaled regression."""
        return self.log_scale.exp() * (_with_one(features) @ adapted["weights"])


def _with_one(features: Tensor) -> Tensor:
    """Features of unit length with a 1 behind them, for the bias."""
    features = F.normalize(features, dim=-1)
    return torch.cat([features, torch.ones_like(features[..., :1])], -1)
