"""The Meta-Learner LSTM."""

from dataclasses import replace

from metalstm.learners import Conv4
from metalstm.methods.base import Recipe, Row
from metalstm.methods.gradient import FEW_SHOTS, GradientMethod, InnerLoop
from metalstm.methods.pretrained import on_pretrained
from metalstm.methods.published import table_1
from metalstm.optimizers import MetaLSTM
from metalstm.settings import TrainingSettings, Traits


class MetaLearnerLSTM(GradientMethod):
    """A learner trained from a learned theta_0 by an LSTM whose cell state is theta.

    References:
        Ravi & Larochelle 2017.
    """

    label = "Meta-LSTM"

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """`paper`: the authors' settings to the letter. `best`: what measured best; each departure is one field."""
        paper = _paper(n_shot)
        if name == "paper":
            return paper
        learner = Conv4.Settings(conv_bias=False, unit_gamma=True)
        optimizer = MetaLSTM.Settings(hidden_size=8, input_bias=(-3.0, -3.0))
        loop = InnerLoop(
            epochs=5,
            batch_size=None,
            order=2,
            query_norm="support",
            train_query_norm="support",
            norm_momentum=paper.settings.norm_momentum,
            shared_head=True,
        )
        # With a clip of 0.25 an episode whose inner loop diverged weighs no more than any other, and the input gate
        # grows until many do.
        training = replace(
            paper.training, optimizer_lr=1e-4, clip=10.0, val_every=250, patience=10, rotations=traits.rotations
        )
        best = Recipe(loop, training, "conv4", learner, "meta-lstm", optimizer)
        return best if traits.built_in else _from_pretrained(best, traits)

    @classmethod
    def rows(cls) -> tuple[Row, ...]:
        """The paper's and ours."""
        published = (table_1((43.44, 0.77), (60.60, 0.71)),)
        return (
            Row("meta-lstm-paper", "Meta-LSTM, paper", recipe="paper", published=published, ways=(5,)),
            Row("meta-lstm", "Meta-LSTM, best", seeds=True),
        )


def _paper(n_shot: int) -> Recipe:
    """The paper has a schedule for 1 and one for 5 shots."""
    settings = InnerLoop(few_shot_epochs=5, divide_gradient=True)
    training = TrainingSettings()
    if n_shot < FEW_SHOTS:
        settings = replace(settings, epochs=12, few_shot_epochs=None, batch_size=5, norm_momentum=0.9)
        training = replace(training, episodes=75_000)
    return Recipe(settings, training, "conv4", Conv4.Settings(), "meta-lstm", MetaLSTM.Settings())


def _from_pretrained(recipe: Recipe, traits: Traits) -> Recipe:
    """A pre-trained network is the better start: the inner loop trains the head, and meta-training the whole network.

    A body that may move learns to stay where it is: in five steps it moved by 1e-5 of its length (results). Moments of
    a handful of images are noise beside those of the pre-training. Many small outer steps, of an episode each, gained 2
    points on meta-val (CIFAR-FS, 1-shot), where as many episodes in steps of four gained nothing.
    """
    start = on_pretrained("best", traits)
    return replace(
        recipe,
        settings=replace(
            recipe.settings,
            moves="head",
            query_norm="running",
            train_query_norm="running",
            keep_moments=True,
            query_scale=10.0,
        ),
        learner_settings=replace(start.learner_settings, unit_features=True),
        optimizer_settings=replace(recipe.optimizer_settings, forget_bias=(12.0, 12.0)),
        training=replace(
            recipe.training,
            pretrain=start.training.pretrain,
            generations=start.training.generations,
            mirrors=traits.mirrors,
            episodes=10_000,
            lr=5e-4,
            optimizer_lr=1e-3,
            lr_decay=True,
            val_every=1000,
            val_episodes=300,
        ),
    )
