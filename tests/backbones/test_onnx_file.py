import json

import numpy as np
import pytest
import torch

from metalstm import backbones
from metalstm.errors import UserError

from .conftest import INPUT, SIZE

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def write(path, shape, outputs, channels=3):
    """A network that averages over the pixels; `outputs` maps names to the shapes that it reshapes them to."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["mean"])]
    constants = []
    for name, to in outputs.items():
        constants.append(onnx.numpy_helper.from_array(np.array(to, np.int64), f"{name} shape"))
        nodes.append(helper.make_node("Reshape", ["mean", f"{name} shape"], [name]))
    values = [helper.make_tensor_value_info(name, kind, [None] * len(to)) for name, to in outputs.items()]
    image = helper.make_tensor_value_info("x", kind, [shape, channels, SIZE, SIZE])
    graph = helper.make_graph(nodes, "net", [image], values, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    path.with_suffix(".json").write_text(json.dumps(INPUT))
    return path


def test_features_are_those_of_the_module(onnx_file, net, pixels):
    x = torch.tensor(pixels).movedim(-1, 1).float() / 255
    mean, std = (torch.tensor(INPUT[name])[:, None, None] for name in ("mean", "std"))
    backbone = backbones.load(onnx_file)
    assert (backbone.n_features, backbone.preprocessing.image_size) == (12, SIZE)
    np.testing.assert_allclose(backbone.compute(pixels), net((x - mean) / std).numpy(), atol=1e-5)


def test_a_fixed_batch_size_and_features_with_a_height_and_a_width_of_1(tmp_path, pixels):
    whole = backbones.load(write(tmp_path / "any.onnx", "n", {"y": [-1, 3]})).compute(pixels)
    fixed = backbones.load(write(tmp_path / "two.onnx", 2, {"y": [-1, 3, 1, 1]})).compute(pixels)
    np.testing.assert_allclose(fixed, whole, rtol=1e-6)


def test_one_of_several_outputs_is_named(tmp_path, pixels):
    path = write(tmp_path / "net.onnx", "n", {"tokens": [-1, 1, 3], "pooled": [-1, 3]})
    with pytest.raises(UserError) as error:
        backbones.load(path)
    said = f'{path} has the outputs tokens, pooled: name the one with features in net.json, "output": "tokens"'
    assert str(error.value) == said
    path.with_suffix(".json").write_text(json.dumps(INPUT | {"output": "pooled"}))
    assert backbones.load(path).n_features == 3
    path.with_suffix(".json").write_text(json.dumps(INPUT | {"output": "head"}))
    with pytest.raises(UserError, match="has no output 'head', but tokens, pooled: name one of these"):
        backbones.load(path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (None, "{net} needs its preprocessing in {json}, which is missing, for example: "),
        ("{", "{json} cannot be read as JSON ("),
        ("[]", "{json} cannot be read as JSON (no object): write, for example, "),
        ({"size": 16}, "{json} lacks mean, std: write, for example, "),
        (INPUT | {"std": [0, 1, 1]}, "{json}: --std [0, 1, 1]: must be "),
        (INPUT | {"colour": 1}, "{json}: Input does not know colour: write, for example, "),
        (INPUT | {"size": 32}, "{net} takes images of [3, 16, 16] (16 instead of 32): change size in net.json"),
    ],
)
def test_preprocessing_that_is_missing_or_wrong_is_named(values, said, onnx_file):
    path = onnx_file.with_suffix(".json")
    path.unlink() if values is None else path.write_text(values if isinstance(values, str) else json.dumps(values))
    with pytest.raises(UserError) as error:
        backbones.load(onnx_file)
    assert str(error.value).startswith(said.replace("{net}", str(onnx_file)).replace("{json}", str(path)))


def test_networks_that_give_no_vector_for_each_image_are_refused(tmp_path):
    with pytest.raises(UserError, match="it must give one vector for each"):
        backbones.load(write(tmp_path / "net.onnx", "n", {"y": [-1, 1, 3]}))


def test_files_that_are_no_networks_are_refused(tmp_path, exported):
    path = tmp_path / "net.onnx"
    with pytest.raises(UserError, match=r"no backbone at .*net.onnx: give the ONNX file of a network"):
        backbones.load(path)
    path.with_suffix(".json").write_text(json.dumps(INPUT))
    for content in (b"", b"not a network", exported[: len(exported) // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"net\.onnx"):
            backbones.load(path)


def test_weights_in_other_files_are_refused(tmp_path, exported):
    model, path = onnx.load_model_from_string(exported), tmp_path / "net.onnx"
    path.with_suffix(".json").write_text(json.dumps(INPUT))
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(UserError) as error:
        backbones.load(path)
    assert str(error.value) == f"{path} keeps its weights in other files: save the network as one ONNX file"


def test_what_takes_no_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="1 instead of 3"):
        backbones.load(write(tmp_path / "net.onnx", "n", {"y": [-1, 1]}, channels=1))
