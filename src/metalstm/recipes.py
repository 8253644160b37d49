"""Typed configuration, and the named recipes: plain values, so that the command line can show them at once."""

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from metalstm.errors import UserError, unknown

METHODS = ("meta-lstm",)
RECIPES = ("paper", "best")
QueryNorm = Literal["running", "support", "batch"]
Precision = Literal["fp32", "tf32", "bf16"]


@dataclass(frozen=True)
class MetaLSTMSettings:
    """The Meta-Learner LSTM; the defaults are the paper's for 5-shot."""

    filters: int = 32
    """Filters of each of the learner's four convolutions."""
    conv_bias: bool = True
    """Whether the learner's convolutions have a bias, which batch normalisation cancels."""
    unit_gamma: bool = False
    """Start batch normalisation's gamma at 1 instead of uniformly between 0 and 1."""
    hidden_size: int = 20
    """Hidden size of the meta-learner's LSTM."""
    forget_bias: tuple[float, float] = (4.0, 5.0)
    """b_F starts uniformly in this range: f is near 1."""
    input_bias: tuple[float, float] = (-5.0, -4.0)
    """b_I starts uniformly in this range: sigmoid(b_I) is the first learning rate."""
    epochs: int = 8
    """Passes over the support set."""
    batch_size: int = 25
    """Support images in a mini-batch of the inner loop."""
    order: Literal[1, 2] = 1
    """1: losses and gradients of the learner are constants for the meta-gradient; 2: second derivatives flow."""
    divide_gradient: bool = True
    """Divide the gradient by the mini-batch size a second time, as the authors' code does."""
    query_norm: QueryNorm = "running"
    """Moments that normalise queries: running averages, the support set's own, the query batch's (transductive)."""
    train_query_norm: QueryNorm = "batch"
    """The same in meta-training."""
    norm_momentum: float = 0.95
    """Weight of the new batch in the running averages."""
    shared_head: bool = False
    """One learned head row starts every class, so that any number of classes is served."""
    precision: Precision = "fp32"
    """bf16: the learner convolves in bfloat16; tf32: matrix products and convolutions in TF32, on CUDA only."""
    recompute: bool = False
    """Compute inner steps again in the backward pass instead of keeping them: less memory for long inner loops of order
    2, or where there are no kernels."""


@dataclass(frozen=True)
class TrainingSettings:
    """The outer loop; the defaults are the paper's for 5-shot."""

    episodes: int = 50_000
    """Meta-train episodes at the most."""
    minutes: float | None = None
    """Minutes of training at the most, validations included."""
    meta_batch: int = 1
    """Episodes an outer step."""
    lr: float = 1e-3
    """Adam's learning rate."""
    optimizer_lr: float = 1e-3
    """The same for the inner optimiser's own weights. Where its steps are large, a fast-changing rule diverges."""
    lr_decay: bool = False
    """Let the learning rates fall to zero over `episodes` along half a cosine."""
    clip: float = 0.25
    """Largest norm of the meta-gradient, over all meta-parameters."""
    rotations: bool = False
    """Add each meta-train class turned by 90, 180 and 270 degrees as new classes."""
    val_every: int = 1000
    """Episodes between two validations."""
    val_episodes: int = 100
    """Meta-val episodes a validation."""
    patience: int | None = None
    """Stop after this many validations without gain."""


@dataclass(frozen=True)
class RunConfig:
    """All that a run, or a checkpoint, was made of."""

    method: str = "meta-lstm"
    recipe: str = "best"
    data: str = "glyphs"
    data_digest: str = ""
    licence: str = ""
    image_shape: tuple[int, int, int] = (1, 28, 28)
    n_way: int = 5
    n_shot: int = 5
    n_query: int = 15
    seed: int = 0
    settings: MetaLSTMSettings = field(default_factory=MetaLSTMSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def changes(self) -> dict[str, Any]:
        """The settings that differ from the recipe's, less how long the run may be."""
        settings, training = named(self.method, self.recipe, self.data, self.n_shot)
        recipe, here = asdict(settings) | asdict(training), asdict(self.settings) | asdict(self.training)
        return {k: v for k, v in here.items() if v != recipe[k] and k not in ("episodes", "minutes")}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON would give them back."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunConfig":
        """The inverse of `to_dict`.

        Raises:
            TypeError: A name is missing or unknown, or a value of another type.
            UserError: A value makes no sense.
        """
        settings = MetaLSTMSettings(**_with_tuples(values["settings"]))
        training = TrainingSettings(**_with_tuples(values["training"]))
        check(settings, training)
        return cls(**{**_with_tuples(values), "settings": settings, "training": training})


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """What JSON made lists of."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def named(method: str, recipe: str, data: str, n_shot: int) -> tuple[MetaLSTMSettings, TrainingSettings]:
    """The settings of a recipe for a data set and a number of shots.

    `paper` is the authors' to the letter, save that the checkpoint is chosen on meta-val. `best` is what measured
    best; each of its departures is one field.

    Raises:
        UserError: The method or the recipe is unknown.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    few = n_shot < 5  # the paper has a schedule for 1 and one for 5 shots
    settings, training = MetaLSTMSettings(), TrainingSettings()
    if few:
        settings = replace(settings, epochs=12, batch_size=5, norm_momentum=0.9)
        training = replace(training, episodes=75_000)
    if recipe == "paper":
        return settings, training
    settings = replace(
        settings,
        conv_bias=False,
        unit_gamma=True,
        hidden_size=8,
        input_bias=(-3.0, -3.0),
        epochs=5,
        batch_size=25,
        order=2,
        divide_gradient=False,
        query_norm="support",
        train_query_norm="support",
        shared_head=True,
    )
    # With a clip of 0.25 an episode whose inner loop diverged weighs no more than any other, and the input gate grows
    # until many do.
    training = replace(training, optimizer_lr=1e-4, clip=10.0, val_every=250, patience=10, rotations=data == "omniglot")
    return settings, training


def check(settings: MetaLSTMSettings, training: TrainingSettings) -> None:
    """Hold numbers against what makes sense.

    Raises:
        UserError: Naming every value that does not, and what is allowed.
    """
    least = {"filters": 1, "hidden_size": 1, "epochs": 1, "batch_size": 1}
    least |= {"episodes": 1, "meta_batch": 1, "val_every": 1, "val_episodes": 2, "patience": 1}
    values = asdict(settings) | asdict(training)
    wrong = [
        f"--{name.replace('_', '-')} {values[name]}: must be at least {low}"
        for name, low in least.items()
        if values[name] is not None and values[name] < low
    ]
    wrong += [
        f"--{name.replace('_', '-')} {values[name]}: must be above 0"
        for name in ("lr", "optimizer_lr", "clip")
        if not values[name] > 0
    ]
    norms, precisions = get_args(QueryNorm), ("precision", get_args(Precision))
    for name, known in (("order", (1, 2)), ("query_norm", norms), ("train_query_norm", norms), precisions):
        if values[name] not in known:
            wrong.append(f"--{name.replace('_', '-')} {values[name]}: must be one of {', '.join(map(str, known))}")
    if training.minutes is not None and not training.minutes > 0:
        wrong.append(f"--minutes {training.minutes}: must be above 0")
    if not 0 < settings.norm_momentum <= 1:
        wrong.append(f"--norm-momentum {settings.norm_momentum}: must be above 0 and at most 1")
    if wrong:
        raise UserError("; ".join(wrong))
