"""What a backbone is."""

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Float, UInt8
from msgspec import Meta
from torch import Tensor

from metalstm.errors import UserError
from metalstm.images import Preprocessing
from metalstm.settings import Finite, Positive, to_dict

Pixel = Annotated[int, Meta(ge=1, le=1024)]


@dataclass(frozen=True)
class Input:
    """What is done to an image before a backbone sees it. For `net.onnx`, the file `net.json` beside it says so."""

    size: Pixel
    """Height and width in pixels. An image is cropped to its central square and resized."""
    mean: tuple[Finite, Finite, Finite]
    """Taken away from red, green and blue, which are in 0..1."""
    std: tuple[Positive, Positive, Positive]
    """What they are then divided by."""
    output: str = ""
    """Name of the output that holds the features; needed only if there are several."""


class Backbone(ABC):
    """A frozen network: from the pixels of images to one feature for each.

    Attributes:
        name: What the user calls it: a path, or the name of a checkpoint.
        sha256: Checksum of its file, in hexadecimal.
        preprocessing: What makes the pixels of an image.
        n_features: Numbers of a feature.
        input: What is done to the pixels; None for a network that brings this along.
        of_torch: Whether it has `torch_features`, with which exporters go on.
    """

    name: str
    sha256: str
    preprocessing: Preprocessing
    n_features: int
    input: Input | None = None
    of_torch: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def takes(cls, source: str) -> bool:
        """Whether a file or a name is of this kind, by its form."""

    @classmethod
    @abstractmethod
    def load(cls, source: str, device: Any, kept: Input | None) -> "Backbone":
        """As `metalstm.backbones.load`."""

    @abstractmethod
    def compute(self, pixels: UInt8[np.ndarray, "n height width channels"]) -> Float[np.ndarray, "n n_features"]:
        """The features of a batch of images.

        Args:
            pixels: As `preprocessing` makes them.

        Raises:
            UserError: The network cannot take them.
        """

    def torch_features(self, x: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n n_features"]:
        """`compute` by operations of torch, which an exporter can follow.

        Args:
            x: Values in 0..1; drawings with dark paper.
        """
        raise NotImplementedError

    def onnx_model(self) -> Any:
        """`compute` as a model of ONNX, from `images` to `features`, for a network that is not of torch.

        Raises:
            UserError: It cannot be one.
        """
        raise UserError(f"{self.name} cannot be a part of an ONNX file: pass --head-only")

    @property
    def key(self) -> bytes:
        """Names all that features depend on beside the pixels."""
        values = self.sha256, self.input and to_dict(self.input)
        return hashlib.sha256(json.dumps(values).encode()).digest()
