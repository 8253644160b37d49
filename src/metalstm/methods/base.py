"""What a method is."""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from metalstm.episodes import Support
from metalstm.learners import Conv4

Adapted = dict[str, Tensor]  # everything that one task, or each of a batch of tasks, taught


class Method(nn.Module, ABC):
    """A way to learn from a support set."""

    @abstractmethod
    def adapt(self, support: Support) -> Adapted:
        """Learn from a support set; deterministic, and leaves the method as it was."""

    @abstractmethod
    def logits(
        self, adapted: Adapted, query_x: Float[Tensor, "*tasks n_query channels height width"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """Class scores of new images."""

    def forward(self, batch: Any) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """What meta-training minimises, and beside it the query accuracy.

        Args:
            batch: Episodes, or for a method that is pre-trained a mini-batch of labelled images.

        Returns:
            Mean cross-entropy of the queries in nats, and the share of them that is classified rightly, in 0..1.
        """
        return score(self.logits(self.adapt(batch.support), batch.query.x), batch.query.y)


def embed(
    learner: Conv4, body: Tensor, x: Float[Tensor, "*tasks n channels height width"], moments: Tensor
) -> Float[Tensor, "*tasks n n_features"]:
    """Features of images by one body and one set of moments for all tasks."""
    tasks = x.shape[:-4]
    return learner.features(body.expand(*tasks, -1), x, moments.expand(*tasks, -1))[0]


def cross_entropy(logits: Float[Tensor, "*tasks n n_way"], y: Int[Tensor, "*tasks n"]) -> Float[Tensor, "*tasks"]:
    """Mean cross-entropy of each task, in nats."""
    return F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none").view(y.shape).mean(-1)


def score(
    logits: Float[Tensor, "*tasks n n_way"], y: Int[Tensor, "*tasks n"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean cross-entropy over all tasks, in nats, and accuracy, in 0..1 and without gradient."""
    with torch.no_grad():
        accuracy = (logits.argmax(-1) == y).float().mean()
    return cross_entropy(logits, y).mean(), accuracy
