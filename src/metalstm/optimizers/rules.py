"""Inner optimisers with a fixed rule."""

from jaxtyping import Float
from torch import Tensor

from metalstm.optimizers.base import InnerOptimizer


class SGD(InnerOptimizer[tuple[()]]):
    """Plain gradient descent: theta <- theta - lr * grad.

    Args:
        lr: Learning rate.
    """

    def __init__(self, lr: float):
        super().__init__()
        self.lr = lr

    def init(self, theta: Float[Tensor, "*tasks n_params"]) -> tuple[()]:
        """No memory."""
        return ()

    def update(
        self,
        theta: Float[Tensor, "*tasks n_params"],
        grad: Float[Tensor, "*tasks n_params"],
        loss: Float[Tensor, "*tasks"],
        state: tuple[()],
    ) -> tuple[Float[Tensor, "*tasks n_params"], tuple[()]]:
        """One step down the gradient; arguments as in `InnerOptimizer.update`."""
        return theta.add(grad, alpha=-self.lr), state
