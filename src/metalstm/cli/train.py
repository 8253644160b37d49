"""Train a method into a run folder.

`--method`, `--learner`, `--optimizer`, `--recipe`, `--data` and `--n-shot` choose which options there are and their
defaults: `metalstm train --method matching-net --recipe paper --help`, for example, shows those of that choice.

Ctrl-C saves the run. `metalstm train --resume --out RUN` resumes it with its own settings; beside them you can give a
larger `--episodes` or `--minutes`. On CPU, with the same number of threads, a resumed run ends with the same weights as
an uninterrupted one.

Example: metalstm train --data cifar-fs --n-shot 1 --minutes 60
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import tyro
from msgspec import Meta

from metalstm import data, recipes
from metalstm.cli import process
from metalstm.cli.common import Command, Common, Options
from metalstm.cli.options import DATA, Kind, kind_of, option_names, parse, parsed, traits_of
from metalstm.console import console
from metalstm.data import MetaSets
from metalstm.data.folder import PREFIX
from metalstm.errors import UserError
from metalstm.learners import LEARNERS
from metalstm.methods import METHODS, Recipe, RunConfig
from metalstm.optimizers import OPTIMIZERS
from metalstm.settings import Count, NoSettings, TrainingSettings, Traits, Ways
from metalstm.training.run_folder import RunFolder

S = TypeVar("S")
L = TypeVar("L")
I = TypeVar("I")  # noqa: E741
O = TypeVar("O")  # noqa: E741

_LABELS = "; ".join(f"{name}: {method.label}" for name, method in METHODS.items())
_RULES = "; ".join(f"{name}: {optimizer.label}" for name, optimizer in OPTIMIZERS.items())


@dataclass(frozen=True)
class InnerOptimizer:
    """The inner optimizer, for methods that have an inner loop."""

    optimizer: Annotated[str, tyro.conf.arg(help=f"Inner optimizer. {_RULES}.")]


@dataclass(frozen=True)
class Train(Command, Generic[S, L, I, O]):
    """Options of `metalstm train`; the types are those of the settings of method, learner and inner optimizer."""

    many_processes: ClassVar[bool] = True

    method_settings: tyro.conf.OmitArgPrefixes[S]
    learner_settings: tyro.conf.OmitArgPrefixes[L]
    inner_optimizer: tyro.conf.OmitArgPrefixes[I]
    optimizer_settings: tyro.conf.OmitArgPrefixes[O]
    training: tyro.conf.OmitArgPrefixes[TrainingSettings]
    method: Annotated[str, tyro.conf.arg(help=f"What is trained. {_LABELS}.")] = "meta-lstm"
    recipe: str = "best"
    """Where the defaults come from. `paper`: the authors' settings, to the letter; `best`: what measured best."""
    data: Annotated[str, tyro.conf.arg(help=f"Data set: {DATA}")] = "glyphs"
    kind: Kind = "auto"
    """What the images of folder:DIR show. `drawing`: strokes on paper, read in gray with the paper dark; `photo`:
    anything that is the same in a mirror; `auto`: read as photos, and mirrored unless they look like drawings."""
    learner: Annotated[str, tyro.conf.arg(help=f"Network: {', '.join(LEARNERS)}.")] = "conv4"
    n_way: Ways = 5
    """Classes in an episode."""
    n_shot: Count = 5
    """Support images of a class."""
    n_query: Count = 15
    """Query images of a class."""
    out: Path | None = None
    """Run folder; runs/METHOD-DATA-5w5s-RECIPE by default."""
    resume: bool = False
    """Resume the run in `--out`."""
    image_size: Annotated[int, Meta(le=512)] | None = None
    """Height and width that images are resized to, in pixels; as the data set says by default, 32 for a folder."""
    tensorboard: bool = False
    """Also write a TensorBoard event file into the run folder: `tensorboard --logdir runs` shows it as it grows."""
    skip_bad: bool = False
    """Of folder:DIR: go on without images that cannot be read and without classes that have no images."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Train, then write `report.html`."""
        device = self.common.start()
        from metalstm import checkpoint, distributed, kernels, report
        from metalstm.evaluation import allow_tf32
        from metalstm.training import train

        with distributed.all_fail_together():
            traits = traits_of(self.data, self.kind)
            meta_sets = data.load(self.data, self.common.data_root, self.image_size, traits, self.skip_bad)
            if device.startswith("cpu") and process.is_first_of_machine():
                kernels.build()
        if device.startswith("cpu"):
            kernels.build()  # the other processes of a machine load what the first has built
        config = self.config(meta_sets)
        allow_tf32(config.learner_settings.precision)
        name = f"{self.method}-{meta_sets.short_name}-{self.n_way}w{self.n_shot}s-{self.recipe}"
        out = self.out or Path("runs") / name
        is_first = distributed.rank() == 0
        with report.tensorboard(out) if self.tensorboard and is_first else contextlib.nullcontext():
            train(config, meta_sets, out, self.resume, device)
        if not is_first:
            return
        report.write_run(out, name, meta_sets.splits["meta-val"])
        meta = checkpoint.load(out / "best.safetensors")[1]
        after = f" after {meta['episode']:,} episodes" if meta["episode"] else ""
        best = f"best meta-val {meta['meta_val']:.2f} %{after}"
        console.print(f"{out}: {best}; now: metalstm evaluate {out}", soft_wrap=True)

    def config(self, meta_sets: MetaSets) -> RunConfig:
        """The run on a data set."""
        optimizer = getattr(self.inner_optimizer, "optimizer", "")
        recipe = Recipe(
            self.method_settings, self.training, self.learner, self.learner_settings, optimizer, self.optimizer_settings
        )
        task = self.n_way, self.n_shot, self.n_query
        return recipes.run_config(meta_sets, recipe, self.method, self.recipe, *task, self.common.seed)


@dataclass(frozen=True)
class Choice:
    """What chooses the options of `train` and their defaults; None where the user says nothing."""

    method: str | None = None
    recipe: str | None = None
    data: str | None = None
    learner: str | None = None
    optimizer: str | None = None
    n_shot: int | None = None
    kind: Kind = "auto"
    out: Path | None = None
    resume: bool = False

    def given(self) -> dict[str, Any]:
        """The fields of `RunConfig` that the user names."""
        names = ("method", "recipe", "data", "learner", "optimizer", "n_shot")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def command(words: Sequence[str]) -> Train:
    """`metalstm train WORDS`."""
    choice, _ = parsed(Choice, words, "train", add_help=False)
    run = _resumed(choice)
    default = _as_options(run) if run else _from_recipe(choice, is_help=bool({"-h", "--help"} & {*words}))
    parts = (
        default.method_settings,
        default.learner_settings,
        default.inner_optimizer,
        default.optimizer_settings,
    )
    generic: Any = Train
    return parse(generic[tuple(map(type, parts))], words, "train", __doc__, default, _owners)


def _resumed(choice: Choice) -> RunConfig | None:
    """The run that is to be resumed; None if there is none, or a damaged one, which `training.train` refuses.

    Raises:
        UserError: The user names another one, or nothing but a folder without a run.
    """
    if not choice.resume or choice.out is None:
        return None
    file = choice.out / "config.json"
    if not file.exists() and not choice.given():
        raise UserError(
            f"{choice.out} holds no run to resume: correct --out, or leave out --resume and choose the data"
        )
    try:
        run = recipes.from_dict(json.loads(file.read_text()))
    except (OSError, ValueError, UserError):
        return None
    RunFolder(choice.out, replace(run, **choice.given())).check(resume=True)
    return run


def _as_options(run: RunConfig) -> Train:
    """The options that make a run."""
    return Train(
        **_parts(run),
        **{name: getattr(run, name) for name in ("method", "recipe", "data", "n_way", "n_shot", "n_query")},
        kind=kind_of(run.traits) if run.data.startswith(PREFIX) else "auto",
        image_size=run.image_shape[1],
        common=Common(seed=run.seed),
    )


def _from_recipe(choice: Choice, is_help: bool) -> Train:
    """The options of the recipe that the user chooses."""
    name = choice.data or Train.data
    try:
        traits = data.find(name, traits_of(name, choice.kind)).traits
    except UserError:
        if not is_help:  # the help does not need the folder
            raise
        traits = Traits()
    recipe = recipes.named(
        choice.method or Train.method,
        choice.recipe or Train.recipe,
        traits,
        Train.n_shot if choice.n_shot is None else choice.n_shot,
        choice.learner,
        choice.optimizer,
    )
    return Train(**_parts(recipe))


def _owners() -> dict[str, str]:
    """Each setting's option, and the choice that has it."""
    owners: dict[str, list[str]] = {}
    tables: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("--method", METHODS), ("--learner", LEARNERS), ("--optimizer", OPTIMIZERS)
    )  # fmt: skip
    for choice, table in tables:
        for name, kind in table.items():
            for each in option_names(kind.Settings):
                owners.setdefault(each, []).append(f"{choice} {name}")
    return {each: " or ".join(choices) for each, choices in owners.items()}


def _parts(config: Recipe | RunConfig) -> Mapping[str, Any]:
    """The fields of `Train` that are settings, with the names of learner and inner optimizer."""
    return {
        "method_settings": config.settings,
        "learner": config.learner,
        "learner_settings": config.learner_settings,
        "inner_optimizer": InnerOptimizer(config.optimizer) if config.optimizer else NoSettings(),
        "optimizer_settings": config.optimizer_settings,
        "training": config.training,
    }
