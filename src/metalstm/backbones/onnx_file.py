"""A network in an ONNX file. Such a file holds operations and numbers; onnxruntime runs these and no other code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from metalstm import files, settings
from metalstm.backbones.base import Backbone, Input
from metalstm.checkpoint import sha256
from metalstm.errors import UserError, cut
from metalstm.images import Preprocessing

EXAMPLE = '{"size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}'
MOST_FEATURES = 2**16  # numbers of a feature
OPSET, IR = 18, 10  # of exported files: what torch.onnx writes


class OnnxFile(Backbone):
    """`net.onnx`, with its preprocessing in `net.json`.

    It takes one input of floats, (n, 3, size, size) of any n or of one fixed n, and gives one vector for each image.

    Args:
        path: The file.
        values: What is done to an image.
    """

    def __init__(self, path: Path, values: Input):
        self.name, self.input = str(path), values
        self.preprocessing = Preprocessing(values.size, 3, drawing=False)
        self.sha256 = sha256(path)
        self._session = _session(path)
        inputs, outputs = self._session.get_inputs(), [each.name for each in self._session.get_outputs()]
        shape = inputs[0].shape if len(inputs) == 1 else []
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        if len(shape) != 4 or inputs[0].type not in kinds:
            found = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
            raise UserError(f"{path} takes {cut(found)}: it must take one tensor of floats, (n, 3, size, size)")
        wrong = [
            f"{there} instead of {here}"
            for there, here in zip(shape[1:], (3, values.size, values.size), strict=True)
            if isinstance(there, int) and there != here
        ]
        if wrong:
            raise UserError(f"{path} takes images of {shape[1:]} ({wrong[0]}): change size in {_beside(path).name}")
        if not values.output and len(outputs) > 1:
            raise UserError(
                f"{path} has the outputs {', '.join(outputs[:9])}: name the one with features in {_beside(path).name}, "
                f'"output": "{outputs[0]}"'
            )
        if values.output and values.output not in outputs:
            raise UserError(f"{path} has no output {values.output!r}, but {', '.join(outputs[:9])}: name one of these")
        self._in, self._dtype, self._out = inputs[0].name, kinds[inputs[0].type], values.output or outputs[0]
        self._n = shape[0] if isinstance(shape[0], int) else None
        self.n_features = 0
        self.n_features = self.compute(np.zeros((1, values.size, values.size, 3), np.uint8)).shape[1]

    @classmethod
    def takes(cls, source: str) -> bool:
        """A path that ends with .onnx."""
        return source.lower().endswith(".onnx")

    @classmethod
    def load(cls, source: str, device: Any, kept: Input | None) -> "OnnxFile":
        """Read the file; it runs on the CPU."""
        path = Path(source)
        if not files.exists(path) or not path.is_file():
            raise UserError(f"no backbone at {path}: give the ONNX file of a network")
        return cls(path, kept or read_input(_beside(path), path))

    def compute(self, pixels: UInt8[np.ndarray, "n height width channels"]) -> Float[np.ndarray, "n n_features"]:
        """The features of a batch of images."""
        assert self.input is not None
        mean, std = (np.array(each, np.float32) for each in (self.input.mean, self.input.std))
        x = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2).astype(self._dtype)
        size = self._n or len(x)
        parts = []
        for start in range(0, len(x), size):
            part = x[start : start + size]
            padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)])
            parts.append(self._run(padded)[: len(part)])
        return np.concatenate(parts)

    def onnx_model(self) -> Any:
        """The file, with what is done to pixels in front of it.

        Raises:
            UserError: It takes a fixed number of images or float16, or its operations are too old to be converted.
        """
        import onnx
        from onnx import TensorProto, compose, helper, version_converter

        if self._n:
            raise UserError(f"{self.name} takes {self._n} images at a time, so it cannot be exported: pass --head-only")
        if self._dtype is np.float16:  # onnxruntime leaves out roundings between this network and what is around it
            raise UserError(f"{self.name} takes float16, so its answers would differ: pass --head-only")
        assert self.input is not None
        net = onnx.load(self.name)
        del net.metadata_props[:]
        try:
            net = version_converter.convert_version(net, OPSET) if _opset(net) < OPSET else net
        except Exception as error:  # of onnx's own kinds
            raise UserError(
                f"{self.name} cannot be converted to opset {OPSET} ({cut(_line(error))}): export it anew with that "
                "one, or pass --head-only"
            ) from error
        values = {"mean": self.input.mean, "std": self.input.std, "white": (255.0,)}
        numbers = [helper.make_tensor(name, TensorProto.FLOAT, [len(each)], each) for name, each in values.items()]
        size = self.input.size
        nodes = [
            helper.make_node("Cast", ["images"], ["bytes"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["bytes", "white"], ["shares"]),
            helper.make_node("Sub", ["shares", "mean"], ["centered"]),
            helper.make_node("Div", ["centered", "std"], ["scaled"]),
            helper.make_node("Transpose", ["scaled"], ["x"], perm=[0, 3, 1, 2]),
        ]
        inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", size, size, 3])]
        outputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, size, size])]
        first = helper.make_graph(nodes, "pixels", inputs, outputs, numbers)
        last = helper.make_graph(
            [helper.make_node("Flatten", ["y"], ["features"])],
            "features",
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", self.n_features])],
        )
        models = [helper.make_model(graph, opset_imports=net.opset_import) for graph in (first, last)]
        for each in (*models, net):
            each.ir_version = max(IR, net.ir_version)
        net = compose.add_prefix(net, "backbone/")
        before = compose.merge_models(models[0], net, [("x", f"backbone/{self._in}")])
        return compose.merge_models(before, models[1], [(f"backbone/{self._out}", "y")], outputs=["features"])

    def _run(self, x: np.ndarray) -> Float[np.ndarray, "n n_features"]:
        try:
            (values,) = self._session.run([self._out], {self._in: np.ascontiguousarray(x)})
        except Exception as error:  # of onnxruntime's own kinds
            raise UserError(f"{self.name} cannot run here ({cut(_line(error))}): export it anew") from error
        shape = np.shape(values)
        if len(shape) < 2 or shape[0] != len(x) or values.dtype.kind != "f" or np.prod(shape[2:], dtype=int) != 1:
            raise UserError(
                f"{self.name} gives {shape} for {len(x)} images: it must give one vector for each, (n, n_features); "
                "export the network with its pooling and without its classifier"
            )
        if not 1 <= shape[1] <= MOST_FEATURES or self.n_features not in (0, shape[1]):
            raise UserError(f"{self.name} gives {shape[1]:,} numbers for an image: 1 to {MOST_FEATURES:,} are possible")
        return values.reshape(len(x), -1).astype(np.float32)


def _opset(model: Any) -> int:
    return next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))


def read_input(path: Path, network: Path) -> Input:
    """The preprocessing in a JSON file.

    Args:
        path: The file.
        network: The network that it belongs to.

    Raises:
        UserError: There is no such file, or a value is missing or wrong.
    """
    if not files.exists(path):
        raise UserError(f"{network} needs its preprocessing in {path}, which is missing, for example: {EXAMPLE}")
    try:
        values = json.loads(path.read_text("utf-8"))
        if not isinstance(values, dict):
            raise ValueError("no object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({cut(_line(error))}): write, for example, {EXAMPLE}"
        ) from error
    missing = [name for name in ("size", "mean", "std") if name not in values]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: write, for example, {EXAMPLE}")
    try:
        return settings.from_dict(Input, values)
    except UserError as error:
        raise UserError(f"{path}: {error}: write, for example, {EXAMPLE}") from error


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")


def _session(path: Path) -> Any:
    """What runs the file.

    Raises:
        UserError: onnxruntime is not installed, the file is damaged, or its weights are in other files.
    """
    try:
        import onnxruntime
        from onnx import load_model_from_string
        from onnx.external_data_helper import _get_all_tensors, uses_external_data
    except ImportError as error:
        raise UserError(f"an ONNX backbone needs further packages ({error}): pip install 'metalstm[export]'") from error
    content = path.read_bytes()
    try:
        if any(map(uses_external_data, _get_all_tensors(load_model_from_string(content)))):
            raise UserError(f"{path} keeps its weights in other files: save the network as one ONNX file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except UserError:
        raise
    except Exception as error:  # of onnxruntime's and protobuf's own kinds
        raise UserError(f"{path} is no ONNX file that runs here ({cut(_line(error))}): export it anew") from error


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
