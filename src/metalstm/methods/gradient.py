"""Methods that train a learner on the support set by the gradient of its loss."""

from collections import deque
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metalstm.episodes import Episode, Support
from metalstm.errors import UserError
from metalstm.learners import Conv4
from metalstm.methods.base import Adapted, Method, cross_entropy, score
from metalstm.optimizers import InnerOptimizer
from metalstm.recipes import QueryNorm


class Step(NamedTuple):
    """The state of an inner loop after an update."""

    theta: Float[Tensor, "*tasks n_params"]
    loss: Float[Tensor, "*tasks"]  # of the mini-batch, before the update
    moments: Float[Tensor, "*tasks n_moments"]  # running averages of the learner's normalisation moments
    state: Any  # of the inner optimiser


class GradientMethod(Method):
    """A learner trained from a learned initialisation theta_0 by an inner optimiser.

    With `MetaLSTM` as the inner optimiser this is the Meta-Learner LSTM; with `SGD` it is MAML.

    Args:
        learner: The network.
        optimizer: The rule by which theta changes.
        n_way: Number of classes; any number will do where the head is shared.
        epochs: Passes over the support set.
        batch_size: Images a mini-batch; consecutive slices of the support set, the last one may be smaller.
        order: 1 takes gradients and losses of the learner as constants for the meta-gradient (the paper's "gradient
            independence"), 2 lets second derivatives through, but for those of running moments.
        query_norm: The moments by which the learner normalises queries when it is used: `running` averages
            gathered while adapting (the paper's), the `support` set's own at the final theta, or those of the query
            `batch` itself, which is transductive.
        train_query_norm: The same in meta-training; `batch` in the paper.
        norm_momentum: Weight of the new batch in the running averages.
        divide_gradient: Divide the gradient of the mean loss by the mini-batch size once more, as the authors' code
            does.
        shared_head: Learn one row of the head and start every class from it, instead of a row for each class.
        recompute: Compute inner steps again in the backward pass instead of keeping what they saw. Of first order with
            kernels there is little to keep.
        generator: Source of the random theta_0; torch's own by default.

    References:
        Ravi & Larochelle 2017, algorithm 1; Ye & Chao 2021 (arXiv 2106.16245) for the shared head.
    """

    def __init__(
        self,
        learner: Conv4,
        optimizer: InnerOptimizer,
        n_way: int,
        epochs: int,
        batch_size: int,
        order: Literal[1, 2] = 1,
        query_norm: QueryNorm = "running",
        train_query_norm: QueryNorm = "batch",
        norm_momentum: float = 0.95,
        divide_gradient: bool = False,
        shared_head: bool = False,
        recompute: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.learner, self.optimizer = learner, optimizer
        self.epochs, self.batch_size, self.order = epochs, batch_size, order
        self.query_norm: QueryNorm = query_norm
        self.train_query_norm: QueryNorm = train_query_norm
        self.norm_momentum = norm_momentum
        self.divide_gradient, self.recompute = divide_gradient, recompute
        theta_0 = learner.init(1 if shared_head else n_way, generator or torch.default_generator)
        self.body_0 = nn.Parameter(theta_0[: learner.n_body])
        self.head_0 = nn.Parameter(theta_0[learner.n_body :].view(-1, learner.n_features + 1))

    def theta_0(self, n_way: int) -> Float[Tensor, " n_params"]:
        """The learned initialisation for a number of classes.

        Raises:
            UserError: The head is not shared and has another number of rows.
        """
        rows = self.head_0.shape[0]
        if rows not in (1, n_way):
            raise UserError(f"this method was meta-trained for {rows} classes and serves no other number: got {n_way}")
        return torch.cat([self.body_0, self.head_0.expand(n_way, -1).flatten()])

    def trajectory(self, support: Support) -> Iterator[Step]:
        """The inner loop: one `Step` after each update of theta. There is no other."""
        tasks = support.y.shape[:-1]
        theta = self.theta_0(support.n_way).expand(*tasks, -1)
        state = self.optimizer.init(theta)
        moments = self.learner.initial_moments().to(theta).expand(*tasks, -1)
        for _ in range(self.epochs):
            batches = zip(support.x.split(self.batch_size, -4), support.y.split(self.batch_size, -1), strict=True)
            for x, y in batches:
                if self.recompute and torch.is_grad_enabled():
                    step = checkpoint(
                        self._step, theta, moments, state, x, y, use_reentrant=False, preserve_rng_state=False
                    )
                else:
                    step = self._step(theta, moments, state, x, y)
                theta, moments, state = step.theta, step.moments, step.state
                yield step

    def adapt(self, support: Support) -> Adapted:
        """Train on the support set.

        Returns:
            `theta`, and the `moments` by which queries are to be normalised, unless they bring their own.
        """
        with torch.no_grad():  # meta-training has `forward`
            return self._adapt(support, self.query_norm)

    def logits(
        self, adapted: Adapted, query_x: Float[Tensor, "*tasks n_query channels height width"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """Class scores of new images."""
        return self.learner(adapted["theta"], query_x, adapted.get("moments"))[0]

    def forward(self, episode: Episode) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The query loss and accuracy at the final theta, normalised as `train_query_norm` says."""
        adapted = self._adapt(episode.support, self.train_query_norm)
        return score(self.logits(adapted, episode.query.x), episode.query.y)

    def _adapt(self, support: Support, query_norm: QueryNorm) -> Adapted:
        step = deque(self.trajectory(support), maxlen=1)[0]
        match query_norm:
            case "running":
                return {"theta": step.theta, "moments": step.moments}
            case "support":
                return {"theta": step.theta, "moments": self.learner.features(step.theta, support.x)[1]}
            case "batch":
                return {"theta": step.theta}

    def _step(self, theta: Tensor, moments: Tensor, state: Any, x: Tensor, y: Tensor) -> Step:
        loss, grad, batch_moments = self._gradient(theta, x, y)
        if self.divide_gradient:
            grad = grad / y.shape[-1]
        theta, state = self.optimizer.update(theta, grad, loss, state)
        batch_moments = self.learner.unbiased(batch_moments, y.shape[-1])
        return Step(theta, loss, moments.lerp(batch_moments, self.norm_momentum), state)

    def _gradient(self, theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and its gradient at theta, (*tasks) and (*tasks, n_params), and the mini-batch's moments."""
        second_order = self.order == 2 and torch.is_grad_enabled()
        with torch.enable_grad():
            if not second_order:
                theta = theta.detach().requires_grad_()
            logits, moments = self.learner(theta, x)
            loss = cross_entropy(logits, y)
            (grad,) = torch.autograd.grad(loss.sum(), theta, create_graph=second_order)
        return loss if second_order else loss.detach(), grad, moments.detach()
