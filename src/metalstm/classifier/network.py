"""From pixels to probabilities, and to the score of "none of these"."""

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from metalstm.classifier.outsiders import References
from metalstm.errors import UserError
from metalstm.images import Preprocessing
from metalstm.methods import Adapted, Method

BATCH = 128  # images at a time; more are no faster


class Network(nn.Module):
    """An adapted method as one module: it takes pixels and gives calibrated probabilities, and scores.

    Args:
        method: The method that adapted.
        adapted: What `method` learned from the support set.
        preprocessing: Makes the pixels of an image.
        temperature: Logits are divided by it.
        device: Where to compute.
        references: What features are compared with; without, there are no scores of "none of these".
    """

    def __init__(
        self,
        method: Method,
        adapted: Adapted,
        preprocessing: Preprocessing,
        temperature: float = 1.0,
        device: torch.device | str = "cpu",
        references: References | None = None,
    ):
        super().__init__()
        self.method, self.preprocessing, self.temperature, self.device = method, preprocessing, temperature, device
        self.adapted = {name: tensor.to(device) for name, tensor in adapted.items()}
        self.references = references and References(*(tensor.to(device) for tensor in references))
        self.to(device).eval().requires_grad_(False)

    def forward(self, pixels: Shaped[Tensor, "n height width channels"]) -> tuple[Tensor, ...]:
        """Probabilities of the classes, (n, n_way), and scores of "none of these", (n,), if there are references."""
        features = self.method.features(self.adapted, to_x(pixels, self.preprocessing.drawing))
        probabilities = (self.method.scores(self.adapted, features) / self.temperature).softmax(-1)
        return (probabilities, self.references.scores(features)) if self.references else (probabilities,)

    @torch.no_grad()
    def answers(self, pixels: Shaped[np.ndarray, "n height width channels"]) -> list[np.ndarray]:
        """The same for any number of images, a batch at a time; there must be at least one.

        Raises:
            UserError: They are not finite: adapting has diverged, or the weights are damaged.
        """
        batches = torch.from_numpy(pixels).to(self.device).split(BATCH)
        answers = [torch.cat(parts).cpu().numpy() for parts in zip(*map(self, batches), strict=True)]
        if not all(np.isfinite(each).all() for each in answers):
            raise UserError("the classifier's probabilities are not finite: adapt anew, with another checkpoint")
        return answers


def to_x(pixels: Shaped[Tensor, "n height width channels"], drawing: bool) -> Float[Tensor, "n channels height width"]:
    """What a learner sees: values in 0..1.

    Args:
        pixels: As `Preprocessing` makes them; or features of a backbone, which are floats and stay as they are.
        drawing: Whether the images are drawings: they are inverted if the mean of their border is light, as
            `metalstm.images.dark_paper` does. Tensor operations do it here, so that an exported file contains them.
    """
    x = pixels.movedim(-1, -3).float()
    if pixels.is_floating_point():
        return x
    if drawing:
        border = torch.cat([x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]], -1)
        x = torch.where(border.mean((-2, -1))[:, None, None, None] > 127.5, 255 - x, x)
    return x / 255
