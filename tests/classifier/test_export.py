import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from metalstm.classifier import Classifier, export
from metalstm.errors import UserError

EXAMPLES = Path(__file__).parents[2] / "examples"
SHAPES = {"disc 1": [(20, 20), (40, 40)], "disc ü": [(5, 5), (55, 55)]}


@pytest.fixture(scope="module", params=["drawings", "photos"])
def fitted(request, tmp_path_factory) -> tuple[Classifier, list[Path]]:
    """A classifier of shipped checkpoints, and files to try it on."""
    folder = tmp_path_factory.mktemp(request.param)
    rng, paths, labels = np.random.RandomState(0), [], []
    for label, box in SHAPES.items():
        for k in range(3):
            noise = rng.randint(0, 255, (60, 70, 3)).astype(np.uint8)
            image = Image.new("RGB", (70, 60), "white") if request.param == "drawings" else Image.fromarray(noise)
            ImageDraw.Draw(image).ellipse([(x + k, y) for x, y in box], outline="black", width=4)
            paths.append(folder / f"{label} {k}.png")
            image.save(paths[-1])
            labels.append(label)
    return Classifier().fit(paths, labels), paths


def run(example: str, *words: object) -> list[list[str]]:
    """What an example prints, without a way to this package."""
    program = "import sys, runpy; sys.modules['metalstm'] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    command = [sys.executable, "-c", program, EXAMPLES / example, *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def assert_same(rows: list[list[str]], classifier: Classifier, paths: list[Path]) -> None:
    probabilities = classifier.predict_proba(paths)
    assert [row[0] for row in rows] == list(map(str, paths))
    assert [row[1] for row in rows] == classifier.predict(paths).tolist()
    np.testing.assert_allclose([float(row[2]) for row in rows], probabilities.max(1), atol=1e-3)


def test_onnx_runs_without_this_package(fitted, tmp_path):
    import onnx

    classifier, paths = fitted
    export.to_onnx(classifier, tmp_path / "fitted.onnx")
    assert_same(run("run_onnx.py", tmp_path / "fitted.onnx", *paths), classifier, paths)
    model = onnx.load(tmp_path / "fitted.onnx")
    onnx.checker.check_model(model)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    size, channels = classifier.preprocessing.image_size, classifier.preprocessing.channels
    assert (entries["filter"], entries["fit"]) == ("lanczos", "pad" if channels == 1 else "crop")
    assert [json.loads(entries[name]) for name in ("image_size", "channels", "classes")] == [
        size,
        channels,
        list(SHAPES),
    ]
    assert json.loads(entries["threshold"]) == classifier.threshold()
    shape = [d.dim_value or d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape[1:] == [size, size, channels]
    assert isinstance(shape[0], str), "any number of images"


def test_torch_export_runs_without_this_package(fitted, tmp_path):
    classifier, paths = fitted
    export.to_torch(classifier, tmp_path / "fitted.pt2")
    assert_same(run("run_torch.py", tmp_path / "fitted.pt2", *paths), classifier, paths)
    assert_same(run("run_torch.py", tmp_path / "fitted.pt2", paths[0]), classifier, paths[:1])


def test_what_is_off_is_not_kept(fitted, tmp_path, monkeypatch):
    classifier, _ = fitted
    right, allowed = classifier.probabilities, 1e-5 / min(1, classifier.network.temperature)
    monkeypatch.setattr(classifier, "probabilities", lambda pixels: right(pixels) + np.float32(1e-3))
    with pytest.raises(UserError) as error:
        export.to_torch(classifier, tmp_path / "fitted.pt2")
    assert str(error.value) == (
        f"nothing was written: the exported probabilities are off by 1.0e-03, more than {allowed:.1e}: try the other "
        "format, and please report it"
    )
    assert not list(tmp_path.iterdir())


def test_onnx_needs_the_extra(fitted, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError) as error:
        export.to_onnx(fitted[0], tmp_path / "fitted.onnx")
    assert str(error.value) == (
        "ONNX needs further packages (import of onnxruntime halted; None in sys.modules): pip install "
        "'metalstm[export]'"
    )
