import sys
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from metalstm import backbones
from metalstm.backbones import TimmModel, timm_model
from metalstm.classifier import Classifier, export
from metalstm.errors import UserError

NAME = "mobilenetv3_small_050"
TAGGED = f"{NAME}.lamb_in1k"
try:
    timm = import_module("timm")
except (ImportError, RuntimeError) as error:  # the latter of torchvision, beside a torch that it was not built for
    timm, why = None, str(error)
else:
    why = ""
needs_timm = pytest.mark.skipif(timm is None, reason=f"timm cannot be imported here: {why}")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METALSTM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def net():
    assert timm
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model(NAME)  # with its classifier, as files have it
    with torch.no_grad():
        for name, values in net.named_buffers():  # not 0 and 1, as a new network has them
            if name.endswith("running_mean"):
                values.fill_(0.01)
    return net.eval().requires_grad_(False)


@pytest.fixture
def weights(net, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(net.state_dict(), path)
    return path


def said(source) -> str:
    with pytest.raises(UserError) as error:
        backbones.load(source)
    return str(error.value)


def test_without_timm_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert said("timm:resnet18") == (
        "a timm backbone needs further packages (import of timm halted; None in sys.modules): "
        "pip install 'metalstm[timm]'"
    )


def test_a_torchvision_of_another_torch_is_named(monkeypatch):
    def fail(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(timm_model, "import_module", fail)
    assert said("timm:resnet18") == (
        f"timm cannot be imported beside torch {torch.__version__} (operator torchvision::nms does not exist): install "
        "the torchvision that fits this torch, from the same index"
    )


@pytest.mark.parametrize("file", ["weights.pt", "weights.bin", "weights.pth", "weights.onnx", ""])
def test_weights_that_could_run_code_are_refused(file):
    assert said(f"timm:resnet18={file}") == (
        f"timm:resnet18={file}: weights are taken from .safetensors files alone, because loading others can run code "
        "that is in them: give timm:resnet18=FILE.safetensors"
    )


def test_a_file_that_is_missing_is_named(tmp_path):
    path = tmp_path / "no.safetensors"
    assert said(f"timm:resnet18={path}") == f"no weights at {path}: give the .safetensors file of a timm model"


@pytest.mark.parametrize(
    ("hub", "file", "error", "expected"),
    [
        (None, None, None, "timm names no weights in a .safetensors file for x; pickles can run code: give a file"),
        ("timm/x", "pytorch_model.bin", None, "timm names no weights in a .safetensors file for x; pickles"),
        ("timm/x", None, "RemoteEntryNotFoundError", "timm names no weights in a .safetensors file for x; pickles"),
        ("timm/x", None, "LocalEntryNotFoundError", "the weights of x cannot be downloaded ("),
        ("timm/x", None, "OfflineModeIsEnabled", "the weights of x cannot be downloaded ("),
    ],
)
def test_only_safetensors_files_are_downloaded(hub, file, error, expected, monkeypatch):
    errors = pytest.importorskip("huggingface_hub.errors")
    asked = []

    def download(*args, local_files_only=False):
        asked.append((*args, local_files_only))
        failure = errors.LocalEntryNotFoundError if local_files_only else getattr(errors, error)
        raise failure.__new__(failure, "no luck")  # some take the server's answer, too

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(UserError) as found:
        timm_model._downloaded("x", SimpleNamespace(hf_hub_id=hub, hf_hub_filename=file))
    assert str(found.value).startswith(expected)
    assert str(found.value).endswith(", timm:x=weights.safetensors")
    assert asked == ([("timm/x", "model.safetensors", local) for local in (True, False)] if error else [])


@needs_timm
def test_features_are_those_of_the_module_without_its_classifier(net, weights):
    backbone = backbones.load(f"timm:{NAME}={weights}")
    assert (backbone.n_features, backbone.preprocessing.image_size) == (1024, 224)
    values = backbones.Input(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert backbone.input == values
    pixels = np.random.RandomState(0).randint(0, 256, (2, 224, 224, 3)).astype(np.uint8)
    x = torch.tensor(pixels).movedim(-1, 1).float() / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in (values.mean, values.std))
    net.reset_classifier(0)
    np.testing.assert_allclose(backbone.compute(pixels), net((x - mean) / std).numpy(), rtol=1e-4, atol=1e-7)


@needs_timm
@pytest.mark.slow
def test_features_are_those_of_the_same_network_in_an_onnx_file(net, weights, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    net.reset_classifier(0)
    with export._quiet():
        batch = ({0: torch.export.Dim.DYNAMIC},)
        program = torch.onnx.export(
            net, (torch.zeros(2, 3, 224, 224),), dynamo=True, verbose=False, dynamic_shapes=batch
        )
    assert program
    (tmp_path / "net.onnx").write_bytes(program.model_proto.SerializeToString())
    (tmp_path / "net.json").write_text('{"size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}')
    pixels = np.random.RandomState(0).randint(0, 256, (3, 224, 224, 3)).astype(np.uint8)
    features = backbones.load(f"timm:{NAME}={weights}").compute(pixels)
    there = backbones.load(tmp_path / "net.onnx").compute(pixels)
    np.testing.assert_allclose(there, features, rtol=0, atol=1e-4 * np.abs(features).max())


@needs_timm
def test_no_weight_stays_random(weights, tmp_path):
    tensors, path = load_file(weights), tmp_path / "lacks.safetensors"
    save_file({name: each for name, each in tensors.items() if name != "bn1.bias"}, path)
    before = torch.nn.Module.load_state_dict
    line = f"{path} does not hold the weights of timm's {NAME} (it lacks bn1.bias): give the file of this model"
    assert said(f"timm:{NAME}={path}") == line
    assert torch.nn.Module.load_state_dict is before


@needs_timm
def test_files_of_something_else_are_refused(weights, tmp_path):
    assert "size mismatch" in said(f"timm:resnet18={weights}")
    content, path = weights.read_bytes(), tmp_path / "damaged.safetensors"
    for damaged in (b"", b"no weights", content[: len(content) // 2]):
        path.write_bytes(damaged)
        assert said(f"timm:{NAME}={path}").startswith(f"{path} does not hold the weights of timm's {NAME} (")


@needs_timm
@pytest.mark.parametrize("name", ["mobilenetv3_small_05", f"{NAME}.nope"])
def test_unknown_names_get_a_suggestion(name, weights):
    assert timm
    for source in (f"timm:{name}", f"timm:{name}={weights}"):
        line = said(source)
        assert line.startswith(f"timm {timm.__version__} has no model {name!r}, did you mean ")
        assert TAGGED in line


@needs_timm
@pytest.mark.parametrize("name", ["", "hf-hub:timm/resnet18", "local-dir:models"])
def test_names_that_timm_would_look_up_elsewhere_are_refused(name):
    assert "has no model" in said(f"timm:{name}")


@needs_timm
def test_weights_that_timm_names_come_from_the_cache_of_the_hub(weights, tmp_path, monkeypatch):
    folder, commit = tmp_path / "hub" / f"models--timm--{TAGGED}", "0" * 40
    for path in (folder / "refs", folder / "snapshots" / commit):
        path.mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit / "model.safetensors").write_bytes(weights.read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    backbone = backbones.load(f"timm:{TAGGED}")
    assert backbone.sha256 == backbones.load(f"timm:{TAGGED}={weights}").sha256
    assert backbone.sha256 != backbones.load(f"timm:{NAME}={weights}").sha256, "other models can share weights"


@needs_timm
def test_a_classifier_knows_its_weights(net, weights, colors, tmp_path):
    images, labels = colors
    birds = Classifier(backbone=f"timm:{NAME}={weights}", head="class-means").fit(images, labels)
    birds.save(tmp_path / "birds.safetensors")
    moved = weights.rename(tmp_path / "moved.safetensors")
    again = Classifier.load(tmp_path / "birds.safetensors", backbone=f"timm:{NAME}={moved}")
    np.testing.assert_array_equal(again.predict(images), birds.predict(images))
    np.testing.assert_allclose(again.predict_proba(images), birds.predict_proba(images), rtol=1e-5)
    net.conv_stem.weight += 1
    save_file(net.state_dict(), moved)
    with pytest.raises(UserError, match="is another backbone than the one that made this classifier"):
        Classifier.load(tmp_path / "birds.safetensors", backbone=f"timm:{NAME}={moved}").predict(images)


def test_a_network_that_gives_no_vectors_is_refused():
    values = backbones.Input(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    with pytest.raises(UserError, match=r"timm:x gives no vector for each image, but \(1, 3, 32, 32\): take another"):
        TimmModel("timm:x", torch.nn.Identity(), "", values, torch.device("cpu"))
    with pytest.raises(UserError, match=r"timm:x cannot run here \(.*\): take another model"):
        TimmModel("timm:x", torch.nn.Linear(3, 4), "", values, torch.device("cpu"))
