"""The file of a classifier."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from metalstm import checkpoint, devices, files, recipes, settings
from metalstm.backbones import Input
from metalstm.classifier.inputs import Examples, as_classes
from metalstm.classifier.meta_learner import PRECISION, temperature
from metalstm.classifier.network import Network
from metalstm.classifier.outsiders import References
from metalstm.errors import UserError
from metalstm.heads import HEADS
from metalstm.images import Preprocessing
from metalstm.methods import Method, RunConfig
from metalstm.settings import Count, Finite, Seed

KEPT = "kept."  # before the names of the tensors of kept images
KNOWN = "known."  # before those that "none of these" needs


@dataclass(frozen=True)
class Facts:
    """What a classifier on the features of a backbone keeps beside the name and the checksum of the file."""

    head: str
    """One of `metalstm.heads.HEADS`."""
    asked: str
    """The same, or `auto`."""
    accuracy: dict[str, Finite]
    """The cross-validated accuracy of the heads that were compared, in percent."""
    input: Input | None = None
    """What is done to pixels before the backbone sees them, if that does not stand in its file."""


@dataclass(frozen=True)
class ClassifierFile:
    """The plain values in a file, beside the tensors."""

    checkpoint: str
    checkpoint_sha256: str
    config: dict[str, Any]
    meta_val: float | None
    classes: list[str | bool | int | float]
    images: list[Count]
    seed: Seed
    preprocessing: Preprocessing
    calibration: dict[str, float] | None
    adapted: list[str]
    """Names of the tensors that the method learned from the support set."""
    backbone: Facts | None = None
    """Of a classifier on the features of a backbone, which `checkpoint` then names."""


def save(path: Path, network: Network, meta: dict[str, Any], kept: Examples | None = None) -> None:
    """Write a network and plain values to one safetensors file, without what the method no longer needs.

    Args:
        path: The file.
        network: What answers.
        meta: Plain values.
        kept: Images that it learned from, to be kept: pixels as the network takes them, without names.
    """
    spent = network.method.spent()
    method = {f"method.{name}": each for name, each in network.method.state_dict().items() if name not in spent}
    adapted = {f"adapted.{name}": each for name, each in network.adapted.items()}
    if network.references:
        adapted |= {f"{KNOWN}{name}": each for name, each in network.references._asdict().items()}
    images = {}
    if kept:
        y = np.searchsorted(np.array(meta["classes"]), kept.labels)
        order = np.argsort(y, kind="stable")
        images = {f"{KEPT}pixels": torch.from_numpy(kept.pixels[order]), f"{KEPT}y": torch.from_numpy(y[order])}
    checkpoint.save(path, method | adapted | images, meta | {"adapted": sorted(network.adapted)})


def load(path: Path, device: str = "cpu") -> tuple[Network, dict[str, Any], Examples | None]:
    """Read what `save` wrote; executes nothing.

    Returns:
        The network, plain values, and the images if the file keeps them.

    Raises:
        UserError: The file is missing, damaged, or not a classifier, or the device is not usable.
    """
    device = str(devices.usable(device))
    if files.exists(path) and path.is_dir():
        raise UserError(f"{path} is a folder: give a file that metalstm adapt has written")
    tensors, meta = checkpoint.load(path)
    if "classes" not in meta:
        raise UserError(
            f"{path} is a meta-learner, not a classifier: metalstm adapt makes one, with --checkpoint {path}"
        )
    with checkpoint.fits(path, "adapt it anew"):
        settings.check_names(ClassifierFile, {"backbone": None} | meta)
        values = settings.from_dict(ClassifierFile, meta)
        as_classes(values.classes)
        msgspec.convert(meta["calibration"], checkpoint.Calibration | None)
        config = recipes.with_changes(recipes.from_dict(values.config), PRECISION)
        if values.backbone:
            recipes.look_up("head", HEADS, values.backbone.head)
        else:
            _check_preprocessing(values.preprocessing, config)
        state, held = _part(tensors, "method."), _part(tensors, "adapted.")
        adapted = {name: held[name] for name in values.adapted}
        on_meta = checkpoint.check_shapes(config, state, may_lack_spent=True)
        if on_meta:
            on_meta.check_adapted(adapted, len(values.classes))
        method = recipes.build(config)
        _restore(method, state)
        references = _references(_part(tensors, KNOWN), values)
        network = Network(method, adapted, values.preprocessing, temperature(values.calibration), device, references)
        answer, *_ = network.answers(np.zeros((1, *_shape(config)), np.float32 if values.backbone else np.uint8))
        if answer.shape != (1, len(values.classes)):
            raise ValueError(f"{answer.shape[1]} outputs for {len(values.classes)} classes")
        kept = _kept(_part(tensors, KEPT), values, config)
    return network, {name: value for name, value in meta.items() if name != "adapted"}, kept


def _references(tensors: dict[str, Tensor], values: ClassifierFile) -> References | None:
    """What "none of these" needs; files of older versions lack it.

    Raises:
        KeyError, ValueError: It is not all there, or cannot be of these classes.
    """
    if not tensors:
        return None
    if "threshold" not in (values.calibration or {}):
        raise KeyError("threshold")
    references = References(tensors["means"], tensors["background"])
    if len(references.means) != len(values.classes) or any(
        each.ndim != 2 or each.dtype != torch.float32 for each in references
    ):
        raise ValueError("what 'none of these' needs is of other classes")
    return references


def _kept(tensors: dict[str, Tensor], values: ClassifierFile, config: RunConfig) -> Examples | None:
    """The images that a file keeps.

    Raises:
        ValueError: They are not images that the classifier could have learned from.
    """
    if not tensors:
        return None
    pixels, y = tensors["pixels"], tensors["y"]
    if y.dtype != torch.int64 or y.ndim != 1 or not len(y) or y.min() < 0 or y.max() >= len(values.classes):
        raise ValueError("the labels of the kept images are no labels of its classes")
    if y.bincount(minlength=len(values.classes)).tolist() != values.images:
        raise ValueError("it does not keep as many images as it learned from")
    dtype = torch.float32 if values.backbone else torch.uint8
    if pixels.dtype != dtype or pixels.shape != (len(y), *_shape(config)):
        raise ValueError("the kept images have another size")
    return Examples(
        pixels.numpy(), as_classes(values.classes)[y.numpy()], [f"kept image {k + 1}" for k in range(len(y))]
    )


def _shape(config: RunConfig) -> tuple[int, int, int]:
    """Height, width and channels of what the learner takes: of images, or of features that stand for them."""
    channels, height, width = config.image_shape
    return height, width, channels


def _check_preprocessing(preprocessing: Preprocessing, config: RunConfig) -> None:
    """Whether it makes images of the shape that the learner takes.

    Raises:
        ValueError: It does not.
    """
    channels, height, width = config.image_shape
    if (preprocessing.channels, preprocessing.image_size) != (channels, height) or height != width:
        raise ValueError(
            f"images of {preprocessing.channels}x{preprocessing.image_size}x{preprocessing.image_size} "
            f"for a learner of {channels}x{height}x{width}"
        )


def _restore(method: Method, tensors: dict[str, Tensor]) -> None:
    """Give a method its tensors back. Only those that it no longer needs may be missing.

    Raises:
        KeyError: Another one is missing.
        RuntimeError: One is of another shape, or not the method's.
    """
    state = method.state_dict()
    for name in sorted(state.keys() - method.spent() - tensors.keys()):
        raise KeyError(name)
    method.load_state_dict(state | tensors)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
