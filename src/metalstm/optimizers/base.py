"""What an inner optimizer is."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalstm.learners import Learner
from metalstm.settings import NoSettings

State = TypeVar("State")


class InnerOptimizer(nn.Module, ABC, Generic[State]):
    """An update rule for a learner's parameters; its own weights, if it has any, are meta-learned.

    All state is passed and none is kept: the same optimizer serves any number of tasks at once.
    """

    label: ClassVar[str]  # what tables and pictures call it
    Settings: ClassVar[Any] = NoSettings  # a frozen dataclass

    @classmethod
    def build(cls, settings: Any, learner: Learner, generator: torch.Generator) -> "InnerOptimizer":
        """The optimizer that some settings describe; by default the constructor takes them by name.

        Args:
            settings: Of the type `Settings`.
            learner: Whose theta it is to change.
            generator: Source of random weights.
        """
        return cls(**vars(settings))

    @abstractmethod
    def init(self, theta: Float[Tensor, "*tasks n_params"]) -> State:
        """The state before the first update: a tuple of zero tensors, empty for a rule without memory."""

    @abstractmethod
    def update(
        self,
        theta: Float[Tensor, "*tasks n_params"],
        grad: Float[Tensor, "*tasks n_params"],
        loss: Float[Tensor, "*tasks"],
        state: State,
    ) -> tuple[Float[Tensor, "*tasks n_params"], State]:
        """One inner step.

        Args:
            theta: The learner's parameters.
            grad: d loss / d theta.
            loss: Mean cross-entropy of the mini-batch, in nats.
            state: From `init` or the previous `update`.

        Returns:
            The new parameters and state.
        """

    def gates(self, state: State) -> Float[Tensor, "2 *tasks n_params"] | None:
        """The share of theta that the last update kept, and the rate by which it followed the gradient, for pictures.

        None for a rule that has no such gates.
        """
        return None

    def inputs(
        self,
        theta: Float[Tensor, "*tasks n_params"],
        grad: Float[Tensor, "*tasks n_params"],
        loss: Float[Tensor, "*tasks"],
    ) -> dict[str, Float[Tensor, "..."]]:
        """What the gates look at beside the state, by name, as they see it; empty if they look at nothing.

        An ablation replaces one of them by its mean. Arguments as in `update`; tasks come first in every tensor.
        """
        return {}

    def see(self, inputs: dict[str, Float[Tensor, "..."]], state: State) -> State:
        """The state after an `update` whose gates saw these inputs, all that `inputs` names."""
        raise NotImplementedError(f"{self.label} has gates that look at nothing")

    def forget(self, state: State) -> State | None:
        """The state without what the gates remember of earlier steps; None if they remember nothing."""
        return None
