"""Simpler things that could do a learned optimizer's job. Each takes the place of a part of a trained method."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from metalstm.episodes import Support
from metalstm.learners import Wrapped
from metalstm.methods import Adapted, GradientMethod, Method
from metalstm.optimizers import InnerOptimizer
from metalstm.optimizers.learned_rates import at_step
from metalstm.optimizers.rules import Steps, StepState, no_steps

GateTable = Float[Tensor, "n_steps 2 n_params"]  # f and the rate i of each coordinate at each inner step


class GivenGates(InnerOptimizer[StepState]):
    """theta <- f * theta - i * grad, with gates from a table.

    Args:
        gates: f and i at each step; the last step's serve all later ones.
    """

    label = "given gates"

    def __init__(self, gates: GateTable):
        super().__init__()
        self.table = gates

    def init(self, theta: Float[Tensor, "*tasks n_params"]) -> StepState:
        """No steps done."""
        return StepState(no_steps(theta))

    def update(self, theta: Tensor, grad: Tensor, loss: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        """One step; arguments as in `InnerOptimizer.update`."""
        f, i = at_step(self.table, state.t).unbind(-2)
        return f * theta - i * grad, StepState(state.t + 1)


class Unforgetting(InnerOptimizer[Any]):
    """A learned optimizer with f = 1: it forgets nothing, and its rates are as they were.

    Args:
        optimizer: One with gates.
    """

    label = "f = 1"

    def __init__(self, optimizer: InnerOptimizer):
        super().__init__()
        self.optimizer = optimizer

    def init(self, theta: Float[Tensor, "*tasks n_params"]) -> Any:
        """As the learned optimizer."""
        return self.optimizer.init(theta)

    def update(self, theta: Tensor, grad: Tensor, loss: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step; arguments as in `InnerOptimizer.update`."""
        _, state = self.optimizer.update(theta, grad, loss, state)
        gates = self.optimizer.gates(state)
        assert gates is not None
        return theta - gates[1] * grad, state

    def gates(self, state: Any) -> Float[Tensor, "2 *tasks n_params"] | None:
        """1, and the learned rate."""
        gates = self.optimizer.gates(state)
        return None if gates is None else torch.stack([torch.ones_like(gates[1]), gates[1]])


class Blind(InnerOptimizer[tuple[Steps, Any]]):
    """A learned optimizer whose gates see the mean of an input in its place. theta follows the true gradient.

    Args:
        optimizer: One whose gates have inputs.
        name: Of the input.
        mean: What the gates see at each step; the last step's serves all later ones.
    """

    label = "an input off"

    def __init__(self, optimizer: InnerOptimizer, name: str, mean: Float[Tensor, "n_steps ..."]):
        super().__init__()
        self.optimizer, self.name, self.mean = optimizer, name, mean

    def init(self, theta: Float[Tensor, "*tasks n_params"]) -> tuple[Steps, Any]:
        """No steps done, and the learned optimizer's own state."""
        return no_steps(theta), self.optimizer.init(theta)

    def update(
        self, theta: Tensor, grad: Tensor, loss: Tensor, state: tuple[Steps, Any]
    ) -> tuple[Tensor, tuple[Steps, Any]]:
        """One step; arguments as in `InnerOptimizer.update`."""
        t, own = state
        inputs = self.optimizer.inputs(theta, grad, loss) | {self.name: at_step(self.mean, t)}
        own = self.optimizer.see(inputs, own)
        gates = self.optimizer.gates(own)
        assert gates is not None
        return gates[0] * theta - gates[1] * grad, (t + 1, own)

    def gates(self, state: tuple[Steps, Any]) -> Float[Tensor, "2 *tasks n_params"] | None:
        """As the learned optimizer's."""
        return self.optimizer.gates(state[1])


class Forgetful(InnerOptimizer[Any]):
    """A learned optimizer whose state starts anew at every step.

    Args:
        optimizer: One that can forget.
    """

    label = "no memory"

    def __init__(self, optimizer: InnerOptimizer):
        super().__init__()
        self.optimizer = optimizer

    def init(self, theta: Float[Tensor, "*tasks n_params"]) -> Any:
        """As the learned optimizer."""
        return self.optimizer.init(theta)

    def update(self, theta: Tensor, grad: Tensor, loss: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step; arguments as in `InnerOptimizer.update`."""
        return self.optimizer.update(theta, grad, loss, self.optimizer.forget(state))

    def gates(self, state: Any) -> Float[Tensor, "2 *tasks n_params"] | None:
        """As the learned optimizer's."""
        return self.optimizer.gates(state)


class BodyFixed(Wrapped):
    """A learner whose body gets no gradient, so that gradient rules train the head alone.

    Unlike `HeadOnly` it keeps the layout of theta, and works with every policy of normalization.
    """

    @torch.no_grad()
    def features(
        self, theta: Tensor, x: Float[Tensor, "..."], moments: Tensor | None = None, train: bool = False
    ) -> tuple[Float[Tensor, "*tasks n n_features"], Float[Tensor, "*tasks n_moments"]]:
        """As the learner's, as constants."""
        return self.learner.features(theta, x, moments, train)


class ClassMeans(Method):
    """No inner step at all: the nearest class mean, by the cosine of the features at theta_0.

    Args:
        method: Gives theta_0 and the moments that normalize.
    """

    label = "no step, nearest class mean"

    def __init__(self, method: GradientMethod):
        super().__init__()
        self.method = method

    @classmethod
    def recipe(cls, name: str, traits: Any, n_shot: int) -> Any:
        """It has none."""
        raise NotImplementedError("ClassMeans is made of a trained method, not of a recipe")

    @classmethod
    def build(cls, config: Any, learner: Any, optimizer: Any, generator: Any) -> Any:
        """It has no configuration."""
        raise NotImplementedError("ClassMeans is made of a trained method, not of a configuration")

    @torch.no_grad()
    def adapt(self, support: Support) -> Adapted:
        """theta_0 with a head whose rows are the means of the support features, all of length 1."""
        method, learner = self.method, self.method.learner
        adapted = method.finish(method.start(support), support)
        theta, x = adapted["theta"], learner.fixed(support.x)
        features = F.normalize(learner.features(theta, x, adapted.get("moments"))[0], dim=-1)
        members = F.one_hot(support.y, support.n_way).to(features)  # (*tasks, n_support, n_way)
        means = F.normalize(members.mT @ features, dim=-1)
        head = F.pad(means, (0, 1)).flatten(-2)  # biases of 0
        return {**adapted, "theta": torch.cat([theta[..., : learner.n_body], head], -1)}

    def logits(self, adapted: Adapted, query_x: Tensor) -> Tensor:
        """As the method's."""
        return self.method.logits(adapted, query_x)

    def forward(self, batch: Any) -> Any:
        """Nothing is trained."""
        raise NotImplementedError("ClassMeans is not meta-trained")
