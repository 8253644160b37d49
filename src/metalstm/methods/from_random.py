"""An optimizer meta-trained alone: every task starts from random weights of its own."""

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from metalstm.episodes import Episode, Support
from metalstm.errors import UserError
from metalstm.learners import Conv4, Learner
from metalstm.methods.base import Method, Network, Recipe, RunConfig
from metalstm.methods.gradient import Epochs, GradientMethod, InnerLoop, QueryNorm, Step
from metalstm.optimizers import InnerOptimizer, LayerLSTM
from metalstm.settings import Count, TrainingSettings, Traits


class FromRandom(GradientMethod):
    """Random weights, trained on the support set by a learned optimizer, which is all that meta-training learns.

    theta starts as the learner draws it, head included. A checksum of a task's support images seeds the draw: tasks
    start from different weights, and `adapt` is deterministic.

    Args:
        learner: The network.
        optimizer: The rule by which theta changes.
        n_way: Number of classes.
        settings: Of the inner loop.
        generator: Not needed.

    References:
        Andrychowicz et al. 2016 (arXiv 1606.04474), an optimizer learned over random starts.
    """

    @dataclass(frozen=True)
    class Settings(InnerLoop):
        """Steps on the whole support set, from random weights."""

        epochs: Epochs = 10
        """Passes over the support set."""
        batch_size: Count | None = None
        """Support images in a mini-batch of the inner loop, the last one may be smaller; None takes all at once."""
        query_norm: QueryNorm = "support"
        """Moments that normalize queries: `running` averages gathered while adapting, the `support` set's own at the
        final theta, or those of the query `batch` itself, which is transductive."""
        train_query_norm: QueryNorm = "support"
        """The same in meta-training."""
        least_epochs: Epochs | None = None
        """In meta-training, take a random number of passes from this to `epochs`; None always takes `epochs`."""

    settings: Settings  # pyright: ignore[reportIncompatibleVariableOverride]  (never assigned another one)

    label = "From random weights"

    def __init__(
        self,
        learner: Learner,
        optimizer: InnerOptimizer,
        n_way: int,
        settings: Settings = Settings(),
        generator: torch.Generator | None = None,
    ):
        super().__init__(learner, optimizer, n_way, settings, generator)
        del self.body_0, self.head_0  # nothing of theta_0 is learned

    @classmethod
    def build(
        cls, config: RunConfig, learner: Learner, optimizer: InnerOptimizer | None, generator: Any
    ) -> "FromRandom":
        """The method of a configuration.

        Raises:
            UserError: A setting needs a learned or a pre-trained start.
        """
        settings = config.settings
        for option, given, why in (
            ("--keep-moments", settings.keep_moments, "random weights have no moments of a pre-training"),
            ("--shared-head", settings.shared_head, "random head rows are not learned, so none can be shared"),
            (f"--pretrain {config.training.pretrain}", config.training.pretrain, "the weights are random"),
        ):
            if given:
                raise UserError(f"{option}: in {config.method} {why}: leave it out")
        return super().build(config, learner, optimizer, generator)

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """The same for `paper` and `best`: 5 to 10 steps in meta-training, 10 otherwise."""
        training = TrainingSettings(1000, optimizer_lr=3e-3, lr_decay=True, clip=1.0, val_every=250)
        learner = Conv4.Settings(conv_bias=False, unit_gamma=True)
        settings = cls.Settings(least_epochs=5)
        return Recipe(settings, training, "conv4", learner, "layer-lstm", LayerLSTM.Settings())

    def theta_0(self, n_way: int) -> Float[Tensor, " n_params"]:
        """There is none.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{self.label}: each task has a start of its own, see start")

    def check_way(self, n_way: int) -> None:
        """It serves the number of classes that it was meta-trained for.

        Raises:
            UserError: It is another number.
        """
        if n_way != self.n_way:
            raise UserError(
                f"this optimizer was meta-trained for {self.n_way} classes and serves no other: got {n_way}"
            )

    def start(self, support: Support) -> Step:
        """Random weights, by the learner's `init`, from a generator that the support images seed."""
        self.check_way(support.n_way)
        tasks = support.y.shape[:-1]
        images = support.x.reshape(-1, *support.x.shape[len(tasks) :]).cpu().numpy()
        seeds = [torch.Generator().manual_seed(zlib.crc32(each.tobytes())) for each in images]
        drawn = [self.learner.init(support.n_way, seed) for seed in seeds]
        theta = torch.stack(drawn).to(self.moments_0).view(*tasks, -1)
        theta.requires_grad_(torch.is_grad_enabled())  # second derivatives flow through the first step too
        moments = self.moments_0.expand(*tasks, -1)
        return Step(theta, theta.new_full(tasks, torch.nan), moments, self.optimizer.init(theta))

    def forward(self, batch: Episode) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The query loss and accuracy after `least_epochs` to `epochs` passes."""
        most, least = self.settings.epochs, self.settings.least_epochs
        epochs = int(torch.randint(min(least or most, most), most + 1, ()))
        return GradientMethod.forward(self.with_inner_loop(epochs=epochs, few_shot_epochs=None), batch)

    def network(self) -> Network:
        """It has none.

        Raises:
            UserError: Always.
        """
        return Method.network(self)

    def start_from(self, network: Network) -> None:
        """It takes none.

        Raises:
            UserError: Always.
        """
        Method.start_from(self, network)

    def spent(self) -> set[str]:
        """What changes theta."""
        return {f"optimizer.{name}" for name in self.optimizer.state_dict()} | {"moments_0"}
