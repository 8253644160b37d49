"""From names to runs: recipes, configurations and what they build."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch

from metalstm import settings as settings_of
from metalstm.data import MetaSets
from metalstm.errors import UserError, shown, unknown
from metalstm.learners import LEARNERS
from metalstm.methods import METHODS, Method, Recipe, RunConfig
from metalstm.optimizers import OPTIMIZERS
from metalstm.settings import NoSettings, Traits

RECIPES = ("paper", "best")
# The parts of a configuration that are settings, each with the field that names what it belongs to.
_PARTS = {"settings": "method", "learner_settings": "learner", "optimizer_settings": "optimizer", "training": ""}
_LENGTH = ("episodes", "minutes")  # a run may be made longer and stays the same run


def named(
    method: str, recipe: str, traits: Traits, n_shot: int, learner: str | None = None, optimizer: str | None = None
) -> Recipe:
    """The settings of a recipe.

    Args:
        method: One of `METHODS`.
        recipe: One of `RECIPES`. `paper` is the authors' to the letter, except that the checkpoint is chosen on
            meta-val; `best` is what measured best.
        traits: Of the data set.
        n_shot: Support images a class.
        learner: One of `LEARNERS`, with its default settings, instead of the recipe's.
        optimizer: One of `OPTIMIZERS`, likewise.

    Raises:
        UserError: A name is unknown, or the method takes no inner optimizer.
    """
    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    chosen = look_up("method", METHODS, method).recipe(recipe, traits, n_shot)
    if learner not in (None, chosen.learner):
        kind = look_up("learner", LEARNERS, learner)
        chosen = replace(chosen, learner=learner, learner_settings=kind.Settings())
    if optimizer not in (None, chosen.optimizer):
        if not chosen.optimizer:
            raise UserError(f"--optimizer {optimizer}: {method} has no inner loop and takes no inner optimizer")
        kind = look_up("optimizer", OPTIMIZERS, optimizer)
        chosen = replace(chosen, optimizer=optimizer, optimizer_settings=kind.Settings())
    return chosen


def run_config(
    meta_sets: MetaSets,
    recipe: Recipe,
    method: str,
    recipe_name: str,
    n_way: int = 5,
    n_shot: int = 5,
    n_query: int = 15,
    seed: int = 0,
) -> RunConfig:
    """The configuration of a run on a data set; arguments as the fields of `Recipe` and `RunConfig`."""
    images = meta_sets.splits["meta-train"]
    return RunConfig(
        **_values(recipe),
        method=method,
        recipe=recipe_name,
        data=meta_sets.name,
        data_digest=meta_sets.digest,
        licence=meta_sets.licence,
        traits=meta_sets.traits,
        image_shape=images.image_shape,
        n_classes=len(images.classes),
        n_way=n_way,
        n_shot=n_shot,
        n_query=n_query,
        seed=seed,
    )


def build(config: RunConfig) -> Method:
    """The method that a configuration describes, with weights drawn by its seed."""
    generator = torch.Generator().manual_seed(config.seed)
    learner = LEARNERS[config.learner].build(config.learner_settings, config.image_shape, generator)
    learner = METHODS[config.method].inner_learner(config, learner, generator)
    optimizer = None
    if config.optimizer:
        optimizer = OPTIMIZERS[config.optimizer].build(config.optimizer_settings, learner, generator)
    return METHODS[config.method].build(config, learner, optimizer, generator)


def pretraining(config: RunConfig) -> RunConfig:
    """The run that a method starts from: its network as a classifier of all meta-train classes.

    `training.pretrain` is the number of mini-batches. The run's minutes bound it too: it gets half of them, or all
    where no episodes follow. A pre-training itself starts from the generation before it.

    Raises:
        UserError: A pre-training of one generation has none before it.
    """
    recipe = named("pretrained", config.recipe, config.traits, config.n_shot, config.learner)
    own = config.training
    generation = own.generations - (config.method == "pretrained")
    if own.pretrain and generation < 1:
        raise UserError("--generations 1: no generation comes before the first: pass --pretrain 0 too")
    return replace(
        config,
        method="pretrained",
        settings=recipe.settings,
        learner_settings=LEARNERS[config.learner].for_pretraining(config.learner_settings),
        optimizer="",
        optimizer_settings=NoSettings(),
        training=replace(
            recipe.training,
            episodes=own.pretrain,
            pretrain=own.pretrain if generation > 1 else 0,
            generations=generation,
            minutes=own.minutes and own.minutes / (2 if own.episodes else 1),
            rotations=own.rotations,
            mirrors=own.mirrors,
            within_group=own.within_group,
        ),
    )


def with_changes(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """A configuration with some settings changed, by their names, whichever part they belong to.

    Raises:
        UserError: No part has a setting of this name, or a value is not allowed.
    """
    for name, value in changes.items():
        parts = [part for part in _PARTS if name in _names(getattr(config, part))]
        if not parts:
            known = [each for part in _PARTS for each in _names(getattr(config, part))]
            raise unknown("setting", name, known)
        config = replace(config, **{part: settings_of.changed(getattr(config, part), name, value) for part in parts})
    return config


def has_setting(config: RunConfig, name: str) -> bool:
    """Whether some part of a configuration has a setting of this name."""
    return any(name in _names(getattr(config, part)) for part in _PARTS)


def check(config: RunConfig | Recipe) -> None:
    """Compare all settings with their types and bounds.

    Raises:
        UserError: Names every wrong value and what is allowed.
    """
    settings_of.check(config, *(getattr(config, part) for part in _PARTS))


def changes(config: RunConfig) -> dict[str, Any]:
    """The settings that differ from the recipe's, except the length of the run."""
    recipe = named(config.method, config.recipe, config.traits, config.n_shot, config.learner, config.optimizer or None)
    return {
        name: value
        for part in _PARTS
        for name, value in settings_of.to_dict(getattr(config, part)).items()
        if name not in _LENGTH and value != settings_of.to_dict(getattr(recipe, part)).get(name)
    }


def differences(old: RunConfig, new: RunConfig) -> str:
    """What differs between two runs, in words, except their length; empty if one can go on with the other."""
    before, after = _flat(old), _flat(new)
    return "; ".join(
        f"{name} {shown(before.get(name))} there, {shown(after.get(name))} now"
        for name in before | after
        if before.get(name) != after.get(name)
    )


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain values, as JSON would give them back."""
    return settings_of.to_dict(config)


def from_dict(values: Any) -> RunConfig:
    """The inverse of `to_dict`.

    Raises:
        UserError: A name is missing or unknown, or a value is of a wrong type or makes no sense.
    """
    if not isinstance(values, dict):
        raise UserError(f"a configuration is {shown(values)}: must be an object")
    settings_of.check_names(RunConfig, values)
    kinds: dict[str, Callable[[], Any]] = {
        "settings": lambda: look_up("method", METHODS, values["method"]).Settings,
        "learner_settings": lambda: look_up("learner", LEARNERS, values["learner"]).Settings,
        "optimizer_settings": lambda: (
            look_up("optimizer", OPTIMIZERS, values["optimizer"]).Settings if values["optimizer"] else NoSettings
        ),
    }
    made = {name: settings_of.from_dict(kind(), values[name]) for name, kind in kinds.items()}
    plain = {name: value for name, value in values.items() if name not in made}
    return settings_of.from_dict(RunConfig, {**plain, **made})


def look_up(kind: str, table: dict[str, Any], name: Any) -> Any:
    """An entry of a table.

    Raises:
        UserError: There is none of this name.
    """
    if not isinstance(name, str) or name not in table:
        raise unknown(kind, str(name), table)
    return table[name]


def _names(part: Any) -> list[str]:
    return [field.name for field in fields(part)]


def _values(part: Any) -> dict[str, Any]:
    return {name: getattr(part, name) for name in _names(part)}


def _flat(config: RunConfig) -> dict[str, Any]:
    """All values that must be the same when a run is gone on with."""
    values = to_dict(config)
    parts = [values.pop(part) for part in _PARTS]
    flat = {name: value for part in parts for name, value in part.items() if name not in _LENGTH}
    return {**values, **flat}
