"""A network of timm (PyTorch Image Models) by its name, with its weights from safetensors files alone.

timm itself falls back to pickles where a model has no safetensors file, and leaves what a file lacks at random numbers,
noted only in a log. Neither is done here.
"""

import contextlib
import difflib
import hashlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from metalstm import checkpoint, devices, files, settings
from metalstm.backbones.base import Backbone, Input
from metalstm.errors import UserError, short, shown
from metalstm.images import Preprocessing

PREFIX = "timm:"
SUFFIX = ".safetensors"


class TimmModel(Backbone):
    """`timm:NAME`, with the weights that timm names for it; or `timm:NAME=weights.safetensors`.

    The weights named by timm are downloaded from the Hugging Face hub, once, to the folder that timm uses, too.

    Args:
        name: What the user calls it.
        net: From normalized images, (n, 3, size, size), to features, (n, n_features).
        sha256: Checksum of the model's name and of the file of its weights.
        values: What is done to an image.
        device: Where to compute.
    """

    def __init__(self, name: str, net: nn.Module, sha256: str, values: Input, device: torch.device):
        self.name, self.sha256, self.input = name, sha256, values
        self.preprocessing = Preprocessing(values.size, 3, drawing=False)
        self._net, self._device = net.to(device).eval().requires_grad_(False), device
        self._mean, self._std = (torch.tensor(each, device=device)[:, None, None] for each in (values.mean, values.std))
        self.n_features = self.compute(np.zeros((1, values.size, values.size, 3), np.uint8)).shape[1]

    @classmethod
    def takes(cls, source: str) -> bool:
        """What starts with `timm:`."""
        return source.startswith(PREFIX)

    @classmethod
    def load(cls, source: str, device: Any, kept: Input | None) -> "TimmModel":
        """Build the network and read its weights.

        Raises:
            UserError: timm is not installed or has no such model; its weights cannot be had, are in no safetensors
                file, or do not fit; or it takes no square images of three colors.
        """
        name, local, file = source.removeprefix(PREFIX).partition("=")
        if local and not file.endswith(SUFFIX):
            raise UserError(
                f"{source}: weights are taken from {SUFFIX} files alone, because loading others can run code that is "
                f"in them: give timm:{name}=FILE{SUFFIX}"
            )
        if local and not (files.exists(Path(file)) and Path(file).is_file()):
            raise UserError(f"no weights at {file}: give the {SUFFIX} file of a timm model")
        timm = _timm()
        path = Path(file) if local else _downloaded(name, _config(timm, name))
        net = _with_weights(timm, name, path)
        sha256 = hashlib.sha256(f"{name} {checkpoint.sha256(path)}".encode()).hexdigest()
        return cls(source, net, sha256, kept or _input(timm, name, net), devices.usable(device))

    @torch.no_grad()
    def compute(self, pixels: UInt8[np.ndarray, "n height width channels"]) -> Float[np.ndarray, "n n_features"]:
        """The features of a batch of images."""
        x = torch.tensor(pixels, device=self._device).movedim(-1, -3).float() / 255
        try:
            values = self._net((x - self._mean) / self._std)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(f"{self.name} cannot run here ({short(str(error))}): take another model") from error
        if not isinstance(values, Tensor) or values.ndim != 2:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise UserError(f"{self.name} gives no vector for each image, but {shape}: take another model")
        return values.float().cpu().numpy()


def _timm() -> Any:
    """The package.

    Raises:
        UserError: It cannot be imported.
    """
    try:
        return import_module("timm")
    except ImportError as error:
        raise UserError(f"a timm backbone needs further packages ({error}): pip install 'metalstm[timm]'") from error
    except RuntimeError as error:  # of torchvision, beside a torch that it was not built for
        raise UserError(
            f"timm cannot be imported beside torch {torch.__version__} ({short(str(error))}): install the torchvision "
            "that fits this torch, from the same index"
        ) from error


def _config(timm: Any, name: str) -> Any:
    """What timm knows of a model and its weights.

    Raises:
        UserError: timm has no such model, or no weights of this tag.
    """
    if timm.is_model(name):
        with contextlib.suppress(RuntimeError):  # an unknown tag
            return timm.get_pretrained_cfg(name, allow_unregistered=False)
    near = difflib.get_close_matches(name[:80], timm.list_models(pretrained=True), n=3)
    hint = f", did you mean {' or '.join(near)}?" if near else ": timm.list_models(pretrained=True) has all names"
    raise UserError(f"timm {timm.__version__} has no model {shown(name)}{hint}")


def _downloaded(name: str, config: Any) -> Path:
    """The file with the weights that timm names, from the Hugging Face hub or its cache.

    Raises:
        UserError: There are none, they are in no safetensors file, or they cannot be downloaded.
    """
    file = config.hf_hub_filename or f"model{SUFFIX}"
    instead = f"give a file, timm:{name}=weights{SUFFIX}"
    none = UserError(f"timm names no weights in a {SUFFIX} file for {name}; pickles can run code: {instead}")
    if not config.hf_hub_id or not file.endswith(SUFFIX):
        raise none
    hub, errors = import_module("huggingface_hub"), import_module("huggingface_hub.errors")
    try:
        with contextlib.suppress(errors.LocalEntryNotFoundError):  # asks nobody if they are here
            return Path(hub.hf_hub_download(config.hf_hub_id, file, local_files_only=True))
        return Path(hub.hf_hub_download(config.hf_hub_id, file))
    except errors.LocalEntryNotFoundError as error:  # no network: a kind of the next one
        raise UserError(f"the weights of {name} cannot be downloaded ({short(str(error))}): {instead}") from error
    except errors.EntryNotFoundError as error:
        raise none from error
    except Exception as error:  # of many kinds
        raise UserError(f"the weights of {name} cannot be downloaded ({short(str(error))}): {instead}") from error


def _with_weights(timm: Any, name: str, path: Path) -> nn.Module:
    """The network without its classifier, with all weights from a file.

    Raises:
        UserError: timm has no such model, or the file is damaged or not of this model.
    """
    _config(timm, name)
    overlay = {"file": str(path), "custom_load": False}  # the latter would read it in ways of the model's own
    try:
        with _noting_missing() as loaded:
            net = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
        if not loaded:
            raise ValueError("timm read nothing from it")
        if missing := [each for names in loaded for each in names]:
            raise ValueError(f"it lacks {', '.join(missing[:3])}{' and more' if missing[3:] else ''}")
    except Exception as error:  # what timm does with a file depends on the model
        raise UserError(
            f"{path} does not hold the weights of timm's {name} ({short(str(error))}): give the file of this model"
        ) from error
    return net


@contextlib.contextmanager
def _noting_missing() -> Iterator[list[list[str]]]:
    """Note the tensors that each call of a module's `load_state_dict` did not get: timm does not report them."""
    original, noted = nn.Module.load_state_dict, []

    def load_state_dict(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        noted.append(list(result.missing_keys))
        return result

    nn.Module.load_state_dict = load_state_dict
    try:
        yield noted
    finally:
        nn.Module.load_state_dict = original


def _input(timm: Any, name: str, net: nn.Module) -> Input:
    """What timm says is to be done to images.

    Raises:
        UserError: The network takes no square images of three colors, or too large ones.
    """
    image = timm.data.resolve_model_data_config(net)
    channels, height, width = image["input_size"]
    if channels != 3 or height != width:
        raise UserError(
            f"{PREFIX}{name} takes images of {image['input_size']}: square ones of three colors are possible"
        )
    return settings.from_dict(Input, {"size": height, "mean": list(image["mean"]), "std": list(image["std"])})
