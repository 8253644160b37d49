"""Typed configuration, and the named recipes: plain values, so that the command line can show them at once."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, Literal, TypeVar, get_args, overload

from metalstm.errors import UserError, unknown

METHODS = ("meta-lstm", "matching-net", "matching-net-fce", "pretrained")
RECIPES = ("paper", "best")
RULES = ("sgd", "momentum", "adagrad", "adadelta", "adam")
QueryNorm = Literal["running", "support", "batch"]
Precision = Literal["fp32", "tf32", "bf16"]
ClassScore = Literal["sum", "attention"]


@dataclass(frozen=True)
class MetaLSTMSettings:
    """The Meta-Learner LSTM; the defaults are the paper's for 5-shot."""

    filters: int = 32
    """Filters of each of the learner's four convolutions."""
    conv_bias: bool = True
    """Whether the learner's convolutions have a bias, which batch normalisation cancels."""
    unit_gamma: bool = False
    """Start batch normalisation's gamma at 1 instead of uniformly between 0 and 1."""
    unit_features: bool = False
    """Let the head see features of one length, so that it compares by the cosine."""
    hidden_size: int = 20
    """Hidden size of the meta-learner's LSTM."""
    forget_bias: tuple[float, float] = (4.0, 5.0)
    """b_F starts uniformly in this range: f is near 1."""
    input_bias: tuple[float, float] = (-5.0, -4.0)
    """b_I starts uniformly in this range: sigmoid(b_I) is the first learning rate."""
    layer_rates: bool = False
    """Learn a factor of the gradient for each of the learner's parameters, which the gates see with the gradient."""
    body_factor: float = 1.0
    """Where these factors start, but the head's, which starts at 1."""
    epochs: int = 8
    """Passes over the support set."""
    batch_size: int | None = 25
    """Support images in a mini-batch of the inner loop; None takes the whole support set."""
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
    keep_moments: bool = False
    """Normalise everything by the moments of the pre-training: running averages that do not move."""
    query_scale: float | None = None
    """Where a learned factor of the queries' logits starts; none by default."""
    shared_head: bool = False
    """One learned head row starts every class, so that any number of classes is served."""
    mirror: bool = False
    """Once trained, the head sees the mean of the features of an image and of its mirror image."""
    precision: Precision = "fp32"
    """bf16: the learner convolves in bfloat16; tf32: matrix products and convolutions in TF32, on CUDA only."""
    recompute: bool = False
    """Compute inner steps again in the backward pass instead of keeping them: less memory for long inner loops of order
    2, or where there are no kernels."""


@dataclass(frozen=True)
class PretrainedSettings:
    """A classifier of all meta-train classes, whose features are then used; the defaults are the paper's."""

    filters: int = 64
    """Filters of each of the network's four convolutions."""
    conv_bias: bool = True
    """Whether convolutions have a bias, which batch normalisation cancels."""
    unit_gamma: bool = False
    """Start batch normalisation's gamma at 1 instead of uniformly between 0 and 1."""
    batch_size: int = 64
    """Images in a mini-batch."""
    mirror: bool = False
    """Once trained, the head sees the mean of the features of an image and of its mirror image."""
    precision: Precision = "fp32"
    """bf16: convolve in bfloat16; tf32: matrix products and convolutions in TF32, on CUDA only."""


@dataclass(frozen=True)
class MatchingNetSettings:
    """A Matching Network; the defaults are the authors'."""

    filters: int = 64
    """Filters of each of the network's four convolutions."""
    conv_bias: bool = True
    """Whether convolutions have a bias, which batch normalisation cancels."""
    unit_gamma: bool = False
    """Start batch normalisation's gamma at 1 instead of uniformly between 0 and 1."""
    dropout: float = 0.1
    """Share of the numbers behind each block that meta-training sets to 0."""
    class_score: ClassScore = "sum"
    """sum: of the cosines of a class, as the authors' code does; attention: softmax over all cosines, summed over a
    class, as the Matching Networks paper does."""
    scale: float = 1.0
    """What cosines are multiplied by before the softmax."""
    fce: bool = False
    """Full-context embeddings: each embedding sees the whole support set, in its order."""
    mirror: bool = False
    """Once trained, the head sees the mean of the features of an image and of its mirror image."""
    precision: Precision = "fp32"
    """bf16: convolve in bfloat16; tf32: matrix products and convolutions in TF32, on CUDA only."""


@dataclass(frozen=True)
class FinetuneSettings:
    """A pre-trained network with a new head, trained on the support set by a fixed rule; chosen by `metalstm table`.

    Queries are normalised by running averages that go on from those of the pre-training, as the authors' are. The head
    starts at 0: the authors' random one is far behind (results/README.md), and a baseline is not to be weak.
    """

    rule: str = "sgd"
    """sgd, momentum, adagrad, adadelta or adam."""
    lr: float = 0.01
    """The rule's learning rate."""
    decay: float = 0.0
    """Step t takes lr / (1 + t * decay)."""
    steps: int = 15
    """Steps, each on the whole support set."""
    head_only: bool = False
    """Train the head and leave the rest as it was pre-trained."""
    filters: int = 64
    """Filters of each of the network's four convolutions."""
    conv_bias: bool = True
    """Whether convolutions have a bias."""
    unit_gamma: bool = False
    """Whether gamma started at 1."""
    mirror: bool = False
    """Once trained, the head sees the mean of the features of an image and of its mirror image."""
    precision: Precision = "fp32"
    """bf16: convolve in bfloat16; tf32: matrix products and convolutions in TF32, on CUDA only."""


Settings = MetaLSTMSettings | MatchingNetSettings | PretrainedSettings | FinetuneSettings
# What each method is set by; `finetune` is tuned, not trained.
SETTINGS: dict[str, type[Settings]] = {
    "meta-lstm": MetaLSTMSettings,
    "matching-net": MatchingNetSettings,
    "matching-net-fce": MatchingNetSettings,
    "pretrained": PretrainedSettings,
    "finetune": FinetuneSettings,
}


@dataclass(frozen=True)
class TrainingSettings:
    """The outer loop; the defaults are the paper's for the Meta-LSTM at 5 shots."""

    episodes: int = 50_000
    """Meta-train episodes at the most; of `pretrained` mini-batches."""
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
    clip: float | None = 0.25
    """Largest norm of the meta-gradient, over all meta-parameters."""
    pretrain: int = 0
    """Mini-batches of pre-training, as a classifier of all meta-train classes, from which theta_0 starts."""
    rotations: bool = False
    """Add each meta-train class turned by 90, 180 and 270 degrees as new classes."""
    mirrors: bool = False
    """Add each meta-train image's mirror image to its class."""
    val_every: int = 1000
    """Episodes between two validations."""
    val_episodes: int = 100
    """Meta-val episodes a validation."""
    patience: int | None = None
    """Stop after this many validations without gain."""


S = TypeVar("S", bound=Settings, covariant=True)


@dataclass(frozen=True)
class RunConfig(Generic[S]):
    """All that a run, or a checkpoint, was made of; `n_classes` is the number of meta-train classes in the data."""

    settings: S
    training: TrainingSettings
    method: str = "meta-lstm"
    recipe: str = "best"
    data: str = "glyphs"
    data_digest: str = ""
    licence: str = ""
    image_shape: tuple[int, int, int] = (1, 28, 28)
    n_classes: int = 0
    n_way: int = 5
    n_shot: int = 5
    n_query: int = 15
    seed: int = 0

    def changes(self) -> dict[str, Any]:
        """The settings that differ from the recipe's, less how long the run may be; none for what has no recipe."""
        if self.method not in METHODS:
            return {}
        settings, training = named(self.method, self.recipe, self.data, self.n_shot)
        recipe, here = asdict(settings) | asdict(training), asdict(self.settings) | asdict(self.training)
        return {k: v for k, v in here.items() if v != recipe[k] and k not in ("episodes", "minutes")}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON would give them back."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunConfig[Any]":
        """The inverse of `to_dict`.

        Raises:
            TypeError: A name is missing or unknown, or a value of another type.
            UserError: A value makes no sense.
        """
        settings = SETTINGS[values.get("method", cls.method)](**_with_tuples(values["settings"]))
        training = TrainingSettings(**_with_tuples(values["training"]))
        check(settings, training)
        return cls(**{**_with_tuples(values), "settings": settings, "training": training})


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """What JSON made lists of."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


@overload
def named(
    method: Literal["meta-lstm"], recipe: str, data: str, n_shot: int
) -> tuple[MetaLSTMSettings, TrainingSettings]: ...
@overload
def named(
    method: Literal["pretrained"], recipe: str, data: str, n_shot: int
) -> tuple[PretrainedSettings, TrainingSettings]: ...
@overload
def named(method: str, recipe: str, data: str, n_shot: int) -> tuple[Settings, TrainingSettings]: ...
def named(method: str, recipe: str, data: str, n_shot: int) -> tuple[Settings, TrainingSettings]:
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
    match method:
        case "meta-lstm":
            return _meta_lstm(recipe, data, n_shot)
        case "pretrained":
            return _pretrained(recipe, data)
        case _:
            return _matching_net(recipe, data, method == "matching-net-fce")


def _meta_lstm(recipe: str, data: str, n_shot: int) -> tuple[MetaLSTMSettings, TrainingSettings]:
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
        batch_size=None,
        order=2,
        divide_gradient=False,
        query_norm="support",
        train_query_norm="support",
        shared_head=True,
    )
    # With a clip of 0.25 an episode whose inner loop diverged weighs no more than any other, and the input gate grows
    # until many do.
    training = replace(training, optimizer_lr=1e-4, clip=10.0, val_every=250, patience=10, rotations=data == "omniglot")
    if data == "glyphs":  # for the demo, which has minutes
        return settings, training
    # A pre-trained network is the better start: in the inner loop the head learns fast, the body hardly at all. Moments
    # of a handful of images are noise beside those of the pre-training. Many small outer steps, of an episode each,
    # gained 2 points on meta-val (CIFAR-FS, 1-shot) where as many episodes in steps of four gained nothing.
    settings = replace(
        settings,
        forget_bias=(12.0, 12.0),
        layer_rates=True,
        body_factor=1e-4,
        keep_moments=True,
        query_norm="running",
        train_query_norm="running",
        unit_features=True,
        query_scale=10.0,
        mirror=_has_mirrors(data),
    )
    training = replace(training, pretrain=15_000, mirrors=_has_mirrors(data), episodes=6_000, lr=5e-4)
    return settings, replace(training, optimizer_lr=1e-3, lr_decay=True, val_every=1000, val_episodes=300)


def _pretrained(recipe: str, data: str) -> tuple[PretrainedSettings, TrainingSettings]:
    settings, training = PretrainedSettings(), TrainingSettings(episodes=30_000, clip=None)
    if recipe == "paper":
        return settings, training
    settings = replace(settings, conv_bias=False, unit_gamma=True, mirror=_has_mirrors(data))
    training = replace(training, episodes=15_000, lr_decay=True, rotations=data == "omniglot")
    return settings, replace(training, mirrors=_has_mirrors(data))


def _matching_net(recipe: str, data: str, fce: bool) -> tuple[MatchingNetSettings, TrainingSettings]:
    settings, training = MatchingNetSettings(fce=fce), TrainingSettings(episodes=75_000, lr=1e-4, clip=None)
    if recipe == "paper":
        return settings, training
    settings = replace(
        settings,
        conv_bias=False,
        unit_gamma=True,
        dropout=0.0,
        class_score="attention",
        scale=10.0,
        mirror=_has_mirrors(data),
    )
    pretrain = 0 if data == "glyphs" else 15_000  # as the Meta-LSTM's
    training = replace(training, pretrain=pretrain, episodes=10_000, lr=1e-3, lr_decay=True, val_episodes=300)
    return settings, replace(training, mirrors=_has_mirrors(data), rotations=data == "omniglot")


def epochs(config: RunConfig[MetaLSTMSettings], n_shot: int) -> int:
    """Passes over a support set of so many shots; the authors' Meta-LSTM of 5 shots takes 5 over one of 1 shot."""
    few = config.recipe == "paper" and n_shot < 5 <= config.n_shot
    return 5 if few else config.settings.epochs


def _has_mirrors(data: str) -> bool:
    """Whether an image and its mirror image show the same; of characters they do not."""
    return data not in ("omniglot", "glyphs")


def check(settings: Settings, training: TrainingSettings) -> None:
    """Hold numbers against what makes sense.

    Raises:
        UserError: Naming every value that does not, and what is allowed.
    """
    values = asdict(settings) | asdict(training)
    least = ("filters", "hidden_size", "epochs", "batch_size", "steps")
    least += ("episodes", "meta_batch", "val_every", "patience")
    bounds = [(name, 1) for name in least] + [("val_episodes", 2), ("pretrain", 0), ("decay", 0), ("dropout", 0)]
    wrong = [
        f"--{name.replace('_', '-')} {values[name]}: must be at least {low}"
        for name, low in bounds
        if values.get(name) is not None and values[name] < low
    ]
    wrong += [
        f"--{name.replace('_', '-')} {values[name]}: must be above 0"
        for name in ("lr", "optimizer_lr", "clip", "minutes", "scale", "body_factor", "query_scale")
        if values.get(name) is not None and not values[name] > 0
    ]
    norms, precisions, scores = map(get_args, (QueryNorm, Precision, ClassScore))
    choices = [("order", (1, 2)), ("query_norm", norms), ("train_query_norm", norms), ("precision", precisions)]
    choices += [("class_score", scores), ("rule", RULES)]
    wrong += [
        f"--{name.replace('_', '-')} {values[name]}: must be one of {', '.join(map(str, known))}"
        for name, known in choices
        if name in values and values[name] not in known
    ]
    if not 0 < values.get("norm_momentum", 1) <= 1:
        wrong.append(f"--norm-momentum {values['norm_momentum']}: must be above 0 and at most 1")
    if not values.get("dropout", 0) < 1:
        wrong.append(f"--dropout {values['dropout']}: must be below 1")
    if wrong:
        raise UserError("; ".join(wrong))
