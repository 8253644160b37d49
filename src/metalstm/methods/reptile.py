"""Reptile."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from metalstm.episodes import Episode
from metalstm.methods.base import Recipe, score
from metalstm.methods.maml import MAML
from metalstm.settings import Traits


class Reptile(MAML):
    """theta_0 moves towards where plain training on a task ends.

    References:
        Nichol, Achiam & Schulman 2018 (arXiv 1803.02999), algorithm 1.
    """

    label = "Reptile"
    order = 1

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """As MAML's; the learned factor of the logits goes, since no query loss trains it."""
        recipe = super().recipe(name, traits, n_shot)
        return replace(recipe, settings=replace(recipe.settings, query_scale=None))

    def forward(self, batch: Episode) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Half the squared distance that the inner loop goes, whose gradient is theta_0 - theta_K; query accuracy.

        The mean over tasks.
        """
        adapted = self._adapt(batch.support, self.settings.train_query_norm, train=True)
        theta_0 = self.theta_0(batch.support.n_way)
        loss = (theta_0 - adapted["theta"].detach()).square().sum(-1).mean() / 2
        return loss, score(self.logits(adapted, batch.query.x, train=True), batch.query.y)[1]
