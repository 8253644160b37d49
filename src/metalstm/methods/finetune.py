"""Fine-tuning the head alone; fine-tuning all layers is a `GradientMethod` with a pre-trained theta_0."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalstm.episodes import Episode, Support
from metalstm.learners import Conv4
from metalstm.methods.base import Adapted, Method, embed
from metalstm.methods.gradient import GradientMethod


class HeadOnly(Method):
    """A frozen network whose features a linear head is trained on; each image is embedded once.

    Args:
        learner: The network.
        body: Its pre-trained theta, without head.
        moments: By which it normalises.
        head: What trains the head: its learner is a `Linear` on the network's features.
    """

    moments: Tensor

    def __init__(self, learner: Conv4, body: Tensor, moments: Tensor, head: GradientMethod):
        super().__init__()
        self.learner, self.head = learner, head
        self.body = nn.Parameter(body, requires_grad=False)
        self.register_buffer("moments", moments)

    def embedded(self, episode: Episode) -> Episode:
        """The episode as the head sees it: features in the place of images."""
        support, query = episode.support, episode.query
        return Episode(replace(support, x=self._embed(support.x)), replace(query, x=self._embed(query.x)))

    def adapt(self, support: Support) -> Adapted:
        """Train the head on the support set."""
        return self.head.adapt(replace(support, x=self._embed(support.x)))

    def logits(
        self, adapted: Adapted, query_x: Float[Tensor, "*tasks n_query channels height width"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """Class scores of new images."""
        return self.head.logits(adapted, self._embed(query_x))

    @torch.no_grad()
    def _embed(self, x: Tensor) -> Float[Tensor, "*tasks n n_features 1 1"]:
        return embed(self.learner, self.body, x, self.moments)[..., None, None]
