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
from torch import Tensor

from metalstm import files
from metalstm.classifier.classifier import Classifier
from metalstm.classifier.outsiders import References
from metalstm.errors import UserError

TOLERANCE = 1e-5  # of probabilities; a temperature below 1 magnifies rounding, and the tolerance with it


def to_onnx(classifier: Classifier, path: Path) -> None:
    """Write an ONNX file.

    Raises:
        UserError: As `onnx_model`.
    """
    files.write(path, onnx_model(classifier))


def onnx_model(classifier: Classifier) -> bytes:
    """The content of an ONNX file, checked with onnxruntime; its `metadata_props` are those of `metadata`.

    Raises:
        UserError: The packages are not installed, ONNX lacks an operation of the method, or onnxruntime gives other
            probabilities.
    """
    try:
        import onnx  # noqa: F401  # what torch.onnx needs
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX needs further packages ({error}): pip install 'metalstm[export]'") from error
    program = _program(classifier)
    with _quiet(), _refused("ONNX", "pass --format torch"):
        names = ["probabilities", "score"][: 1 + bool(classifier.network.references)]
        program = torch.onnx.export(program, input_names=["images"], output_names=names, dynamo=True, verbose=False)
    assert program is not None
    model = program.model_proto
    for name, value in metadata(classifier).items():
        model.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    _check(classifier, lambda images: session.run(None, {"images": images.numpy()}))
    return content


def to_torch(classifier: Classifier, path: Path) -> None:
    """Write a program of torch.export; its extra file `metadata.json` holds `metadata`.

    Raises:
        UserError: torch.export cannot follow the method, or the program gives other probabilities.
    """
    program, content = _program(classifier), io.BytesIO()
    _check(classifier, lambda images: program.module()(images))
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


def _program(classifier: Classifier) -> torch.export.ExportedProgram:
    """The network for any number of images, without what it no longer needs.

    Raises:
        UserError: torch.export cannot follow it, or it is only a head on a backbone.
    """
    if classifier.meta.get("backbone"):
        raise UserError(
            f"this classifier is a head on the backbone {classifier.checkpoint_}, which would be missing in the "
            "exported file: use the file of the classifier itself"
        )
    network = copy.deepcopy(classifier.network).cpu()
    network.adapted = {name: tensor.cpu() for name, tensor in network.adapted.items()}
    network.references = network.references and References(*(tensor.cpu() for tensor in network.references))
    spent = network.method.spent()
    for name, tensor in network.method.state_dict(keep_vars=True).items():
        if name in spent:
            tensor.data = tensor.data.new_empty(0)
    with _refused("a program of torch.export", "use the file of the classifier itself"):
        return torch.export.export(network, (_images(classifier, 2),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


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


def _images(classifier: Classifier, n: int) -> Tensor:
    size = classifier.preprocessing.image_size
    generator = torch.Generator().manual_seed(n)
    shape = n, size, size, classifier.preprocessing.channels
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def _check(classifier: Classifier, run: Callable[[Tensor], Sequence[Any]]) -> None:
    """Compare the exported program with the classifier, on batches of several sizes.

    Raises:
        UserError: It gives other probabilities.
    """
    allowed = TOLERANCE / min(1, classifier.network.temperature)
    for n in (1, 2, 9):
        images = _images(classifier, n)
        pairs = zip(run(images), classifier.network.answers(images.numpy()), strict=True)
        difference = max(np.abs(np.asarray(theirs) - ours).max() for theirs, ours in pairs)
        if not difference <= allowed:
            raise UserError(
                f"nothing was written: the exported probabilities are off by {difference:.1e}, more than {allowed:.1e}"
                ": try the other format, and please report it"
            )
