"""The network of a checkpoint of metalstm."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from metalstm import checkpoint, devices
from metalstm.backbones.base import Backbone, Input
from metalstm.images import Preprocessing, dark_paper
from metalstm.learners import LEARNERS, Learner
from metalstm.methods import Network, RunConfig


class OwnCheckpoint(Backbone):
    """The body of a network that `metalstm train` made, with its normalization; what the method adds is not used.

    Args:
        name: What the user calls it.
        config: Of the checkpoint.
        learner: The network's form.
        network: Its weights and moments.
        sha256: Checksum of the checkpoint.
        device: Where to compute.
    """

    of_torch = True

    def __init__(
        self, name: str, config: RunConfig, learner: Learner, network: Network, sha256: str, device: torch.device
    ):
        channels, size, _ = config.image_shape
        self.name, self.sha256, self.n_features = name, sha256, learner.n_features
        self.preprocessing = Preprocessing(size, channels, config.traits.drawing, config.traits.centered)
        self._learner, self._device = learner.to(device).eval(), device
        self._body, self._moments = network.body.to(device), network.moments.to(device)

    @classmethod
    def takes(cls, source: str) -> bool:
        """A shipped checkpoint's name, a .safetensors file or a run folder."""
        return source.endswith(".safetensors") or source in checkpoint.shipped() or Path(source).is_dir()

    @classmethod
    def load(cls, source: str, device: Any, kept: Input | None) -> "OwnCheckpoint":
        """Read the checkpoint.

        Raises:
            UserError: It cannot be read, or its method has no network.
        """
        path = checkpoint.find(source)
        method, config, _ = checkpoint.load_method(path, {"precision": "fp32"})
        learner = LEARNERS[config.learner].build(config.learner_settings, config.image_shape, torch.Generator())
        return cls(source, config, learner, method.network(), checkpoint.sha256(path), devices.usable(device))

    @torch.no_grad()
    def compute(self, pixels: UInt8[np.ndarray, "n height width channels"]) -> Float[np.ndarray, "n n_features"]:
        """The features of a batch of images."""
        if self.preprocessing.drawing:
            pixels = np.stack([dark_paper(image) for image in pixels])
        x = torch.tensor(pixels, device=self._device).movedim(-1, -3).float() / 255
        return self.torch_features(x).cpu().numpy()

    def torch_features(self, x: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n n_features"]:
        """The features of images in 0..1; drawings have dark paper."""
        return self._learner.features(self._body, self._learner.fixed(x), self._moments)[0]
