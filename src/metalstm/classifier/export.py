"""Classifiers as files that run without this package."""

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from metalstm import files
from metalstm.backbones import Backbone
from metalstm.classifier.classifier import Classifier
from metalstm.classifier.network import to_x
from metalstm.classifier.outsiders import References
from metalstm.errors import UserError

MOST = 2_000_000_000  # bytes of an ONNX file: protobuf ends at 2 GiB
TOLERANCE = 1e-5  # of probabilities; a temperature below 1 magnifies rounding, and the tolerance with it


class Whole(nn.Module):
    """A backbone of torch and the head on it: from pixels to what `Network` gives."""

    def __init__(self, backbone: Backbone, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, pixels: UInt8[Tensor, "n height width channels"]) -> tuple[Tensor, ...]:
        """Probabilities, and scores if there are references."""
        return self.head(self.backbone.torch_features(to_x(pixels, self.backbone.preprocessing.drawing)))


class Head(nn.Module):
    """The network of a classifier with a backbone, which takes features, (n, n_features)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, features: Float[Tensor, "n n_features"]) -> tuple[Tensor, ...]:
        """Probabilities, and scores if there are references."""
        return self.network(features[:, None, :, None])


def to_onnx(classifier: Classifier, path: Path, head_only: bool = False) -> None:
    """Write an ONNX file.

    Args:
        classifier: What it answers as.
        path: The file.
        head_only: Without the backbone: it takes `features`, (n, n_features), instead of images.

    Raises:
        UserError: As `onnx_model`.
    """
    files.write(path, onnx_model(classifier, head_only))


def onnx_model(classifier: Classifier, head_only: bool = False) -> bytes:
    """The content of an ONNX file, checked with onnxruntime; its `metadata_props` are those of `metadata`.

    Args:
        classifier: What it answers as.
        head_only: As for `to_onnx`.

    Raises:
        UserError: The packages are not installed, ONNX lacks an operation of the method, the backbone is missing or
            cannot be a part of the file, or onnxruntime gives other probabilities.
    """
    try:
        import onnx  # noqa: F401  # what torch.onnx needs
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX needs further packages ({error}): pip install 'metalstm[export]'") from error
    backbone = _backbone(classifier, head_only)
    first = backbone.onnx_model() if backbone and not backbone.of_torch else None
    takes = "features" if head_only or first else "images"
    program = _program(classifier, None if first else backbone)
    with _quiet(), _refused("ONNX", "pass --format torch"):
        names = ["probabilities", "score"][: 1 + bool(classifier.network.references)]
        program = torch.onnx.export(program, input_names=[takes], output_names=names, dynamo=True, verbose=False)
    assert program is not None
    model = program.model_proto
    if first:
        model, takes = _joined(first, model), "images"
    for name, value in metadata(classifier).items():
        model.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    if model.ByteSize() > MOST:
        raise UserError(f"the ONNX file would have {model.ByteSize():,} bytes, more than {MOST:,}: pass --head-only")
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    _check(classifier, backbone, lambda x: session.run(None, {takes: x.numpy()}))
    return content


def to_torch(classifier: Classifier, path: Path, head_only: bool = False) -> None:
    """Write a program of torch.export; its extra file `metadata.json` holds `metadata`.

    Args:
        classifier: What it answers as.
        path: The file.
        head_only: As for `to_onnx`.

    Raises:
        UserError: torch.export cannot follow the method, the backbone is missing or an ONNX file, or the program gives
            other probabilities.
    """
    backbone = _backbone(classifier, head_only)
    if backbone and not backbone.of_torch:
        raise UserError(f"{backbone.name} cannot be a part of a torch file: pass --format onnx, or --head-only")
    program, content = _program(classifier, backbone), io.BytesIO()
    _check(classifier, backbone, lambda x: program.module()(x))
    with _quiet():
        torch.export.save(program, content, extra_files={"metadata.json": json.dumps(metadata(classifier))})
    files.write(path, content.getvalue())


def metadata(classifier: Classifier) -> dict[str, Any]:
    """What a program that runs the exported file must know; plain values."""
    preprocessing = classifier.preprocessing
    return {
        "classes": classifier.classes_.tolist(),
        "image_size": preprocessing.image_size,
        "channels": preprocessing.channels,
        "filter": "lanczos",
        "drawing": preprocessing.drawing,
        "centered": preprocessing.centered,
        "framing": preprocessing.framing,
        "threshold": classifier.threshold() if classifier.network.references else None,
        "meta_learner": classifier.meta["checkpoint"],
        "licence": classifier.meta["config"]["licence"],
    }


def _backbone(classifier: Classifier, head_only: bool) -> Backbone | None:
    """What the exported file has in front of the head.

    Raises:
        UserError: It is missing, or there is no head.
    """
    if not classifier.meta.get("backbone"):
        if head_only:
            raise UserError("--head-only is for a classifier with a backbone, and this has none: leave it out")
        return None
    return None if head_only else classifier.frozen()


def _joined(first: Any, head: Any) -> Any:
    """Two models of ONNX as one: the features of the first are those that the head takes.

    Raises:
        UserError: They do not fit.
    """
    from onnx import compose, version_converter

    opset = next(each.version for each in first.opset_import if not each.domain)
    with _refused("one ONNX file with its backbone", "pass --head-only"):
        del head.metadata_props[:]
        head = version_converter.convert_version(head, opset)
        head.ir_version = first.ir_version
        return compose.merge_models(
            first, compose.add_prefix(head, "head/", rename_outputs=False), [("features", "head/features")]
        )


def _program(classifier: Classifier, backbone: Backbone | None) -> torch.export.ExportedProgram:
    """The network for any number of images, without what it no longer needs.

    Args:
        classifier: Whose network.
        backbone: Of torch, to be a part of it.

    Raises:
        UserError: torch.export cannot follow it.
    """
    network = copy.deepcopy(classifier.network).cpu()
    network.adapted = {name: tensor.cpu() for name, tensor in network.adapted.items()}
    network.references = network.references and References(*(tensor.cpu() for tensor in network.references))
    spent = network.method.spent()
    for name, tensor in network.method.state_dict(keep_vars=True).items():
        if name in spent:
            tensor.data = tensor.data.new_empty(0)
    with _refused("a program of torch.export", "use the file of the classifier itself"):
        whole = Head(network) if classifier.meta.get("backbone") else network
        whole = Whole(backbone, whole) if backbone else whole
        example = _examples(classifier, backbone, 2)
        return torch.export.export(whole.eval(), (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


@contextlib.contextmanager
def _refused(form: str, instead: str) -> Iterator[None]:
    """Turn whatever an exporter raises into one line, with the first cause.

    Raises:
        UserError: The exporter failed.
    """
    try:
        yield
    except Exception as error:  # exporters raise nearly anything
        cause: BaseException = error
        while cause.__cause__:
            cause = cause.__cause__
        reason = (str(cause) or type(cause).__name__).splitlines()[0]
        raise UserError(f"this method cannot be written as {form} ({reason}): {instead}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings of exporters that a user can do nothing about, for example that torchvision is missing."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings(action="ignore"):
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def _examples(classifier: Classifier, backbone: Backbone | None, n: int) -> Tensor:
    """Random images, or features where the backbone is left out."""
    if classifier.meta.get("backbone") and not backbone:
        n_features = classifier.meta["config"]["image_shape"][2]
        return torch.randn(n, n_features, generator=torch.Generator().manual_seed(n))
    size = classifier.preprocessing.image_size
    generator = torch.Generator().manual_seed(n)
    shape = n, size, size, classifier.preprocessing.channels
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def _expected(classifier: Classifier, backbone: Backbone | None, x: np.ndarray) -> list[np.ndarray]:
    """What the classifier answers to `_examples`."""
    if not classifier.meta.get("backbone"):
        return classifier.network.answers(x)
    features = backbone.compute(x) if backbone else x
    return classifier.network.answers(features[:, None, :, None])


def _check(classifier: Classifier, backbone: Backbone | None, run: Callable[[Tensor], Sequence[Any]]) -> None:
    """Compare the exported program with the classifier, on batches of several sizes.

    Raises:
        UserError: It gives other probabilities.
    """
    allowed = TOLERANCE / min(1, classifier.network.temperature)
    for n in (1, 2, 9):
        x = _examples(classifier, backbone, n)
        pairs = zip(run(x), _expected(classifier, backbone, x.numpy()), strict=True)
        difference = max(np.abs(np.asarray(theirs) - ours).max() for theirs, ours in pairs)
        if not difference <= allowed:
            raise UserError(
                f"nothing was written: the exported probabilities are off by {difference:.1e}, more than {allowed:.1e}"
                ": try the other format, and please report it"
            )
