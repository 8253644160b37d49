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

    Each class has a head row of its own: the ways of all rows sum to 0, so that a shared row would never move.

    References:
        Nichol, Achiam & Schulman 2018 (arXiv 1803.02999), algorithm 1.
    """

    label = "Reptile"
    order = 1

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """As MAML's, with a head row for each class, without a factor of logits, which no query loss would train."""
        recipe = super().recipe(name, traits, n_shot)
        return replace(recipe, settings=replace(recipe.settings, shared_head=False, query_scale=None))

    def forward(self, batch: Episode) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The query loss and accuracy after the inner loop; the gradient of the loss is theta_0 - theta_K instead.

        Half the squared distance from theta_0 to the end of the inner loop has that gradient. All are means over tasks.
        """
        adapted = self._adapt(batch.support, self.settings.train_query_norm, train=True)
        theta_0 = self.theta_0(batch.support.n_way)
        distance = (theta_0 - adapted["theta"].detach()).square().sum(-1).mean() / 2
        loss, accuracy = score(self.logits(adapted, batch.query.x, train=True), batch.query.y)
        return loss.detach() + distance - distance.detach(), accuracy
