"""Logistic regression on pre-trained features."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from metalstm.episodes import Support
from metalstm.methods.base import Adapted, Recipe, Row
from metalstm.methods.features import OnFixedFeatures
from metalstm.methods.pretrained import on_pretrained
from metalstm.methods.published import TIAN, five_way
from metalstm.settings import Positive, Traits


class Logistic(OnFixedFeatures):
    """A logistic regression of the classes on the features.

    References:
        Tian et al. 2020 (arXiv 2003.11539), section 3.3.
    """

    @dataclass(frozen=True)
    class Settings(OnFixedFeatures.Settings):
        """The regression."""

        penalty: Positive | None = None
        """Weight of half the squared norm of the weights, times the mean squared length of the support features, beside
        the summed cross-entropy; None chooses it on meta-val."""

    label = "Logistic regression"
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        **OnFixedFeatures.choices,
        "penalty": (1.0, 0.01, 0.03, 0.1, 0.3, 3.0),
    }

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """The pre-training of `pretrained`."""
        return replace(on_pretrained(name, traits), settings=cls.Settings())

    @classmethod
    def rows(cls) -> tuple[Row, ...]:
        """One."""
        published = (
            five_way("cifar-fs", 62.7, 78.7, TIAN),
            five_way("cifar-fs", 63.8, 79.5, TIAN, note="self-distilled"),
        )
        return (Row("logistic", cls.label, published=published),)

    def trained_part(self) -> Literal["head"]:
        """The regression is the head."""
        return "head"

    def fit(self, features: Float[Tensor, "*tasks n_support n_features"], support: Support) -> Adapted:
        """The weights of the regression, bias last, of each task."""
        return {
            "weights": each_task(lambda x, y: solve(x, y, support.n_way, self.chosen("penalty")), features, support)
        }

    def scores(
        self, adapted: Adapted, features: Float[Tensor, "*tasks n_query n_features"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """The logits of the regression."""
        weights = adapted["weights"]
        return features @ weights[..., :-1, :] + weights[..., -1:, :]


def solve(
    x: Float[Tensor, "n n_features"], y: Int[Tensor, " n"], n_way: int, penalty: float
) -> Float[Tensor, "n_features+1 n_way"]:
    """The weights, bias last, that minimize the loss that `Logistic.Settings.penalty` describes."""
    mean = x.mean(0)  # taken away, which only changes the bias, so that few steps suffice
    z, basis = in_span(x - mean)
    penalty = penalty * x.square().sum(-1).mean().item()

    def loss(weights: Tensor) -> Tensor:
        logits = z @ weights[:-1] + weights[-1]
        return F.cross_entropy(logits, y, reduction="sum") + penalty / 2 * weights[:-1].square().sum()

    solution = minimum(loss, z.new_zeros(z.shape[-1] + 1, n_way))
    weights = basis.mT @ solution[:-1]
    return torch.cat([weights, solution[-1:] - mean @ weights])


def each_task(
    function: Callable[[Tensor, Tensor], Tensor],
    features: Float[Tensor, "*tasks n_support n_features"],
    support: Support,
) -> Float[Tensor, "..."]:
    """A function of the features and labels of one task, in float64, applied to each of them."""
    tasks = support.y.shape[:-1]
    x, y = features.detach().reshape(-1, *features.shape[-2:]), support.y.reshape(-1, support.y.shape[-1])
    results = [function(x_task.double(), y_task) for x_task, y_task in zip(x, y, strict=True)]
    return torch.stack(results).unflatten(0, tasks).to(features) if tasks else results[0].to(features)


def in_span(x: Float[Tensor, "n n_features"]) -> tuple[Float[Tensor, "n rank"], Float[Tensor, "rank n_features"]]:
    """Coordinates z of the rows of x in their span, and its orthonormal basis: x = z @ basis.

    The best weights lie in the span, which is small beside the space of all features.
    """
    q, r = torch.linalg.qr(x.mT)
    return r.mT, q.mT


@torch.enable_grad()
def minimum(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Where a smooth loss is least, by L-BFGS from a start."""
    point = start.clone().requires_grad_()
    solver = torch.optim.LBFGS([point], max_iter=100, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        value = loss(point)
        (point.grad,) = torch.autograd.grad(value, point)
        return value

    solver.step(closure)  # pyright: ignore[reportArgumentType]
    return point.detach()
