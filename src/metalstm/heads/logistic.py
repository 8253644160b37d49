"""Logistic regression."""

from metalstm.heads.base import Head, describe
from metalstm.methods import RunConfig
from metalstm.methods.logistic import Logistic


class LogisticHead(Head):
    """Logistic regression on features of length 1, with a choice of penalties."""

    label = "logistic regression"

    def candidates(self, n_features: int, n_way: int, n_shot: int) -> list[RunConfig]:
        """One for each penalty that the method can choose from."""
        return [
            describe("logistic", n_features, n_way, n_shot, settings=Logistic.Settings("none", penalty))
            for penalty in Logistic.choices["penalty"]
        ]
