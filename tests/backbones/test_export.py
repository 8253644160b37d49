"""Classifiers with a backbone as files: whole, and the head alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backbones.conftest import INPUT, SIZE
from metalstm.classifier import Classifier, browser, export
from metalstm.errors import UserError
from metalstm.heads import HEADS

onnx = pytest.importorskip("onnx", reason="needs the extra export")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METALSTM_CACHE", str(tmp_path / "cache"))


def mean_colors(path: Path, batch: Any = "n", opset: int = 18, kind: int = 1, names=("images", "features")) -> Path:
    """A network that gives the mean of each color, written by hand."""
    helper = onnx.helper
    nodes = [
        helper.make_node("GlobalAveragePool", [names[0]], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], [names[1]]),
    ]
    inputs = [helper.make_tensor_value_info(names[0], kind, [batch, 3, SIZE, SIZE])]
    outputs = [helper.make_tensor_value_info(names[1], kind, [batch, 3])]
    graph = helper.make_graph(nodes, "net", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model.metadata_props.add(key="classes", value="of somebody else")
    onnx.save(model, path)
    path.with_suffix(".json").write_text(json.dumps(INPUT))
    return path


def run(path: Path, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: x})


def assert_answers(classifier: Classifier, images: list[np.ndarray], answers: Any) -> None:
    """As `predict` and `--reject` give them."""
    probabilities, scores = classifier.predict_with_scores(images)
    assert scores is not None
    np.testing.assert_allclose(np.asarray(answers[0]), probabilities, atol=1e-5)
    np.testing.assert_allclose(np.asarray(answers[1]), scores, atol=1e-5)
    assert probabilities.max(1).min() < 1 - 1e-3, "answers that are certain would hide differences"


def pixels(classifier: Classifier, images: list[np.ndarray]) -> np.ndarray:
    return np.stack([classifier.preprocessing(image) for image in images])


@pytest.mark.parametrize("head", HEADS)
def test_the_whole_and_the_head_answer_as_python_does(head, onnx_file, colors, tmp_path):
    classifier = Classifier(backbone=onnx_file, head=head).fit(*colors)
    noise = list(np.random.RandomState(5).randint(0, 256, (7, 30, 20, 3), dtype=np.uint8)) + colors[0]
    x = pixels(classifier, noise)
    export.to_onnx(classifier, tmp_path / "whole.onnx")
    assert_answers(classifier, noise, run(tmp_path / "whole.onnx", x))
    features = classifier.frozen().compute(x)
    export.to_onnx(classifier, tmp_path / "head.onnx", head_only=True)
    assert_answers(classifier, noise, run(tmp_path / "head.onnx", features))
    export.to_torch(classifier, tmp_path / "head.pt2", head_only=True)
    assert_answers(classifier, noise, torch.export.load(tmp_path / "head.pt2").module()(torch.from_numpy(features)))
    session = onnxruntime.InferenceSession(tmp_path / "head.onnx")
    assert [(each.name, each.shape[1:]) for each in session.get_inputs()] == [("features", [12])]
    about = onnxruntime.InferenceSession(tmp_path / "whole.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == ["blue", "green", "red"]
    assert (json.loads(about["image_size"]), about["framing"]) == (SIZE, "crop")
    assert json.loads(about["threshold"]) == classifier.threshold()


@pytest.mark.parametrize("name", ["meta-lstm-cifar-fs-5w5s", "meta-lstm-omniglot-5w5s"])
def test_a_checkpoint_as_a_backbone_is_exported_whole(name, colors, tmp_path):
    classifier = Classifier(backbone=name, head="logistic").fit(*colors)
    noise = list(np.random.RandomState(5).randint(0, 256, (7, 30, 20, 3), dtype=np.uint8))
    noise += [255 - image // 2 for image in noise]  # light, which drawings are turned for
    x = pixels(classifier, noise)
    export.to_onnx(classifier, tmp_path / "whole.onnx")
    assert_answers(classifier, noise, run(tmp_path / "whole.onnx", x))
    export.to_torch(classifier, tmp_path / "whole.pt2")
    assert_answers(classifier, noise, torch.export.load(tmp_path / "whole.pt2").module()(torch.from_numpy(x)))


@pytest.mark.parametrize(
    ("opset", "names"),
    [
        (9, ("images", "features")),
        (13, ("x", "probabilities")),
        (21, ("features", "score")),
        (18, ("bytes", "y")),
    ],
)
def test_files_of_other_exporters_are_joined(opset, names, colors, tmp_path):
    """Also with names that the exported file has for other things."""
    backbone = mean_colors(tmp_path / "net.onnx", opset=opset, names=names)
    classifier = Classifier(backbone=backbone, head="logistic").fit(*colors)
    export.to_onnx(classifier, tmp_path / "whole.onnx")
    assert_answers(classifier, colors[0], run(tmp_path / "whole.onnx", pixels(classifier, colors[0])))
    assert len(onnx.load(tmp_path / "whole.onnx").metadata_props) == len(export.metadata(classifier))


def test_what_cannot_be_exported_is_refused_in_a_line(colors, tmp_path, monkeypatch):
    fixed = mean_colors(tmp_path / "fixed.onnx", batch=2)
    classifier = Classifier(backbone=fixed, head="logistic").fit(*colors)
    refused = (
        (export.to_onnx, f"{fixed} takes 2 images at a time, so it cannot be exported: pass --head-only"),
        (export.to_torch, f"{fixed} cannot be a part of a torch file: pass --format onnx, or --head-only"),
    )
    half = mean_colors(tmp_path / "half.onnx", kind=onnx.TensorProto.FLOAT16)
    with pytest.raises(UserError) as error:
        export.to_onnx(Classifier(backbone=half, head="logistic").fit(*colors), tmp_path / "out")
    assert str(error.value) == f"{half} takes float16, so its answers would differ: pass --head-only"
    for write, said in refused:
        with pytest.raises(UserError) as error:
            write(classifier, tmp_path / "out")
        assert str(error.value) == said
    export.to_onnx(classifier, tmp_path / "head.onnx", head_only=True)

    net = mean_colors(tmp_path / "net.onnx")
    classifier = Classifier(backbone=net, head="logistic").fit(*colors)
    monkeypatch.setattr(browser, "MOST", 1000)
    with pytest.raises(
        UserError, match=r"^the page would have a network of [\d,]+ bytes, more than 1,000: pass --form"
    ):
        browser.to_html(classifier, tmp_path / "out")
    monkeypatch.setattr(export, "MOST", 1000)
    with pytest.raises(UserError, match=r"^the ONNX file would have [\d,]+ bytes, more than 1,000: pass --head-only$"):
        export.to_onnx(classifier, tmp_path / "out")
    plain = Classifier("meta-lstm-cifar-fs-5w5s").fit(*colors)
    with pytest.raises(UserError) as error:
        export.to_onnx(plain, tmp_path / "out", head_only=True)
    assert str(error.value) == "--head-only is for a classifier with a backbone, and this has none: leave it out"
    net.unlink()
    classifier.save(tmp_path / "made.safetensors")
    with pytest.raises(UserError, match=rf"^no backbone at {net}: "):
        export.to_onnx(Classifier.load(tmp_path / "made.safetensors"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
