"""From pixels to probabilities."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from metalstm.errors import UserError
from metalstm.images import Preprocessing
from metalstm.methods import Adapted, Method

BATCH = 128  # images at a time; more are no faster


class Network(nn.Module):
    """An adapted method as one module: it takes pixels and gives calibrated probabilities.

    Args:
        method: The method that adapted.
        adapted: What `method` learned from the support set.
        preprocessing: Makes the pixels of an image.
        temperature: Logits are divided by it.
        device: Where to compute.
    """

    def __init__(
        self,
        method: Method,
        adapted: Adapted,
        preprocessing: Preprocessing,
        temperature: float = 1.0,
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        self.method, self.preprocessing, self.temperature, self.device = method, preprocessing, temperature, device
        self.adapted = {name: tensor.to(device) for name, tensor in adapted.items()}
        self.to(device).eval().requires_grad_(False)

    def forward(self, pixels: UInt8[Tensor, "n height width channels"]) -> Float[Tensor, "n n_way"]:
        """Probabilities of the classes."""
        logits = self.method.logits(self.adapted, to_x(pixels, self.preprocessing.drawing))
        return (logits / self.temperature).softmax(-1)

    @torch.no_grad()
    def probabilities(self, pixels: UInt8[np.ndarray, "n height width channels"]) -> Float[np.ndarray, "n n_way"]:
        """The same for any number of images, a batch at a time; there must be at least one.

        Raises:
            UserError: They are not finite: adapting has diverged, or the weights are damaged.
        """
        batches = torch.from_numpy(pixels).to(self.device).split(BATCH)
        probabilities = torch.cat([self(batch) for batch in batches]).cpu().numpy()
        if not np.isfinite(probabilities).all():
            raise UserError("the classifier's probabilities are not finite: adapt anew, with another checkpoint")
        return probabilities


def to_x(pixels: UInt8[Tensor, "n height width channels"], drawing: bool) -> Float[Tensor, "n channels height width"]:
    """What a learner sees: values in 0..1.

    Args:
        pixels: As `Preprocessing` makes them.
        drawing: Whether the images are drawings: they are inverted if the mean of their border is light, as
            `metalstm.images.dark_paper` does. Tensor operations do it here, so that an exported file contains them.
    """
    x = pixels.movedim(-1, -3).float()
    if drawing:
        border = torch.cat([x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]], -1)
        x = torch.where(border.mean((-2, -1))[:, None, None, None] > 127.5, 255 - x, x)
    return x / 255
