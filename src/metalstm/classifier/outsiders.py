"""The score behind "none of these": how much nearer an image is to one of the classes than to other things."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from metalstm.methods.class_means import class_means

KEPT = 0.9  # share of the images of the classes that a threshold is to let through
SHARPNESS = 10.0  # of the soft maximum over the background
OWN = 25  # images of the user's own that weigh as much in the threshold as meta-val does


class References(NamedTuple):
    """What the features of an image are compared with; all of length 1."""

    means: Float[Tensor, "n_way n_features"]  # of the classes
    background: Float[Tensor, "n_background n_features"]  # means of meta-train classes; there may be none

    @classmethod
    def of(
        cls,
        features: Float[Tensor, "n_support n_features"],
        y: Int[Tensor, " n_support"],
        n_way: int,
        background: Float[Tensor, "n_background n_features"] | None = None,
    ) -> "References":
        """Those of a support set."""
        means = F.normalize(class_means(F.normalize(features, dim=-1), y, n_way), dim=-1)
        return cls(means, means[:0] if background is None else background)

    def scores(self, features: Float[Tensor, "n n_features"]) -> Float[Tensor, " n"]:
        """The cosine to the nearest class, less a soft maximum of the cosines to the background."""
        unit = F.normalize(features, dim=-1)
        return self.less_background(unit, (unit @ self.means.mT).amax(-1))

    def left_out_scores(
        self, features: Float[Tensor, "n_support n_features"], y: Int[Tensor, " n_support"]
    ) -> Float[Tensor, " n_left_out"]:
        """The scores of support images had each not been there; without those that are the only one of their class."""
        unit, members = F.normalize(features, dim=-1), F.one_hot(y, len(self.means)).to(features)
        others = (members.mT @ unit)[y] - unit
        cosines = torch.where(
            members.bool(), (unit * F.normalize(others, dim=-1)).sum(-1, keepdim=True), unit @ self.means.mT
        )
        return self.less_background(unit, cosines.amax(-1))[members.sum(0)[y] > 1]

    def less_background(self, unit: Float[Tensor, "n n_features"], nearest: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Scores of features of length 1 whose cosine to the nearest class is known."""
        if not len(self.background):
            return nearest
        return nearest - (SHARPNESS * unit @ self.background.mT).logsumexp(-1) / SHARPNESS


def threshold(calibration: Mapping[str, Any], left_out: Float[Tensor, " n_left_out"]) -> float:
    """The score below which the answer is "none of these".

    It is that of meta-val, moved by what the user's own images say. The lowest tenth of their scores, each left out in
    turn, is compared with that of meta-val episodes. The difference counts by n / (n + 25), as n images are left out:
    few of them say little, and images that are unlike those of meta-training have other scores.
    """
    least, own, n = calibration["least"], calibration.get("own"), len(left_out)
    if own is None or not n:
        return least
    return least + n / (n + OWN) * (tenth(left_out) - own)


def tenth(scores: Float[Tensor, " n"]) -> float:
    """The score that nine in ten reach."""
    return scores.quantile(1 - KEPT).item()
