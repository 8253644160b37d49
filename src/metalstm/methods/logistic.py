"""Logistic regression on pre-trained features."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from metalstm.episodes import Support
from metalstm.methods.base import Adapted, Recipe, Row, Tuning
from metalstm.methods.features import OnFeatures
from metalstm.methods.pretrained import on_pretrained
from metalstm.settings import Positive, Traits

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class Logistic(OnFeatures):
    """A logistic regression of the classes on features of unit length.

    References:
        Tian et al. 2020 (arXiv 2003.11539), section 3.3.
    """

    @dataclass(frozen=True)
    class Settings:
        """The regression."""

        penalty: Positive = 1.0
        """Weight of half the squared norm of the weights, beside the summed cross-entropy; `tune` chooses it."""

    label = "Logistic regression"
    meta_trained = False

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """The pre-training of `pretrained`."""
        return replace(on_pretrained(name, traits), settings=cls.Settings())

    @classmethod
    def rows(cls) -> tuple[Row, ...]:
        """One."""
        return (Row("logistic", cls.label, ways=(5, 20)),)

    def fit(self, features: Float[Tensor, "*tasks n_support n_features"], support: Support) -> Adapted:
        """The weights of the regression, bias last, of each task."""
        tasks = features.shape[:-2]
        x, y = (
            F.normalize(features, dim=-1).reshape(-1, *features.shape[-2:]),
            support.y.reshape(-1, features.shape[-2]),
        )
        weights = [
            solve(x_task, y_task, support.n_way, self.settings.penalty) for x_task, y_task in zip(x, y, strict=True)
        ]
        return {"weights": torch.stack(weights).view(*tasks, -1, support.n_way).to(features)}

    def scores(
        self, adapted: Adapted, features: Float[Tensor, "*tasks n_query n_features"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """The logits of the regression."""
        weights = adapted["weights"]
        return F.normalize(features, dim=-1) @ weights[..., :-1, :] + weights[..., -1:, :]

    def tune(self, tuning: Tuning) -> dict[str, Any]:
        """The penalty that is best on meta-val."""
        chosen = tuning.keep("penalty", lambda: self._best(tuning))
        return {"settings": replace(self.settings, penalty=chosen["penalty"]), "chosen": chosen}

    @torch.no_grad()
    def _best(self, tuning: Tuning) -> dict[str, Any]:
        right = torch.zeros(len(PENALTIES), dtype=torch.float64)
        for number in range(tuning.search.many):
            episode = tuning.episodes(number)
            support, query = (self.embed(part.x) for part in (episode.support, episode.query))
            for k, penalty in enumerate(PENALTIES):
                other = type(self)(self.learner, self.Settings(penalty))
                logits = other.scores(other.fit(support, episode.support), query)
                right[k] += (logits.argmax(-1) == episode.query.y).double().mean().cpu()
        accuracies = (100 * right / tuning.search.many).tolist()
        best = max(range(len(PENALTIES)), key=accuracies.__getitem__)
        return {"penalty": PENALTIES[best], "meta_val": accuracies[best], "episodes": tuning.search.many}


@torch.enable_grad()
def solve(
    x: Float[Tensor, "n n_features"], y: Tensor, n_way: int, penalty: float
) -> Float[Tensor, "n_features+1 n_way"]:
    """The weights, bias last, that minimize the summed cross-entropy plus penalty / 2 * |weights|^2, in float64."""
    x = x.detach().double()
    weights = torch.zeros(x.shape[-1] + 1, n_way, dtype=x.dtype, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        logits = x @ weights[:-1] + weights[-1]
        value = F.cross_entropy(logits, y, reduction="sum") + penalty / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    solver.step(loss)  # pyright: ignore[reportArgumentType]
    return weights.detach()
