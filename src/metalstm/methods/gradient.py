"""Methods that train a learner on the support set by the gradient of its loss: the one inner loop."""

import copy
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metalstm.episodes import Episode, Support
from metalstm.errors import UserError
from metalstm.learners import FixedOnce, HeadOnly, Learner
from metalstm.methods.base import (
    Adapted,
    Gates,
    Method,
    Network,
    RunConfig,
    Watched,
    copy_network,
    cross_entropy,
    score,
)
from metalstm.optimizers import InnerOptimizer
from metalstm.settings import Count, Positive, Weight

G = TypeVar("G", bound="GradientMethod")

Epochs = Annotated[int, Meta(ge=1, le=500)]
QueryNorm = Literal["running", "support", "batch"]
FEW_SHOTS = 5  # below this, the authors' schedules have another number of passes


class Step(NamedTuple):
    """The state of an inner loop after an update."""

    theta: Float[Tensor, "*tasks n_params"]
    loss: Float[Tensor, "*tasks"]  # of the mini-batch, before the update
    moments: Float[Tensor, "*tasks n_moments"]  # running averages of the learner's normalization moments
    state: Any  # of the inner optimizer


@dataclass(frozen=True)
class InnerLoop:
    """Settings of the inner loop; the defaults are the paper's for 5-shot."""

    epochs: Epochs = 8
    """Passes over the support set."""
    few_shot_epochs: Epochs | None = None
    """The same for support sets of fewer than 5 images a class; as `epochs` by default."""
    batch_size: Count | None = 25
    """Support images in a mini-batch of the inner loop, the last one may be smaller; None takes all at once."""
    moves: Literal["all", "head", "body"] = "all"
    """The part of the learner that the inner loop changes. With `keep_moments`, `head` embeds each image once."""
    order: Literal[1, 2] = 1
    """1: losses and gradients of the learner are constants for the meta-gradient; 2: second derivatives flow, except
    those of running moments."""
    divide_gradient: bool = False
    """Divide the gradient of the mean loss by the mini-batch size once more, as the authors' code does."""
    query_norm: QueryNorm = "running"
    """Moments that normalize queries: `running` averages gathered while adapting (the paper's), the `support` set's own
    at the final theta, or those of the query `batch` itself, which is transductive."""
    train_query_norm: QueryNorm = "batch"
    """The same in meta-training."""
    norm_momentum: Weight = 0.95
    """Weight of the new batch in the running averages."""
    keep_moments: bool = False
    """Normalize everything by the moments of the pre-training: running averages that do not move. The moments of a
    handful of images are noise."""
    query_scale: Positive | None = None
    """Where a learned factor of the queries' logits starts; none by default. It lets meta-training learn from mistakes
    where a few small steps leave all answers unsure."""
    shared_head: bool = False
    """One learned head row starts every class, so that any number of classes is served."""
    recompute: bool = False
    """Compute inner steps again in the backward pass instead of keeping them: less memory for long inner loops of order
    2, or where there are no kernels."""


class GradientMethod(Method):
    """A learner trained from a learned initialization theta_0 by an inner optimizer.

    With `MetaLSTM` as the inner optimizer this is the Meta-Learner LSTM; with `SGD` it is MAML; with a pre-trained
    theta_0 and any rule it is fine-tuning. Subclasses add names and recipes.

    Args:
        learner: The network.
        optimizer: The rule by which theta changes.
        n_way: Number of classes; if the head is shared any number is served, and gradients are scaled by its ratio to
            this.
        settings: Of the inner loop.
        generator: Source of the random theta_0; torch's own by default.

    References:
        Ravi & Larochelle 2017, algorithm 1; Ye & Chao 2021 (arXiv 2106.16245) for the shared head.
    """

    Settings = InnerLoop

    moments_0: Tensor
    settings: InnerLoop

    def __init__(
        self,
        learner: Learner,
        optimizer: InnerOptimizer,
        n_way: int,
        settings: InnerLoop = InnerLoop(),
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.learner, self.optimizer, self.n_way, self.settings = learner, optimizer, n_way, settings
        theta_0 = learner.init(1 if settings.shared_head else n_way, generator or torch.default_generator)
        self.body_0 = nn.Parameter(theta_0[: learner.n_body])
        self.head_0 = nn.Parameter(theta_0[learner.n_body :].view(-1, learner.n_features + 1))
        self.register_buffer("moments_0", learner.initial_moments())
        scale = settings.query_scale
        self.log_scale = None if scale is None else nn.Parameter(torch.tensor(scale).log())

    @classmethod
    def build(cls: type[G], config: RunConfig, learner: Learner, optimizer: InnerOptimizer | None, generator: Any) -> G:
        """The method of a configuration."""
        if optimizer is None:
            raise UserError(f"{config.method} needs an inner optimizer")
        return cls(learner, optimizer, config.n_way, config.settings, generator)

    @classmethod
    def inner_learner(cls, config: RunConfig, learner: Learner, generator: Any) -> Learner:
        """The head alone, if it is all that moves and features do not depend on the episode's moments."""
        if config.settings.moves != "head" or (cls.meta_trained and not config.settings.keep_moments):
            return learner
        body, moments = learner.init_body(generator), learner.initial_moments()
        return HeadOnly(learner, body, moments, frozen=not cls.meta_trained)

    def theta_0(self, n_way: int) -> Float[Tensor, " n_params"]:
        """The learned initialization for a number of classes.

        Raises:
            UserError: The head is not shared and has another number of rows.
        """
        self.check_way(n_way)
        return torch.cat([self.body_0, self.head_0.expand(n_way, -1).flatten()])

    def check_way(self, n_way: int) -> None:
        """A head that is not shared serves the number of classes that it has rows for.

        Raises:
            UserError: It has another number of rows.
        """
        rows = self.head_0.shape[0]
        if rows not in (1, n_way):
            raise UserError(f"this method was meta-trained for {rows} classes and serves no other number: got {n_way}")

    def start(self, support: Support) -> Step:
        """Where the inner loop starts; nothing was computed yet, and the loss is NaN."""
        tasks = support.y.shape[:-1]
        theta = self.theta_0(support.n_way).expand(*tasks, -1)
        moments = self.moments_0.expand(*tasks, -1)
        return Step(theta, theta.new_full(tasks, torch.nan), moments, self.optimizer.init(theta))

    def trained_part(self) -> Literal["nothing", "head", "body", "all layers"]:
        """What the inner loop moves."""
        return "all layers" if self.settings.moves == "all" else self.settings.moves

    def n_epochs(self, support: Support) -> int:
        """How many passes over the support set the inner loop takes."""
        few = support.y.shape[-1] < FEW_SHOTS * support.n_way
        return (self.settings.few_shot_epochs if few else None) or self.settings.epochs

    def n_steps(self, support: Support) -> int:
        """How many steps the inner loop takes."""
        n = support.y.shape[-1]
        return self.n_epochs(support) * -(-n // (self.settings.batch_size or n))

    def trajectory(self, support: Support, train: bool = False) -> Iterator[Step]:
        """The inner loop: one `Step` after each update of theta. There is no other.

        Args:
            support: What to learn from; mini-batches are consecutive slices of it.
            train: Whether this is part of meta-training, for the learner.
        """
        yield from self._steps(support, self.learner.fixed(support.x, train), train)

    def adapt(self, support: Support) -> Adapted:
        """Train on the support set.

        Returns:
            `theta`, and the `moments` that are to normalize queries, unless these bring their own.
        """
        with torch.no_grad():  # meta-training has `forward`
            return self._adapt(support, self.settings.query_norm)

    def check_adapted(self, adapted: Adapted, n_way: int) -> None:
        """A theta of the learner, and its moments."""
        self.check_way(n_way)
        expected = {"theta": self.learner.n_body + n_way * (self.learner.n_features + 1)}
        if "moments" in adapted:
            expected["moments"] = self.learner.n_moments
        for name, length in expected.items():
            if adapted[name].shape != (length,) or adapted[name].dtype != torch.float32:
                raise ValueError(f"{name} is no vector of {length:,} numbers")

    def watch(self, support: Support) -> Iterator[Watched]:
        """`adapt`, to be watched: what is adapted after each inner step, and the gates that led there."""
        with torch.no_grad():  # not around a `yield`, which would let it reach whoever reads
            x = self.learner.fixed(support.x)
        steps = self._steps(support, x)
        while True:
            with torch.no_grad():
                step = next(steps, None)
                if step is None:
                    return
                gates = {layer: (f.mean().item(), i.mean().item()) for layer, (f, i) in self._gates(step).items()}
                watched = Watched(self._finish(step, x, self.settings.query_norm), gates)
            yield watched

    def gates(self, support: Support) -> Gates | None:
        """Mean f and rate i of each layer over the inner steps, (2, n_steps, *tasks); None for rules without gates."""
        with torch.no_grad():
            steps = [self._gates(step) for step in self.trajectory(support)]
        if not steps[0]:
            return None
        return {layer: torch.stack([step[layer].mean(-1) for step in steps], 1) for layer in steps[0]}

    def features(
        self, adapted: Adapted, x: Float[Tensor, "*tasks n channels height width"], train: bool = False
    ) -> Float[Tensor, "*tasks n n_features"]:
        """What the head sees of images."""
        return self.learner.features(adapted["theta"], self.learner.fixed(x, train), adapted.get("moments"), train)[0]

    def scores(
        self, adapted: Adapted, features: Float[Tensor, "*tasks n_query n_features"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """What the head makes of features."""
        logits = self.learner.head(adapted["theta"], features)
        return logits if self.log_scale is None else logits * self.log_scale.exp()

    def logits(
        self, adapted: Adapted, query_x: Float[Tensor, "*tasks n_query channels height width"], train: bool = False
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """Class scores of new images."""
        return self.scores(adapted, self.features(adapted, query_x, train))

    def forward(self, batch: Episode) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The query loss and accuracy at the final theta, normalized as `train_query_norm` says."""
        adapted = self._adapt(batch.support, self.settings.train_query_norm, train=True)
        return score(self.logits(adapted, batch.query.x, train=True), batch.query.y)

    def remembering(self) -> "GradientMethod":
        """With a learner that remembers what is fixed."""
        return self.with_inner_loop(learner=FixedOnce(self.learner))

    def finish(self, step: Step, support: Support) -> Adapted:
        """What is adapted if the inner loop on `support` ends with `step`."""
        norm = self.settings.query_norm
        return self._finish(step, self.learner.fixed(support.x) if norm == "support" else support.x, norm)

    def with_inner_loop(
        self: G, optimizer: InnerOptimizer | None = None, learner: Learner | None = None, **settings: Any
    ) -> G:
        """A copy with another inner optimizer, learner or settings; all else, parameters included, is shared."""
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.optimizer, other.learner = optimizer or self.optimizer, learner or self.learner
        other.settings = replace(self.settings, **settings)
        return other

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The inner optimizer and the scale of logits have a rate of their own."""
        own = [*self.optimizer.parameters(), *([] if self.log_scale is None else [self.log_scale])]
        groups = {"optimizer_lr": own}
        taken = set(map(id, own))
        rest = [each for each in self.parameters() if id(each) not in taken and each.requires_grad]
        return {"lr": rest, **groups}

    def start_from(self, network: Network) -> None:
        """Take the body and the moments; a head that moves starts at 0: a few steps are too few to undo a random one.

        A head that does not move stays random, since no gradient passes a head of zeros.
        """
        copy_network(network, *self._network())
        if self.settings.moves != "body":
            with torch.no_grad():
                self.head_0.zero_()

    def network(self) -> Network:
        """The body that it starts from, and its moments."""
        body, moments = self._network()
        return Network(body.detach(), moments)

    def spent(self) -> set[str]:
        """theta_0 and what changes it."""
        names = {f"optimizer.{name}" for name in self.optimizer.state_dict()}
        return names | {"body_0", "head_0", "moments_0"}

    def _network(self) -> tuple[Tensor, Tensor]:
        return self.learner.own_network() or (self.body_0, self.moments_0)

    def _gates(self, step: Step) -> dict[str, Float[Tensor, "2 *tasks n_params"]]:
        """The gate f and the rate i of each coordinate, by layer; empty for rules without gates."""
        gates = self.optimizer.gates(step.state)
        if gates is None:
            return {}
        return {name: gates[..., place] for name, place in self.learner.layers(self.learner.n_way(step.theta)).items()}

    def _adapt(self, support: Support, query_norm: QueryNorm, train: bool = False) -> Adapted:
        x = self.learner.fixed(support.x, train)
        (last,) = deque(self._steps(support, x, train), maxlen=1)
        return self._finish(last, x, query_norm, train)

    def _finish(self, step: Step, x: Tensor, query_norm: QueryNorm, train: bool = False) -> Adapted:
        """What is adapted if the inner loop ends with `step`; `x` is what `fixed` makes of the support images."""
        match query_norm:
            case "running":
                return {"theta": step.theta, "moments": step.moments}
            case "support":
                return {"theta": step.theta, "moments": self.learner.features(step.theta, x, train=train)[1]}
            case "batch":
                return {"theta": step.theta}

    def _steps(self, support: Support, x: Tensor, train: bool = False) -> Iterator[Step]:
        """The inner loop; `x` is what `fixed` makes of the support images, computed once and used at every step."""
        theta, _, moments, state = self.start(support)
        size = self.settings.batch_size or support.y.shape[-1]
        for _ in range(self.n_epochs(support)):
            for part, y in zip(x.split(size, support.y.dim() - 1), support.y.split(size, -1), strict=True):
                if self.settings.recompute and torch.is_grad_enabled():
                    step = checkpoint(
                        self._step, theta, moments, state, part, y, train, use_reentrant=False, preserve_rng_state=False
                    )
                else:
                    step = self._step(theta, moments, state, part, y, train)
                theta, moments, state = step.theta, step.moments, step.state
                yield step

    def _step(self, theta: Tensor, moments: Tensor, state: Any, x: Tensor, y: Tensor, train: bool) -> Step:
        settings = self.settings
        loss, grad, batch_moments = self._gradient(theta, x, y, moments if settings.keep_moments else None, train)
        if settings.divide_gradient:
            grad = grad / y.shape[-1]
        # Each class is one in n_way of the images of a mean loss. Unscaled, the learned rates diverge with fewer
        # classes than they were trained for, and are too small with more.
        n_way = self.learner.n_way(theta)
        if n_way != self.n_way:
            grad = grad * (n_way / self.n_way)
        new, state = self.optimizer.update(theta, grad, loss, state)
        n_body = self.learner.n_body
        match settings.moves:
            case "all":
                theta = new
            case "head":
                theta = torch.cat([theta[..., :n_body], new[..., n_body:]], -1)
            case "body":
                theta = torch.cat([new[..., :n_body], theta[..., n_body:]], -1)
        if not settings.keep_moments:
            batch_moments = self.learner.unbiased(batch_moments, y.shape[-1], train)
            moments = moments.lerp(batch_moments, settings.norm_momentum)
        return Step(theta, loss, moments, state)

    def _gradient(
        self, theta: Tensor, x: Tensor, y: Tensor, moments: Tensor | None, train: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and its gradient at theta, (*tasks) and (*tasks, n_params), and the moments that normalized."""
        second_order = self.settings.order == 2 and torch.is_grad_enabled()
        with torch.enable_grad():
            if not second_order:
                theta, x = theta.detach().requires_grad_(), x.detach()
            logits, used = self.learner(theta, x, moments, train)
            loss = cross_entropy(logits, y)
            (grad,) = torch.autograd.grad(loss.sum(), theta, create_graph=second_order)
        return loss if second_order else loss.detach(), grad, used.detach()
