"""MAML and its first-order variant."""

from dataclasses import replace
from typing import ClassVar, Literal

from metalstm.learners import Conv4
from metalstm.methods.base import Recipe, Row
from metalstm.methods.gradient import GradientMethod, InnerLoop
from metalstm.methods.meta_lstm import MetaLearnerLSTM
from metalstm.methods.published import BAIK, BERTINETTO, Published, five_way
from metalstm.optimizers import SGD
from metalstm.settings import TrainingSettings, Traits


class MAML(GradientMethod):
    """A learned theta_0 from which a few steps of plain gradient descent solve a task.

    References:
        Finn, Abbeel & Levine 2017 (arXiv 1703.03400), algorithm 2.
    """

    label = "MAML"
    order: Literal[1, 2] = 2
    published: ClassVar[tuple[Published, ...]] = (
        five_way("cifar-fs", 57.6, 74.0, BAIK, transductive=True),
        five_way("cifar-fs", 58.9, 71.5, BERTINETTO, transductive=True, note="32 filters"),
    )

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """`paper`: the authors' for mini-ImageNet, transductive. `best`: the Meta-LSTM's, all layers, by SGD."""
        if name == "paper":
            loop = InnerLoop(epochs=5, batch_size=None, order=cls.order, query_norm="batch")
            training = TrainingSettings(episodes=240_000, meta_batch=4, clip=None)
            return Recipe(loop, training, "conv4", Conv4.Settings(), "sgd", SGD.Settings(rate=0.01))
        recipe = MetaLearnerLSTM.recipe("best", traits, n_shot)
        return replace(
            recipe,
            settings=replace(recipe.settings, moves="all", order=cls.order),
            optimizer="sgd",
            optimizer_settings=SGD.Settings(rate=0.1),
        )

    @classmethod
    def rows(cls) -> tuple[Row, ...]:
        """Ours, and the authors' where there are figures of it."""
        published = vars(cls).get("published", ())  # a subclass is another method
        ours = Row(cls.label.lower(), cls.label, published=published)
        paper = Row(f"{ours.name}-paper", f"{cls.label}, paper", recipe="paper", published=published)
        return (ours, paper) if published else (ours,)


class FOMAML(MAML):
    """MAML with gradients of the learner taken as constants for the meta-gradient."""

    label = "FOMAML"
    order = 1
