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
from metalstm.learners import Conv4, Linear
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

    With `MetaLSTM` as the inner optimiser this is the Meta-Learner LSTM; with `SGD` it is MAML; with a pre-trained
    theta_0 and any rule it is fine-tuning.

    Args:
        learner: The network.
        optimizer: The rule by which theta changes.
        n_way: Number of classes; where the head is shared any number will do, and scales gradients by its ratio to
            this.
        epochs: Passes over the support set.
        batch_size: Images a mini-batch; consecutive slices of the support set, the last one may be smaller. None takes
            the whole support set.
        order: 1 takes gradients and losses of the learner as constants for the meta-gradient (the paper's "gradient
            independence"), 2 lets second derivatives through, but for those of running moments.
        query_norm: The moments by which the learner normalises queries when it is used: `running` averages
            gathered while adapting (the paper's), the `support` set's own at the final theta, or those of the query
            `batch` itself, which is transductive.
        train_query_norm: The same in meta-training; `batch` in the paper.
        norm_momentum: Weight of the new batch in the running averages.
        keep_moments: Normalise everything by `moments_0`, those of the pre-training, and leave these as they are:
            `running` averages that do not move. Of a handful of images, moments are noise.
        divide_gradient: Divide the gradient of the mean loss by the mini-batch size once more, as the authors' code
            does.
        query_scale: Where a learned factor of the queries' logits starts; None for no such factor. It lets
            meta-training learn from mistakes where a few small steps leave all answers unsure.
        shared_head: Learn one row of the head and start every class from it, instead of a row for each class.
        recompute: Compute inner steps again in the backward pass instead of keeping what they saw. Of first order with
            kernels there is little to keep.
        generator: Source of the random theta_0; torch's own by default.

    References:
        Ravi & Larochelle 2017, algorithm 1; Ye & Chao 2021 (arXiv 2106.16245) for the shared head.
    """

    moments_0: Tensor

    def __init__(
        self,
        learner: Conv4 | Linear,
        optimizer: InnerOptimizer,
        n_way: int,
        epochs: int,
        batch_size: int | None,
        order: Literal[1, 2] = 1,
        query_norm: QueryNorm = "running",
        train_query_norm: QueryNorm = "batch",
        norm_momentum: float = 0.95,
        keep_moments: bool = False,
        divide_gradient: bool = False,
        query_scale: float | None = None,
        shared_head: bool = False,
        recompute: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.learner, self.optimizer, self.n_way = learner, optimizer, n_way
        self.epochs, self.batch_size, self.order = epochs, batch_size, order
        self.query_norm: QueryNorm = query_norm
        self.train_query_norm: QueryNorm = train_query_norm
        self.norm_momentum, self.keep_moments = norm_momentum, keep_moments
        self.divide_gradient, self.recompute = divide_gradient, recompute
        theta_0 = learner.init(1 if shared_head else n_way, generator or torch.default_generator)
        self.body_0 = nn.Parameter(theta_0[: learner.n_body])
        self.head_0 = nn.Parameter(theta_0[learner.n_body :].view(-1, learner.n_features + 1))
        self.register_buffer("moments_0", learner.initial_moments())
        self.log_scale = None if query_scale is None else nn.Parameter(torch.tensor(query_scale).log())

    def theta_0(self, n_way: int) -> Float[Tensor, " n_params"]:
        """The learned initialisation for a number of classes.

        Raises:
            UserError: The head is not shared and has another number of rows.
        """
        rows = self.head_0.shape[0]
        if rows not in (1, n_way):
            raise UserError(f"this method was meta-trained for {rows} classes and serves no other number: got {n_way}")
        return torch.cat([self.body_0, self.head_0.expand(n_way, -1).flatten()])

    def start(self, support: Support) -> Step:
        """Where the inner loop starts; the loss, which nothing was computed of, is NaN."""
        tasks = support.y.shape[:-1]
        theta = self.theta_0(support.n_way).expand(*tasks, -1)
        moments = self.moments_0.expand(*tasks, -1)
        return Step(theta, theta.new_full(tasks, torch.nan), moments, self.optimizer.init(theta))

    def n_steps(self, support: Support) -> int:
        """How many steps the inner loop takes."""
        n = support.y.shape[-1]
        return self.epochs * -(-n // (self.batch_size or n))

    def trajectory(self, support: Support) -> Iterator[Step]:
        """The inner loop: one `Step` after each update of theta. There is no other."""
        theta, _, moments, state = self.start(support)
        size = self.batch_size or support.y.shape[-1]
        for _ in range(self.epochs):
            for x, y in zip(support.x.split(size, -4), support.y.split(size, -1), strict=True):
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
            return self.finish(self._last(support), support)

    def logits(
        self, adapted: Adapted, query_x: Float[Tensor, "*tasks n_query channels height width"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """Class scores of new images."""
        logits = self.learner(adapted["theta"], query_x, adapted.get("moments"))[0]
        return logits if self.log_scale is None else logits * self.log_scale.exp()

    def forward(self, batch: Episode) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The query loss and accuracy at the final theta, normalised as `train_query_norm` says."""
        adapted = self.finish(self._last(batch.support), batch.support, self.train_query_norm)
        return score(self.logits(adapted, batch.query.x), batch.query.y)

    def finish(self, step: Step, support: Support, query_norm: QueryNorm | None = None) -> Adapted:
        """What is adapted if the inner loop on `support` ends with `step`; the method's own `query_norm` by default."""
        match query_norm or self.query_norm:
            case "running":
                return {"theta": step.theta, "moments": step.moments}
            case "support":
                return {"theta": step.theta, "moments": self.learner.features(step.theta, support.x)[1]}
            case "batch":
                return {"theta": step.theta}

    def _last(self, support: Support) -> Step:
        return deque(self.trajectory(support), maxlen=1)[0]

    def _step(self, theta: Tensor, moments: Tensor, state: Any, x: Tensor, y: Tensor) -> Step:
        loss, grad, batch_moments = self._gradient(theta, x, y, moments if self.keep_moments else None)
        if self.divide_gradient:
            grad = grad / y.shape[-1]
        # A class is one in n_way of the images of a mean loss. With fewer classes than it was trained for, what was
        # learned would else diverge, with more dawdle.
        n_way = (theta.shape[-1] - self.learner.n_body) // (self.learner.n_features + 1)
        if n_way != self.n_way:
            grad = grad * (n_way / self.n_way)
        theta, state = self.optimizer.update(theta, grad, loss, state)
        if not self.keep_moments:
            batch_moments = self.learner.unbiased(batch_moments, y.shape[-1])
            moments = moments.lerp(batch_moments, self.norm_momentum)
        return Step(theta, loss, moments, state)

    def _gradient(self, theta: Tensor, x: Tensor, y: Tensor, moments: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and its gradient at theta, (*tasks) and (*tasks, n_params), and the moments that normalised."""
        second_order = self.order == 2 and torch.is_grad_enabled()
        with torch.enable_grad():
            if not second_order:
                theta = theta.detach().requires_grad_()
            logits, used = self.learner(theta, x, moments)
            loss = cross_entropy(logits, y)
            (grad,) = torch.autograd.grad(loss.sum(), theta, create_graph=second_order)
        return loss if second_order else loss.detach(), grad, used.detach()
