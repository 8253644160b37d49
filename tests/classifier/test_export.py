import json
import runpy
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from metalstm import checkpoint
from metalstm.classifier import Classifier, export
from metalstm.errors import UserError
from metalstm.geometry import FRAMINGS
from metalstm.images import Preprocessing
from metalstm.methods import METHODS

EXAMPLES = Path(__file__).parents[2] / "examples"
SHAPES = {"disc 1": [(20, 20), (40, 40)], "disc ü": [(5, 5), (55, 55)]}


@pytest.fixture(scope="module", params=["drawings", "centered drawings", "photos"])
def fitted(request, tmp_path_factory) -> tuple[Classifier, list[Path]]:
    """A classifier of shipped checkpoints, or of one that takes centered drawings, and files to try it on."""
    folder = tmp_path_factory.mktemp(request.param)
    rng, paths, labels = np.random.RandomState(0), [], []
    for label, box in SHAPES.items():
        for k in range(3):
            noise = rng.randint(0, 255, (60, 70, 3)).astype(np.uint8)
            image = Image.fromarray(noise) if request.param == "photos" else Image.new("RGB", (70, 60), "white")
            ImageDraw.Draw(image).ellipse([(x + k, y) for x, y in box], outline="black", width=4)
            paths.append(folder / f"{label} {k}.png")
            image.save(paths[-1])
            labels.append(label)
    shipped = None
    if request.param == "centered drawings":
        tensors, meta = checkpoint.load(checkpoint.find("meta-lstm-omniglot-5w1s"))
        meta["config"]["traits"]["centered"] = True
        checkpoint.save(shipped := folder / "centered.safetensors", tensors, meta)
    return Classifier(shipped).fit(paths, labels), paths


def start(example: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run an example without a way to this package."""
    program = (
        "import sys, runpy; sys.modules['metalstm'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", program, EXAMPLES / example, *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)


def run(example: str, *words: object) -> list[list[str]]:
    """What an example prints."""
    done = start(example, *words)
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def assert_same(rows: list[list[str]], classifier: Classifier, paths: list[Path]) -> None:
    probabilities = classifier.predict_proba(paths)
    assert [row[0] for row in rows] == list(map(str, paths))
    assert [row[1] for row in rows] == classifier.predict(paths).tolist()
    np.testing.assert_allclose([float(row[2]) for row in rows], probabilities.max(1), atol=1e-3)
    assert [row[3:] == [] for row in rows] == classifier.known(paths).tolist()


def test_onnx_runs_without_this_package(fitted, tmp_path):
    import onnx

    classifier, paths = fitted
    export.to_onnx(classifier, tmp_path / "fitted.onnx")
    assert_same(run("run_onnx.py", tmp_path / "fitted.onnx", *paths), classifier, paths)
    model = onnx.load(tmp_path / "fitted.onnx")
    onnx.checker.check_model(model)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    size, channels = classifier.preprocessing.image_size, classifier.preprocessing.channels
    assert (entries["filter"], entries["framing"]) == ("lanczos", "crop" if channels == 3 else "letterbox")
    assert [json.loads(entries[name]) for name in ("image_size", "channels", "drawing", "centered", "classes")] == [
        size,
        channels,
        classifier.preprocessing.drawing,
        classifier.preprocessing.centered,
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


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """Image files of all kinds, shapes and EXIF orientations."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.RandomState(0)
    noise = [Image.fromarray(rng.randint(0, 256, (9, 9, 3)).astype(np.uint8)) for _ in range(8)]

    def smooth(width: int, height: int) -> Image.Image:
        return noise[(width + height) % 8].resize((width, height), Image.Resampling.BICUBIC)

    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for name, size in (("small", (53, 40)), ("large", (500, 1200))):  # of a large JPEG, a fraction is decoded
            smooth(*size).save(folder / f"{name}-{orientation}.jpg", exif=exif)
    for width, height in ((32, 32), (1, 20), (90, 7), (31, 84), (200, 199)):
        smooth(width, height).save(folder / f"{width}x{height}.png")
    for mode in ("L", "1", "P", "LA", "RGBA"):
        image = smooth(60, 44).convert(mode)
        if mode in ("LA", "RGBA"):
            image.putalpha(smooth(60, 44).convert("L"))
        image.save(folder / f"{mode}.png")
    smooth(60, 44).convert("CMYK").save(folder / "CMYK.jpg")
    smooth(60, 44).quantize().save(folder / "clear.gif", transparency=3)
    Image.fromarray(rng.randint(0, 2**16, (44, 60)).astype(np.uint16)).save(folder / "16bit.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("example", ["run_onnx.py", "run_torch.py"])
def test_examples_prepare_the_pixels_of_python(example, framing, files):
    """Every pixel of every file."""
    read = runpy.run_path(str(EXAMPLES / example))["read"]
    for channels, drawing, centered in ((3, False, False), (1, False, False), (1, True, False), (1, True, True)):
        preprocessing = Preprocessing(28, channels, drawing, centered, framing)
        for path in files:
            try:
                wanted = preprocessing(path)
            except UserError:  # nothing is left of it in a letterbox
                with pytest.raises(ValueError, match="height and width must be > 0"):
                    read(path, asdict(preprocessing))
            else:
                np.testing.assert_array_equal(read(path, asdict(preprocessing)), wanted, path.name)


def test_an_example_refuses_what_it_would_read_differently(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "x.tif")
    read = runpy.run_path(str(EXAMPLES / "run_onnx.py"))["read"]
    with pytest.raises(SystemExit, match=r"x\.tif has 32 bits: save it with 8 or 16"):
        read(tmp_path / "x.tif", asdict(Preprocessing(28, 3, drawing=False)))


@pytest.mark.parametrize("framing", ["letterbox", "squeeze"])
def test_exports_carry_the_framing(fitted, tmp_path, framing):
    checkpoint, paths = fitted[0].checkpoint_, fitted[1]
    classifier = Classifier(checkpoint, framing=framing).fit(paths, [path.name[:-6] for path in paths])
    assert classifier.preprocessing.framing == framing
    export.to_onnx(classifier, tmp_path / "fitted.onnx")
    assert_same(run("run_onnx.py", tmp_path / "fitted.onnx", *paths), classifier, paths)
    export.to_torch(classifier, tmp_path / "fitted.pt2")
    assert_same(run("run_torch.py", tmp_path / "fitted.pt2", *paths), classifier, paths)


@pytest.mark.parametrize("example", ["run_onnx.py", "run_torch.py"])
def test_an_example_without_images_says_how_it_is_run(example):
    done = start(example)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"python {example} birds." in done.stderr


def test_exported_scores_are_those_of_the_classifier(fitted, tmp_path):
    """Also of noise, which is near to no class."""
    import onnxruntime
    import torch

    classifier, _ = fitted
    size, channels = classifier.preprocessing.image_size, classifier.preprocessing.channels
    images = np.random.RandomState(0).randint(0, 256, (3, size, size, channels)).astype(np.uint8)
    expected = classifier.network.answers(images)
    export.to_onnx(classifier, tmp_path / "fitted.onnx")
    export.to_torch(classifier, tmp_path / "fitted.pt2")
    session = onnxruntime.InferenceSession(tmp_path / "fitted.onnx")
    assert [output.name for output in session.get_outputs()] == ["probabilities", "score"]
    by_torch = torch.export.load(tmp_path / "fitted.pt2").module()(torch.from_numpy(images))
    for answers in (session.run(None, {"images": images}), by_torch):
        for theirs, ours in zip(answers, expected, strict=True):
            np.testing.assert_allclose(np.asarray(theirs), ours, atol=1e-4)


def test_what_is_off_is_not_kept(fitted, tmp_path, monkeypatch):
    classifier, _ = fitted
    right, allowed = classifier.network.answers, 1e-5 / min(1, classifier.network.temperature)
    monkeypatch.setattr(
        classifier.network, "answers", lambda pixels: [each + np.float32(1e-3) for each in right(pixels)]
    )
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


def test_a_method_that_onnx_has_no_operation_for(make, patterns, tmp_path):
    """The distances of `pixels`; torch.export has them."""
    classifier = Classifier(make("pixels")).fit(patterns.support, patterns.labels)
    with pytest.raises(UserError) as error:
        export.to_onnx(classifier, tmp_path / "fitted.onnx")
    message = str(error.value)
    assert message.startswith("this method cannot be written as ONNX (No ONNX function found for <OpOverload(op='aten.")
    assert message.endswith("): pass --format torch")
    assert "\n" not in message
    export.to_torch(classifier, tmp_path / "fitted.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["fitted.pt2"]


def test_a_method_that_torch_export_cannot_follow(make, patterns, tmp_path, monkeypatch):
    classifier = Classifier(make()).fit(patterns.support, patterns.labels)
    scores = classifier.method.scores
    monkeypatch.setattr(classifier.method, "scores", lambda adapted, x: scores(adapted, x) if x.sum() > 0 else x)
    with pytest.raises(UserError, match=r"this method cannot be written as a program of torch\.export \(") as error:
        export.to_torch(classifier, tmp_path / "fitted.pt2")
    assert str(error.value).endswith("): use the file of the classifier itself")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name != "pixels"])
def test_every_method_can_be_exported(make, patterns, tmp_path, method):
    """Each file is checked against the classifier before it is kept."""
    classifier = Classifier(make(method)).fit(patterns.support, patterns.labels)
    export.to_onnx(classifier, tmp_path / "fitted.onnx")
    export.to_torch(classifier, tmp_path / "fitted.pt2")
    assert len(list(tmp_path.iterdir())) == 2
