"""What a method is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor, nn

from metalstm.data import ImagesByClass
from metalstm.episodes import BatchSampler, Episode, EpisodeSampler, Support
from metalstm.errors import UserError, shown
from metalstm.learners import Learner, LearnerSettings
from metalstm.methods.published import Published
from metalstm.optimizers import InnerOptimizer
from metalstm.settings import Amount, Channels, Count, NoSettings, Seed, Side, TrainingSettings, Traits, Ways, Width

Adapted = dict[str, Tensor]  # everything that one task, or each of a batch of tasks, taught
Gates = dict[str, Float[Tensor, "2 n_steps *tasks"]]  # f and the rate i of each layer, over the inner steps


class Network(NamedTuple):
    """A pre-trained network that methods start from."""

    body: Float[Tensor, " n_body"]  # theta without the head
    moments: Float[Tensor, " n_moments"]  # which normalize
    head: Float[Tensor, " n_head"] | None = None  # of the meta-train classes, if the network still has it


class Watched(NamedTuple):
    """What a method has learned after an inner step, for those who watch it."""

    adapted: Adapted
    gates: dict[str, tuple[float, float]]  # mean f and mean rate i of each layer; empty for rules without gates


@dataclass(frozen=True)
class Recipe:
    """All settings of a run."""

    settings: Any = NoSettings()  # of the method
    training: TrainingSettings = TrainingSettings()
    learner: str = "conv4"
    learner_settings: Any = LearnerSettings()
    optimizer: str = ""  # the inner optimizer; empty for a method without an inner loop
    optimizer_settings: Any = NoSettings()


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: Of its files, and for `--only`.
        label: What a reader sees.
        recipe: Of its training.
        changes: Settings that differ from the recipe's, by name.
        published: Figures of its method that others published.
        ways: The numbers of classes of the tasks that it is tested on.
        seeds: Whether it is trained from several seeds at 5-way 5-shot, where the user asks for that.
    """

    name: str
    label: str
    recipe: str = "best"
    changes: Mapping[str, Any] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    ways: tuple[int, ...] = (5, 20)
    seeds: bool = False


@dataclass(frozen=True)
class RunConfig(Recipe):
    """All that a run, or a checkpoint, was made of; `n_classes` is the number of meta-train classes in the data."""

    method: str = "meta-lstm"
    recipe: str = "best"
    data: str = "glyphs"
    data_digest: str = ""
    licence: str = ""
    traits: Traits = Traits()
    image_shape: tuple[Channels, Side, Width] = (1, 28, 28)
    n_classes: Annotated[int, Meta(ge=0, le=10**6)] = 0
    n_way: Ways = 5
    n_shot: Count = 5
    n_query: Amount = 15
    seed: Seed = 0


@dataclass(frozen=True)
class Search:
    """How thorough a search for settings is."""

    few: int = 20  # meta-val episodes of an early round
    many: int = 100  # of the last round
    read_at: tuple[int, ...] = (1, 2, 3, 5, 7, 10, 15, 20)  # numbers of inner steps to choose from, ascending


@dataclass(frozen=True)
class Tuning:
    """What a method chooses its settings by.

    Attributes:
        episodes: Gives meta-val episodes by number, each a batch of one task.
        search: How thorough the search is.
        keep: Returns the result of a named part of the search, which is computed once and kept with the run.
        description: For a progress bar.
    """

    episodes: Callable[[int], Episode]
    search: Search
    keep: Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]
    description: str = "tuning"


class Method(nn.Module, ABC):
    """A way to learn from a support set.

    A method describes itself: its class says what it can be set by, how it is built and trained, and which lines of
    the table it has. Nothing else in the package knows one method from another.
    """

    label: ClassVar[str]
    """What a reader sees."""
    Settings: ClassVar[Any] = NoSettings
    """What it can be set by, beside its learner and inner optimizer: a frozen dataclass."""
    meta_trained: ClassVar[bool] = True
    """Whether `forward` trains anything. Otherwise a run has no episodes: it is validated, and tuned, and kept."""

    phase: ClassVar[str] = "meta-training"
    """What its training is called."""
    unit: ClassVar[tuple[str, str]] = ("episode", "episodes")
    """One of what it is trained on, and several."""

    @classmethod
    @abstractmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """The settings of a named recipe, `paper` or `best`, for a data set with some traits and a number of shots."""

    @classmethod
    @abstractmethod
    def build(cls, config: RunConfig, learner: Learner, optimizer: InnerOptimizer | None, generator: Any) -> "Method":
        """The method that a configuration describes.

        Args:
            config: The configuration; its `settings` are of the type `Settings`.
            learner: Built from its learner settings.
            optimizer: Built from its optimizer settings; None for a method without an inner loop.
            generator: A `torch.Generator`, the source of random weights.
        """

    @classmethod
    def inner_learner(cls, config: RunConfig, learner: Learner, generator: Any) -> Learner:
        """What `build` and the inner optimizer get for a learner; another one where theta is only a part of it."""
        return learner

    @classmethod
    def rows(cls) -> tuple[Row, ...]:
        """Its lines of the table."""
        return ()

    @abstractmethod
    def adapt(self, support: Support) -> Adapted:
        """Learn from a support set; deterministic, and leaves the method as it was."""

    def remembering(self) -> "Method":
        """The same method for many support sets of the same images.

        It embeds no image twice, if what it sees of an image does not depend on what it has adapted to.
        """
        return self

    def features(
        self, adapted: Adapted, x: Float[Tensor, "*tasks n channels height width"]
    ) -> Float[Tensor, "*tasks n n_features"]:
        """What it sees of images. Those of images of one class should point in similar directions."""
        raise NotImplementedError

    def scores(
        self, adapted: Adapted, features: Float[Tensor, "*tasks n_query n_features"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """Class scores of the features of new images."""
        raise NotImplementedError

    def logits(
        self, adapted: Adapted, query_x: Float[Tensor, "*tasks n_query channels height width"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """Class scores of new images."""
        return self.scores(adapted, self.features(adapted, query_x))

    @abstractmethod
    def forward(self, batch: Any) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """What meta-training minimizes, and beside it the query accuracy.

        Args:
            batch: What `sampler` gives: episodes, or mini-batches of labeled images.

        Returns:
            Mean cross-entropy of the queries in nats, and the share of them that is classified correctly, in 0..1.
        """

    @classmethod
    def sampler(
        cls, images: ImagesByClass, config: RunConfig, device: torch.device | str
    ) -> EpisodeSampler | BatchSampler:
        """What it is trained on, by number."""
        task = config.n_way, config.n_shot, config.n_query
        return EpisodeSampler(images, *task, config.seed, device, config.training.within_group)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Which learning rate of `TrainingSettings`, by name, trains which parameters; every trained one is in one."""
        return {"lr": [parameter for parameter in self.parameters() if parameter.requires_grad]}

    def start_from(self, network: Network) -> None:
        """Take over a pre-trained network.

        Raises:
            UserError: The method has no network, or one of another shape.
        """
        raise UserError(f"{self.label} has no network that could be pre-trained: pass --pretrain 0")

    def look_at(self, images: ImagesByClass) -> None:
        """Take from meta-train images what it needs to know of them, once, before it is trained and validated.

        Args:
            images: The meta-train classes. What is taken must not depend on chance; buffers keep it.
        """

    def network(self) -> Network:
        """The network that other methods can start from.

        Raises:
            UserError: It has none.
        """
        raise UserError(f"no other method can start from {self.label}: pre-train with --method pretrained")

    def check_way(self, n_way: int) -> None:
        """Whether it serves so many classes.

        Raises:
            UserError: It does not.
        """

    def spent(self) -> set[str]:
        """Names in `state_dict` that are no longer needed once it has adapted."""
        return set()

    def trained_part(self) -> Literal["nothing", "head", "body", "all layers"]:
        """The part of the network that `adapt` trains on a support set."""
        return "nothing"

    def check_adapted(self, adapted: Adapted, n_way: int) -> None:
        """Whether tensors from a file can be what it adapted to so many classes.

        The method may be on the meta device: only its shapes may be asked for. Check everything that loops and
        allocations of `logits` depend on, so that a damaged file neither hangs nor fills the memory.

        Raises:
            UserError, ValueError: They cannot.
        """

    def n_steps(self, support: Support) -> int:
        """How many inner steps it takes; 0 for a method without an inner loop."""
        return 0

    def watch(self, support: Support) -> Iterator[Watched]:
        """`adapt`, to be watched: what is adapted after each inner step; nothing for a method without an inner loop."""
        return iter(())

    def gates(self, support: Support) -> Gates | None:
        """The gates of its inner optimizer over the inner steps, by layer; None where there are none."""
        return None

    def tune(self, tuning: Tuning) -> dict[str, Any]:
        """Choose settings on meta-val, after training.

        Returns:
            Fields of `RunConfig` to replace, and beside them `chosen`: plain values to be reported.
        """
        return {}


def check_neighbors(adapted: Adapted, n_way: int) -> None:
    """`Method.check_adapted` for methods that keep `y` and `n_way` of the support set.

    Raises:
        ValueError: They are not labels of so many classes.
    """
    y, kept = adapted["y"], adapted["n_way"]
    if kept.shape or kept.is_floating_point() or kept != n_way:
        raise ValueError(f"n_way is {shown(kept.tolist())}, but there are {n_way} classes")
    if y.ndim != 1 or y.dtype != torch.int64 or not len(y) or y.min() < 0 or y.max() >= n_way:
        raise ValueError(f"y are no labels of {n_way} classes")


def copy_network(network: Network, body: Tensor, moments: Tensor) -> None:
    """Copy a pre-trained network into a method's own body and moments.

    Raises:
        UserError: The shapes differ.
    """
    if (body.shape, moments.shape) != (network.body.shape, network.moments.shape):
        raise UserError(
            f"a network of {body.numel():,} parameters cannot start from one of {network.body.numel():,}: pre-train "
            "with the same learner settings"
        )
    with torch.no_grad():
        body.copy_(network.body)
        moments.copy_(network.moments)


def cross_entropy(logits: Float[Tensor, "*tasks n n_way"], y: Int[Tensor, "*tasks n"]) -> Float[Tensor, "*tasks"]:
    """Mean cross-entropy of each task, in nats."""
    return F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none").view(y.shape).mean(-1)


def score(
    logits: Float[Tensor, "*tasks n n_way"], y: Int[Tensor, "*tasks n"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean cross-entropy over all tasks, in nats, and accuracy, in 0..1 and without gradient."""
    with torch.no_grad():
        accuracy = (logits.argmax(-1) == y).float().mean()
    return cross_entropy(logits, y).mean(), accuracy
