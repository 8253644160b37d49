"""Methods that compare queries with the support set."""

import torch
from jaxtyping import Float
from torch import Tensor

from metalstm.episodes import Support
from metalstm.methods.base import Adapted, Method


class PixelNearestNeighbor(Method):
    """The class of the single support image whose pixels are nearest, by Euclidean distance.

    The floor that any method that learned something must clear.
    """

    def adapt(self, support: Support) -> Adapted:
        """Keep the support set; `n_way` is carried as a tensor so that everything adapted can be saved."""
        return {"x": support.x.flatten(-3), "y": support.y, "n_way": torch.tensor(support.n_way)}

    def logits(
        self, adapted: Adapted, query_x: Float[Tensor, "*tasks n_query channels height width"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """Minus the distance to the nearest support image of each class."""
        distance = torch.cdist(query_x.flatten(-3), adapted["x"])  # (*tasks, n_query, n_support)
        per_class = [
            distance.masked_fill((adapted["y"] != label).unsqueeze(-2), torch.inf).amin(-1)
            for label in range(int(adapted["n_way"]))
        ]
        return -torch.stack(per_class, -1)
