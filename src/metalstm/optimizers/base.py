"""What an inner optimiser is."""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from jaxtyping import Float
from torch import Tensor, nn

State = TypeVar("State")


class InnerOptimizer(nn.Module, ABC, Generic[State]):
    """An update rule for a learner's parameters; its own weights, if it has any, are meta-learned.

    All state is passed, none is kept: the same optimiser serves any number of tasks at once.
    """

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
