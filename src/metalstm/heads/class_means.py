"""The nearest class mean."""

from metalstm.heads.base import Head, describe
from metalstm.methods import RunConfig
from metalstm.methods.class_means import ClassMeans


class ClassMeansHead(Head):
    """The class whose mean feature of length 1 is nearest."""

    label = "class means"

    def candidates(self, n_features: int, n_way: int, n_shot: int) -> list[RunConfig]:
        """One: there is nothing to choose."""
        settings = ClassMeans.Settings(normalize="none")  # the learner has scaled them
        return [describe("class-means", n_features, n_way, n_shot, settings=settings)]
