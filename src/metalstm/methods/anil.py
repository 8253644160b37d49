"""ANIL and BOIL: MAML whose inner loop changes the head alone, or all but the head."""

from dataclasses import replace

from metalstm.methods.base import Recipe
from metalstm.methods.maml import MAML
from metalstm.settings import Traits


class ANIL(MAML):
    """MAML whose inner loop changes the head alone; the outer loop trains the body.

    References:
        Raghu et al. 2020 (arXiv 1909.09157), section 4.
    """

    label = "ANIL"
    moves = "head"

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """As MAML's."""
        recipe = super().recipe(name, traits, n_shot)
        return replace(recipe, settings=replace(recipe.settings, moves=cls.moves))


class BOIL(ANIL):
    """MAML whose inner loop changes all but the head, which the outer loop trains.

    Each class has a head row of its own: the gradient of the body is 0 if all rows are alike.

    References:
        Oh et al. 2021 (arXiv 2008.08882).
    """

    label = "BOIL"
    moves = "body"

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """As MAML's, with a head row for each class."""
        recipe = super().recipe(name, traits, n_shot)
        return replace(recipe, settings=replace(recipe.settings, shared_head=False))
