"""What a head is."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

from metalstm import recipes
from metalstm.learners import Linear
from metalstm.methods import Method, RunConfig
from metalstm.settings import Traits


class Head(ABC):
    """A method of `METHODS` on given features: which one, and the settings that are worth trying."""

    label: ClassVar[str]
    """What a reader sees."""

    @abstractmethod
    def candidates(self, n_features: int, n_way: int, n_shot: int) -> list[RunConfig]:
        """The configurations to choose from. The first is taken where there are too few images to choose.

        Args:
            n_features: Numbers of a feature.
            n_way: Classes.
            n_shot: Images of a class, about.
        """

    def build(self, config: RunConfig) -> Method:
        """The method of a configuration, in evaluation mode."""
        return recipes.build(config).eval()


def describe(
    method: str, n_features: int, n_way: int, n_shot: int, length: float | None = 1.0, **parts: Any
) -> RunConfig:
    """The configuration of a method on features, which stand for images with one row of pixels.

    Args:
        method: One of `METHODS`.
        n_features: Numbers of a feature.
        n_way: Classes.
        n_shot: Images of a class.
        length: That features are scaled to.
        parts: Further fields of `RunConfig`.
    """
    config = RunConfig(
        method=method,
        data="features",
        traits=Traits(),
        learner="linear",
        learner_settings=Linear.Settings(length=length),
        image_shape=(1, 1, n_features),
        n_way=n_way,
        n_shot=n_shot,
    )
    return replace(config, **parts)
