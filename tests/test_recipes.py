"""Recipes to the letter, and configurations: made, changed, compared, and refused where they make no sense."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from metalstm import recipes
from metalstm.errors import UserError
from metalstm.learners import LEARNERS, Conv4
from metalstm.methods import METHODS, Finetune, InnerLoop, MatchingNet, RunConfig
from metalstm.methods.matching_net import FullContext
from metalstm.methods.pretrained import Pretrained
from metalstm.optimizers import OPTIMIZERS, SGD, MetaLSTM
from metalstm.recipes import RECIPES, named
from metalstm.settings import NoSettings, TrainingSettings, Traits

PHOTOS, SIGNS = Traits(), Traits(drawing=True, mirrors=False, rotations=True)
BUILT_IN = Traits(drawing=True, mirrors=False, built_in=True)


def config_of(method: str = "meta-lstm", recipe: str = "paper", **more: Any) -> RunConfig:
    """A run of a recipe on photos of 16x16 pixels."""
    chosen = named(method, recipe, PHOTOS, 5)
    values = {field.name: getattr(chosen, field.name) for field in fields(chosen)}
    return RunConfig(**values, method=method, recipe=recipe, image_shape=(3, 16, 16), n_classes=4, **more)


# The paper's, item by item as in its authors' code.


@pytest.mark.parametrize("traits", [PHOTOS, SIGNS, BUILT_IN], ids=["photos", "signs", "built in"])
def test_the_paper_s_meta_lstm(traits):
    five = named("meta-lstm", "paper", traits, 5)
    assert (five.learner, five.optimizer) == ("conv4", "meta-lstm")
    assert five.learner_settings == Conv4.Settings(
        filters=32, conv_bias=True, unit_gamma=False, dropout=0.0, unit_features=False, mirror=False, precision="fp32"
    )
    assert five.optimizer_settings == MetaLSTM.Settings(
        hidden_size=20, forget_bias=(4.0, 5.0), input_bias=(-5.0, -4.0), layer_rates=False
    )
    assert five.settings == InnerLoop(
        epochs=8,
        few_shot_epochs=5,  # of a mini-batch of 5: at 1 shot there are no more images
        batch_size=25,
        order=1,
        divide_gradient=True,
        query_norm="running",
        train_query_norm="batch",
        norm_momentum=0.95,
        keep_moments=False,
        query_scale=None,
        shared_head=False,
    )
    assert five.training == TrainingSettings(
        episodes=50_000,
        meta_batch=1,
        lr=1e-3,
        optimizer_lr=1e-3,
        lr_decay=False,
        clip=0.25,
        pretrain=0,
        rotations=False,
        mirrors=False,
        val_every=1000,
        val_episodes=100,
        patience=None,
    )
    one = named("meta-lstm", "paper", traits, 1)
    loop = replace(five.settings, epochs=12, few_shot_epochs=None, batch_size=5, norm_momentum=0.9)
    assert one == replace(five, settings=loop, training=replace(five.training, episodes=75_000))


@pytest.mark.parametrize("traits", [PHOTOS, SIGNS, BUILT_IN], ids=["photos", "signs", "built in"])
@pytest.mark.parametrize("n_shot", [1, 5])
def test_the_paper_s_baselines(traits, n_shot):
    learner = Conv4.Settings(filters=64)

    pretrained = named("pretrained", "paper", traits, n_shot)
    assert pretrained.learner_settings == learner
    assert pretrained.settings == Pretrained.Settings(batch_size=64)
    assert pretrained.training == TrainingSettings(episodes=30_000, lr=1e-3, clip=None)
    assert pretrained.optimizer == ""

    finetune = named("finetune", "paper", traits, n_shot)
    assert finetune.learner_settings == learner
    loop = finetune.settings
    assert (loop.epochs, loop.batch_size, loop.norm_momentum, loop.rules) == (15, None, 0.1, ("sgd",))
    assert loop.moves == "all"
    assert finetune.training == TrainingSettings(episodes=0, pretrain=30_000)
    assert (finetune.optimizer, type(finetune.optimizer_settings)) == ("sgd", SGD.Settings)

    for method in ("matching-net", "matching-net-fce"):
        matching = named(method, "paper", traits, n_shot)
        assert matching.learner_settings == replace(learner, dropout=0.1)
        assert matching.settings == MatchingNet.Settings(class_score="sum")
        assert matching.training == TrainingSettings(episodes=75_000, lr=1e-4, clip=None)
    assert FullContext(4).steps == 3

    pixels = named("pixels", "paper", traits, n_shot)
    assert (pixels.training.episodes, pixels.training.pretrain, pixels.settings) == (0, 0, NoSettings())


# `best`, as results/README.md lists what it changes.


@pytest.mark.parametrize("n_shot", [1, 5])
@pytest.mark.parametrize("traits", [PHOTOS, SIGNS], ids=["photos", "signs"])
def test_the_best_meta_lstm(traits, n_shot):
    best, paper = (named("meta-lstm", recipe, traits, n_shot) for recipe in ("best", "paper"))
    assert best.learner_settings == Conv4.Settings(
        filters=64, conv_bias=False, unit_gamma=True, unit_features=True, pooling="average", mirror=traits.mirrors
    )
    assert best.optimizer_settings == MetaLSTM.Settings(
        hidden_size=8, forget_bias=(12.0, 12.0), input_bias=(-3.0, -3.0)
    )
    assert best.settings == InnerLoop(
        epochs=5,
        batch_size=None,
        moves="head",
        order=2,
        query_norm="running",
        train_query_norm="running",
        norm_momentum=paper.settings.norm_momentum,
        keep_moments=True,
        query_scale=10.0,
        shared_head=True,
    )
    assert best.training == TrainingSettings(
        episodes=10_000,
        lr=5e-4,
        optimizer_lr=1e-3,
        lr_decay=True,
        clip=10.0,
        pretrain=30_000,
        generations=2,
        rotations=traits.rotations,
        mirrors=traits.mirrors,
        val_every=1000,
        val_episodes=300,
        patience=10,
    )


def test_the_best_meta_lstm_of_the_demo_starts_from_random_weights():
    """The demo has minutes: the moments are those of the support set, and there is nothing to keep."""
    best = named("meta-lstm", "best", BUILT_IN, 5)
    assert best.training.pretrain == 0
    assert (best.settings.query_norm, best.settings.train_query_norm) == ("support", "support")
    assert (best.settings.keep_moments, best.settings.query_scale) == (False, None)
    assert (best.settings.epochs, best.settings.order, best.settings.shared_head) == (5, 2, True)
    assert best.optimizer_settings == MetaLSTM.Settings(hidden_size=8, input_bias=(-3.0, -3.0))
    assert (best.training.clip, best.training.optimizer_lr, best.training.rotations) == (10, 1e-4, False)


@pytest.mark.parametrize("traits", [PHOTOS, SIGNS, BUILT_IN], ids=["photos", "signs", "built in"])
def test_the_best_baselines_start_from_the_same_pre_training(traits):
    """Rows that are compared have the same network, the same images and the same length of pre-training."""
    pretrained = named("pretrained", "best", traits, 5)
    assert pretrained.learner_settings == Conv4.Settings(
        filters=64, conv_bias=False, unit_gamma=True, pooling="average", mirror=traits.mirrors
    )
    changes: dict[str, Any] = {"affine": 0.1, "elastic": 0.5} if traits.drawing else {"crop": 4}
    assert pretrained.training == TrainingSettings(
        episodes=30_000,
        outer="sgd",
        lr=0.05,
        lr_decay=True,
        weight_decay=5e-4,
        clip=None,
        pretrain=30_000,
        generations=2,
        val_every=5000,
        val_episodes=300,
        mirrors=traits.mirrors,
        rotations=traits.rotations,
        **changes,
    )
    for method in ("finetune", "matching-net", "matching-net-fce", "meta-lstm"):
        best = named(method, "best", traits, 5)
        assert best.training.rotations == traits.rotations
        if not best.training.pretrain:
            assert traits.built_in
            continue
        assert best.training.pretrain == 30_000
        assert best.training.mirrors == traits.mirrors
        config = config_of(method, "best", traits=traits)
        own = replace(config, training=best.training, learner_settings=best.learner_settings)
        run = recipes.pretraining(own)
        assert run.training == pretrained.training
        assert run.learner_settings == pretrained.learner_settings


def test_the_best_matching_network():
    best = named("matching-net", "best", PHOTOS, 1)
    assert best == named("matching-net-fce", "best", PHOTOS, 1)
    assert best.settings == MatchingNet.Settings(class_score="attention", scale=10.0)
    assert best.training == TrainingSettings(
        episodes=10_000,
        lr=1e-3,
        lr_decay=True,
        clip=None,
        pretrain=30_000,
        generations=2,
        val_episodes=300,
        mirrors=True,
    )


# Every entry, whatever it is.


@pytest.mark.parametrize("n_shot", [1, 5])
@pytest.mark.parametrize("traits", [PHOTOS, SIGNS, BUILT_IN], ids=["photos", "signs", "built in"])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_is_allowed_and_can_be_written_and_built(method, recipe, traits, n_shot):
    chosen = named(method, recipe, traits, n_shot)
    recipes.check(chosen)
    config = replace(config_of(method, recipe), traits=traits, n_shot=n_shot)
    config = replace(config, **{field.name: getattr(chosen, field.name) for field in fields(chosen)})
    again = recipes.from_dict(json.loads(json.dumps(recipes.to_dict(config))))
    assert again == config
    assert recipes.changes(config) == {}
    assert recipes.differences(config, again) == ""
    recipes.build(recipes.with_changes(config, {"filters": 2} if recipes.has_setting(config, "filters") else {}))


def test_building_is_a_function_of_the_configuration():
    config = recipes.with_changes(config_of(), {"filters": 4})
    one, same, other = (recipes.build(each).state_dict() for each in (config, config, replace(config, seed=1)))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["body_0"], other["body_0"])


@pytest.mark.parametrize("name", LEARNERS)
def test_another_learner_has_its_own_settings(name):
    chosen = named("meta-lstm", "best", PHOTOS, 5, learner=name)
    expected = named("meta-lstm", "best", PHOTOS, 5)
    assert chosen.learner == name
    if name != expected.learner:
        expected = replace(expected, learner=name, learner_settings=LEARNERS[name].Settings())
    assert chosen == expected


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_another_inner_optimizer_has_its_own_settings(name):
    chosen = named("meta-lstm", "best", PHOTOS, 5, optimizer=name)
    expected = named("meta-lstm", "best", PHOTOS, 5)
    if name != expected.optimizer:
        expected = replace(expected, optimizer=name, optimizer_settings=OPTIMIZERS[name].Settings())
    assert chosen == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("meta-lstm", "bst"), "unknown recipe 'bst', did you mean 'best'? allowed: best, paper"),
        (("meta-lstn", "best"), "unknown method 'meta-lstn', did you mean 'meta-lstm'? allowed: "),
        (("pixels", "best", "conv5"), "unknown learner 'conv5', did you mean 'conv4'? allowed: "),
        (("meta-lstm", "best", None, "sdg"), "unknown optimizer 'sdg', did you mean 'sgd'? allowed: "),
        (
            ("matching-net", "best", None, "sgd"),
            "--optimizer sgd: matching-net has no inner loop and takes no inner optimizer",
        ),
    ],
    ids=lambda value: " ".join(map(str, value))[:30] if isinstance(value, tuple) else "",
)
def test_unknown_names_are_refused_with_a_suggestion(words, message):
    method, recipe, *parts = words
    with pytest.raises(UserError) as error:
        named(method, recipe, PHOTOS, 5, *parts)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


# Changes and differences.


def test_a_setting_is_changed_wherever_it_belongs():
    config = recipes.with_changes(
        config_of(), {"epochs": 3, "filters": 5, "hidden_size": 7, "lr": 0.5, "forget_bias": [1.0, 2.0]}
    )
    assert (config.settings.epochs, config.learner_settings.filters) == (3, 5)
    assert (config.optimizer_settings.hidden_size, config.training.lr) == (7, 0.5)
    assert config.optimizer_settings.forget_bias == (1.0, 2.0)
    assert recipes.changes(config) == {
        "epochs": 3,
        "filters": 5,
        "hidden_size": 7,
        "forget_bias": [1.0, 2.0],
        "lr": 0.5,
    }
    assert recipes.with_changes(config, {}) == config


def test_the_length_of_a_run_is_no_change():
    config = recipes.with_changes(config_of(), {"episodes": 3, "minutes": 1.0})
    assert recipes.changes(config) == {}
    assert recipes.differences(config_of(), config) == ""


def test_changes_are_to_the_recipe_of_the_same_learner_and_optimizer():
    chosen = named("meta-lstm", "paper", PHOTOS, 5, optimizer="sgd")
    config = replace(config_of(), optimizer=chosen.optimizer, optimizer_settings=SGD.Settings(rate=0.5))
    assert recipes.changes(config) == {"rate": 0.5}


def test_names_of_settings_do_not_collide():
    """A setting is given by its name alone, on the command line, in rows of the table and in `with_changes`."""
    training = {field.name for field in fields(TrainingSettings)}
    for method in METHODS.values():
        for learner in LEARNERS.values():
            for optimizer in OPTIMIZERS.values():
                kinds = (method.Settings, learner.Settings, optimizer.Settings)
                names = [field.name for kind in kinds for field in fields(kind)]
                assert len({*names, *training}) == len(names) + len(training), (method, learner, optimizer)


def test_what_differs_between_two_runs_is_named():
    one = config_of()
    other = recipes.with_changes(replace(one, seed=3, traits=SIGNS), {"filters": 5, "clip": None, "episodes": 7})
    assert recipes.differences(one, other) == (
        "traits {'drawing': False, 'mirrors': True, 'rotations': False, 'centered': False, 'built_in': False} there, "
        "{'drawing': True, 'mirrors': False, 'rotations': True, 'centered': False, 'built_in': False} now; "
        "seed 0 there, 3 now; filters 32 there, 5 now; clip 0.25 there, None now"
    )
    assert "method 'meta-lstm' there, 'matching-net' now" in recipes.differences(config_of(), config_of("matching-net"))


# Values that make no sense.


BAD: list[tuple[str, Any, str]] = [
    ("optimizer_lr", 0, "--optimizer-lr 0: must be above 0"),
    ("optimizer_lr", -1.0, "--optimizer-lr -1.0: must be above 0"),
    ("optimizer_lr", float("nan"), "--optimizer-lr nan: must be above 0"),
    ("optimizer_lr", float("inf"), "--optimizer-lr inf: must be a number, above 0"),
    ("optimizer_lr", 1e300, "--optimizer-lr 1e+300: must be above 0"),
    ("optimizer_lr", "1", "--optimizer-lr 1: must be a number, above 0"),
    ("optimizer_lr", True, "--optimizer-lr True: must be a number, above 0"),
    ("optimizer_lr", None, "--optimizer-lr None: must be a number, above 0"),
    ("optimizer_lr", [], "--optimizer-lr []: must be a number, above 0"),
    ("clip", 0, "--clip 0: must be above 0 and at most 1e+09 or None"),
    ("episodes", -1, "--episodes -1: must be at least 0"),
    ("episodes", 1.5, "--episodes 1.5: must be a whole number, at least 0"),
    ("val_episodes", 1, "--val-episodes 1: must be at least 2"),
    ("lr_decay", 1, "--lr-decay 1: must be True or False"),
    ("order", 3, "--order 3: must be one of 1, 2"),
    ("order", "1", "--order 1: must be one of 1, 2"),
    ("query_norm", None, "--query-norm None: must be one of running, support, batch"),
    ("norm_momentum", 0, "--norm-momentum 0: must be above 0 and at most 1"),
    ("filters", 10**30, f"--filters {10**30}: must be at least 1 and at most 4096"),
    ("filters", {"a": 1}, "--filters {a: 1}: must be a whole number, at least 1 and at most 4096"),
    ("dropout", 1, "--dropout 1: must be at least 0 and below 1"),
    ("precision", "fp64", "--precision fp64: must be one of fp32, tf32, bf16"),
    ("forget_bias", [1], "--forget-bias [1]: must be 2 values, each a number, "),
    ("forget_bias", ["a", "b"], "--forget-bias [a, b]: must be 2 values, each a number, "),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD, ids=lambda value: str(value)[:30])
def test_a_value_that_makes_no_sense_is_refused_in_one_line(name, value, message):
    with pytest.raises(UserError) as error:
        recipes.with_changes(config_of(), {name: value})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    values = recipes.to_dict(config_of())
    (part,) = (part for part in values.values() if isinstance(part, dict) and name in part)
    part[name] = value
    with pytest.raises(UserError) as error:
        recipes.from_dict(values)
    assert str(error.value).startswith(message)


def test_rules_of_fine_tuning_are_checked():
    config = config_of("finetune")
    with pytest.raises(UserError, match=r"^--rules sgd: must be a list of values, each a text$"):
        recipes.with_changes(config, {"rules": "sgd"})
    with pytest.raises(UserError, match=r"^unknown rule 'sdg', did you mean 'sgd'\? allowed: "):
        recipes.build(recipes.with_changes(config, {"rules": ("sdg",)}))
    assert isinstance(recipes.build(recipes.with_changes(config, {"rules": ("sgd", "adam"), "filters": 2})), Finetune)


def test_every_wrong_value_is_named():
    values = recipes.to_dict(config_of())
    values["training"] |= {"optimizer_lr": 0, "clip": "x"}
    with pytest.raises(
        UserError, match=r"^--optimizer-lr 0: must be above 0 and .*; --clip x: must be a number, above 0 and .*"
    ):
        recipes.from_dict(values)


def test_an_unknown_setting_is_refused_with_a_suggestion():
    with pytest.raises(UserError, match=r"^unknown setting 'filter', did you mean 'filters'\? allowed: "):
        recipes.with_changes(config_of(), {"filter": 3})
    with pytest.raises(UserError, match=r"^unknown setting 'hidden_size'"):
        recipes.with_changes(config_of("matching-net"), {"hidden_size": 3})


NONSENSE: list[tuple[str, Any, str]] = [
    ("method", None, "unknown method 'None': allowed: "),
    ("method", ["meta-lstm"], "unknown method "),
    ("method", {}, "unknown method '{}': allowed: "),
    ("learner", 4, "unknown learner '4'"),
    ("optimizer", 5, "unknown optimizer '5': allowed: "),
    ("optimizer", "", "NoSettings does not know body_factor, forget_bias, hidden_size, input_bias, layer_rates"),
    ("settings", None, "InnerLoop is None: must be an object"),
    ("training", [], "TrainingSettings is []: must be an object"),
    ("training", {"speed": 1}, "TrainingSettings does not know speed"),
    ("learner_settings", {"filters": 3, 5: 1}, "Conv4.Settings does not know 5"),
    ("traits", None, "Traits is None: must be an object"),
    ("traits", {"mirrors": 2}, "--mirrors 2: must be True or False"),
    ("data", 5, "--data 5: must be a text"),
    ("image_shape", [3, 16], "--image-shape [3, 16]: must be 3 values, each a whole number, at least 1"),
    ("image_shape", [3, 0, 16], "--image-shape [3, 0, 16]: must be 3 values, each a whole number, at least 1"),
    ("n_way", 1, "--n-way 1: must be at least 2"),
    ("n_shot", 0, "--n-shot 0: must be at least 1"),
    ("n_query", -1, "--n-query -1: must be at least 0"),
    ("n_classes", -1, "--n-classes -1: must be at least 0"),
    ("seed", 2**32, f"--seed {2**32}: must be at least 0"),
    ("colour", "red", "RunConfig does not know colour"),
]


@pytest.mark.parametrize(("name", "value", "message"), NONSENSE, ids=lambda value: str(value)[:30])
def test_a_configuration_that_makes_no_sense_is_refused_in_one_line(name, value, message):
    with pytest.raises(UserError) as error:
        recipes.from_dict(recipes.to_dict(config_of()) | {name: value})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("values", [None, 5, "config", [], ["method"]], ids=str)
def test_what_is_no_object_is_no_configuration(values):
    with pytest.raises(UserError) as error:
        recipes.from_dict(values)
    assert str(error.value) == f"a configuration is {values!r}: must be an object"


def test_what_a_configuration_lacks_is_named():
    values = recipes.to_dict(config_of())
    for name in ("method", "traits"):
        del values[name]
    with pytest.raises(UserError, match=r"^RunConfig lacks method, traits$"):
        recipes.from_dict(values)


# Pre-training.


def test_the_pre_training_has_the_same_learner_data_and_limits():
    config = recipes.with_changes(config_of("meta-lstm", "best", seed=3), {"minutes": 5.0, "filters": 7})
    run = recipes.pretraining(config)
    assert (run.method, run.optimizer, run.optimizer_settings) == ("pretrained", "", NoSettings())
    assert (run.training.episodes, run.training.minutes) == (config.training.pretrain, 2.5)  # half of the minutes
    # A plain classifier: its features have any length.
    assert run.learner_settings == replace(config.learner_settings, unit_features=False)
    same = ("data", "data_digest", "traits", "image_shape", "n_classes", "n_way", "n_shot", "n_query", "seed", "recipe")
    assert all(getattr(run, name) == getattr(config, name) for name in same)
