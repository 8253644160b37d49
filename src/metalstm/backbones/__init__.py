"""Backbones: frozen networks of any origin, from images to features, on which heads learn the classes."""

from pathlib import Path
from typing import Any

from metalstm.backbones.base import Backbone, Input
from metalstm.backbones.cache import features
from metalstm.backbones.onnx_file import OnnxFile
from metalstm.backbones.own_checkpoint import OwnCheckpoint
from metalstm.backbones.timm_model import TimmModel
from metalstm.errors import UserError, shown

# What `--backbone` takes: the first of these that takes the name. A new one is a file in this folder and a line here.
BACKBONES: tuple[type[Backbone], ...] = (TimmModel, OnnxFile, OwnCheckpoint)


def load(source: Any, device: Any = "cpu", kept: Input | None = None) -> Backbone:
    """The backbone of a file or a name. Loading executes nothing that the file brings.

    Args:
        source: As one of `BACKBONES` takes it.
        device: Where to compute.
        kept: What is done to images; by default, what stands beside the file or in it.

    Raises:
        UserError: There is no such file, it is damaged or of a kind that is not taken, or a value is missing.
    """
    if not isinstance(source, str | Path) or not str(source):
        raise UserError(f"backbone {shown(source)}: give a file, for example net.onnx, or the name of a checkpoint")
    for kind in BACKBONES:
        if kind.takes(str(source)):
            return kind.load(str(source), device, kept)
    suffix = Path(source).suffix
    if suffix in (".pt2", ".pt", ".pth", ".bin", ".pkl"):
        raise UserError(f"{source}: loading a {suffix} file can run code that is in it: export the network to ONNX")
    raise UserError(
        f"{source}: no backbone: give an ONNX file (.onnx), a checkpoint of metalstm (.safetensors), or timm:NAME"
    )


__all__ = ["BACKBONES", "Backbone", "Input", "features", "load"]
