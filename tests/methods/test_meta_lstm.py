"""The recipes of the Meta-Learner LSTM: the paper's facts, and where `best` departs from them."""

from dataclasses import fields
from typing import Any

import pytest
import torch

from metalstm import recipes
from metalstm.episodes import Support
from metalstm.methods import GradientMethod, RunConfig
from metalstm.methods.meta_lstm import MetaLearnerLSTM
from metalstm.settings import Traits
from tiny import TRAITS


def run(recipe: str, traits: str = "photos", n_shot: int = 5, image_shape: tuple[int, int, int] = (3, 84, 84)) -> Any:
    chosen = recipes.named("meta-lstm", recipe, TRAITS[traits], n_shot)
    values = {field.name: getattr(chosen, field.name) for field in fields(chosen)}
    return RunConfig(**values, recipe=recipe, traits=TRAITS[traits], n_shot=n_shot, image_shape=image_shape)


def build(run: RunConfig) -> GradientMethod:
    method = recipes.build(run)
    assert isinstance(method, MetaLearnerLSTM)
    return method


def support(n_shot: int) -> Support:
    y = torch.arange(5).repeat(n_shot)
    return Support(torch.zeros(len(y), 3, 84, 84), y, 5)


def test_the_paper_at_five_shots():
    paper = run("paper")
    method = build(paper)
    assert len(method.theta_0(5)) == 32_901
    assert sum(parameter.numel() for parameter in method.optimizer.parameters()) == 4 * 20 * 25 + 2 * 23
    loop, training = paper.settings, paper.training
    assert (loop.epochs, loop.batch_size, loop.divide_gradient, loop.order) == (8, 25, True, 1)
    assert (loop.query_norm, loop.train_query_norm, loop.norm_momentum) == ("running", "batch", 0.95)
    assert (training.episodes, training.lr, training.optimizer_lr, training.clip) == (50_000, 1e-3, 1e-3, 0.25)
    assert (training.meta_batch, training.val_every, training.val_episodes, training.pretrain) == (1, 1000, 100, 0)
    assert method.n_steps(support(5)) == 8
    assert method.n_steps(support(1)) == 5, "the 5-shot Meta-LSTM takes 5 passes over a support set of 1 shot"


def test_the_paper_at_one_shot():
    paper = run("paper", n_shot=1)
    method = build(paper)
    assert (paper.settings.epochs, paper.settings.batch_size, paper.settings.norm_momentum) == (12, 5, 0.9)
    assert paper.training.episodes == 75_000
    assert method.n_steps(support(1)) == 12
    assert method.n_steps(support(5)) == 60, "12 passes over five mini-batches"


@pytest.mark.parametrize("traits", TRAITS)
def test_the_paper_is_the_same_for_all_data(traits):
    assert recipes.named("meta-lstm", "paper", TRAITS[traits], 5) == recipes.named("meta-lstm", "paper", Traits(), 5)


@pytest.mark.parametrize("n_shot", [1, 5])
def test_best_takes_five_steps_on_the_whole_support_set_whatever_the_shots(n_shot):
    method = build(run("best", n_shot=n_shot))
    assert method.n_steps(support(1)) == method.n_steps(support(5)) == 5
    method.check_way(20)


def test_best_depends_on_what_the_data_set_says_of_itself():
    photos, drawings, built_in = (run("best", traits, image_shape=(1, 28, 28)) for traits in TRAITS)
    assert photos.learner_settings.mirror
    assert photos.training.mirrors
    assert not photos.training.rotations
    assert not drawings.learner_settings.mirror
    assert not drawings.training.mirrors
    assert drawings.training.rotations
    for pretrained in (photos, drawings):
        assert pretrained.training.pretrain == 30_000
        assert pretrained.settings.keep_moments
        assert pretrained.learner_settings.unit_features
    assert built_in.training.pretrain == 0
    assert not built_in.settings.keep_moments
    assert (built_in.settings.query_norm, built_in.settings.train_query_norm) == ("support", "support")


def test_no_recipe_is_transductive():
    for name in recipes.RECIPES:
        for traits in TRAITS:
            assert run(name, traits).settings.query_norm in ("running", "support")


def test_rows_of_the_table():
    rows = MetaLearnerLSTM.rows()
    assert [(row.name, row.recipe, dict(row.changes)) for row in rows] == [
        ("meta-lstm-paper", "paper", {}),
        ("meta-lstm", "best", {}),
    ]
    (published,) = rows[0].published
    assert (published.data, published.figures) == ("mini-imagenet", {"5w1s": (43.44, 0.77), "5w5s": (60.60, 0.71)})
