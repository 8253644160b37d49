"""MAML with learned inner optimizers: LSLR, Meta-SGD and ALFA."""

from dataclasses import replace
from typing import Any, ClassVar

from metalstm.methods.base import Recipe
from metalstm.methods.maml import MAML
from metalstm.methods.published import BAIK, five_way
from metalstm.optimizers import Alfa, LearnedRates, MetaSGD
from metalstm.settings import Traits


class LSLR(MAML):
    """MAML with a learned rate for each layer and step.

    References:
        Antoniou, Edwards & Storkey 2019 (arXiv 1810.09502).
    """

    label = "LSLR"
    inner_optimizer: ClassVar[tuple[str, Any]] = ("learned-rates", LearnedRates)

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """As MAML's, with its learned rates starting from MAML's rate."""
        recipe = super().recipe(name, traits, n_shot)
        optimizer, kind = cls.inner_optimizer
        settings = kind.Settings(start_rate=recipe.optimizer_settings.rate)
        return replace(recipe, optimizer=optimizer, optimizer_settings=settings)


class MetaSGDMethod(LSLR):
    """MAML with a learned rate for each coordinate.

    References:
        Li et al. 2017 (arXiv 1707.09835).
    """

    label = "Meta-SGD"
    inner_optimizer = ("meta-sgd", MetaSGD)


class ALFA(LSLR):
    """MAML whose rates and decay come from each layer's mean weight and gradient.

    References:
        Baik et al. 2020 (arXiv 2011.00209).
    """

    label = "ALFA"
    inner_optimizer = ("alfa", Alfa)
    published = (
        five_way("cifar-fs", 60.0, 76.8, BAIK, transductive=True),
        five_way("fc100", 38.0, 53.0, BAIK, transductive=True),
    )
