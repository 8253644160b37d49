"""A learner whose body the inner loop leaves alone."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalstm.learners.base import Learner


class HeadOnly(Learner):
    """Another learner with its body fixed: theta is the head alone, and each image is embedded once per episode.

    Args:
        learner: The whole network.
        body: Its theta without the head: an ordinary parameter, trained by the outer loop or frozen.
        moments: What it normalizes by.
        frozen: Whether the body is not trained by the outer loop either; nothing then keeps a graph of it.
    """

    moments: Tensor

    def __init__(self, learner: Learner, body: Tensor, moments: Tensor, frozen: bool = True):
        super().__init__()
        self.learner, self.frozen = learner, frozen
        self.body = nn.Parameter(body, requires_grad=not frozen)
        self.register_buffer("moments", moments)
        self.image_shape, self.n_features, self.shapes = learner.image_shape, learner.n_features, {}

    def own_network(self) -> tuple[Tensor, Tensor]:
        """The body, and what it normalizes by."""
        return self.body, self.moments

    def init_body(self, generator: torch.Generator) -> Float[Tensor, " 0"]:
        """Theta has none."""
        return torch.zeros(0)

    def fixed(
        self, x: Float[Tensor, "*tasks n channels height width"], train: bool = False
    ) -> Float[Tensor, "*tasks n n_features"]:
        """The features of images."""
        tasks = x.shape[:-4]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            x, moments = self.learner.fixed(x, train), self.moments.expand(*tasks, -1)
            return self.learner.features(self.body.expand(*tasks, -1), x, moments, train)[0]

    def features(
        self, theta: Tensor, x: Float[Tensor, "*tasks n n_features"], moments: Tensor | None = None, train: bool = False
    ) -> tuple[Float[Tensor, "*tasks n n_features"], Float[Tensor, "*tasks 0"]]:
        """What `fixed` gave, and no moments."""
        return x, theta[..., :0]
