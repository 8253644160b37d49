"""The commands for someone with a handful of images: adapt, predict, export."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import helpers
from metalstm import checkpoint
from metalstm.classifier import Classifier

COLOURS = {"blue [b]": (40, 60, 200), "green": (60, 180, 50), "red": (200, 50, 40)}


def paint(path: Path, colour: tuple[int, int, int], seed: int) -> Path:
    rng = np.random.RandomState(seed)
    pixels = np.array(colour) + rng.randint(-40, 41, (40, 50, 3)) + rng.randint(-20, 21)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    commands = helpers.Commands(tmp_path_factory.mktemp("cache"))
    yield commands
    commands.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`photos`, with 3, 3 and 2 images, and `new`, with one of each class, one of them broken beside."""
    folder = tmp_path_factory.mktemp("colours")
    for number, (name, colour) in enumerate(COLOURS.items()):
        for k in range(3 if number < 2 else 2):
            paint(folder / "photos" / name / f"{k}.png", colour, 10 * number + k)
        paint(folder / "new" / f"{name}.jpg", colour, 100 + number)
    return folder


@pytest.fixture(scope="module")
def made(folder, commands) -> Path:
    status, out, err = commands("adapt", "photos", cwd=folder)
    assert (status, out) == (0, ""), err
    assert err.splitlines() == [
        "photos: 3 blue [b], 3 green, 2 red",
        "meta-learner: meta-lstm-cifar-fs-5w5s (for photos, 2.67 a class; --checkpoint takes another)",
        "photos.safetensors: the classifier; now: metalstm predict photos.safetensors IMAGES",
        "accuracy on images like these: 100 % (95 % interval 68 to 100 %), by 2-fold cross-validation on 8 images",
    ]
    return folder / "photos.safetensors"


# adapt


def test_adapt_takes_a_checkpoint_and_tells_why_there_is_no_estimate(folder, commands, tmp_path):
    for name, colour in COLOURS.items():
        paint(tmp_path / "few" / name / "1.png", colour, 1)
    out = tmp_path / "deep" / "made.safetensors"
    words = ("adapt", tmp_path / "few", *helpers.flags(checkpoint="meta-lstm-omniglot-5w1s", out=out, seed=4))
    status, _, err = commands(*words)
    assert status == 0, err
    assert err.splitlines() == [
        f"{tmp_path}/few: 1 blue [b], 1 green, 1 red",
        f"{out}: the classifier; now: metalstm predict {out} IMAGES",
        "accuracy on images like these: unknown: an estimate of the accuracy needs 2 images per class, but blue [b] "
        "has 1",
    ]
    meta = Classifier.load(out).meta
    assert (meta["checkpoint"], meta["seed"]) == ("meta-lstm-omniglot-5w1s", 4)


def test_what_adapt_refuses(folder, commands, tmp_path):
    def refusal(*words):
        return commands.refusal("adapt", *words, cwd=tmp_path)

    assert refusal("nowhere") == "nowhere is not a folder: name one with images in <class>/"
    (tmp_path / "empty").mkdir()
    assert refusal("empty") == "empty has no class folders: put the images of each class into empty/<class>/"
    (tmp_path / "one" / "red").mkdir(parents=True)
    assert refusal("one") == "class folder one/red has no images: add some, or remove it"
    paint(tmp_path / "one" / "red" / "1.png", (200, 0, 0), 1)
    assert refusal("one") == "1 class: give 2 to 20"
    (tmp_path / "one" / "red" / "2.jpg").touch()
    assert refusal("one") == "cannot read one/red/2.jpg as an image (it is empty): remove it"
    assert refusal("one", "--checkpoint", "meta-lstm-omniglot-5w2s") == (
        "unknown checkpoint 'meta-lstm-omniglot-5w2s', did you mean 'meta-lstm-omniglot-5w5s'? allowed: "
        + ", ".join(checkpoint.shipped())
    )
    assert refusal(folder / "photos", "--out", tmp_path) == (
        f"--out {tmp_path} is a folder: name a file, {tmp_path}/classifier.safetensors say"
    )


# predict


def test_predict_shows_a_table(made, folder, commands):
    status, out, err = commands("predict", made, "new", cwd=folder)
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if ".jpg" in line]
    assert [row[:-2] for row in rows] == [
        ["new/blue", "[b].jpg", "blue", "[b]"],
        ["new/green.jpg", "green"],
        ["new/red.jpg", "red"],
    ]


def test_predict_gives_csv_and_json(made, folder, commands):
    status, out, err = commands("predict", made, "new/red.jpg", "new/green.jpg", "--json", "-", cwd=folder)
    assert (status, err) == (0, "")
    answers = json.loads(out)
    assert [(answer["image"], answer["class"]) for answer in answers] == [
        ("new/red.jpg", "red"), ("new/green.jpg", "green")
    ]  # fmt: skip
    for answer in answers:
        assert list(answer["probabilities"]) == list(COLOURS)
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert answer["probability"] == max(answer["probabilities"].values())
    words = ("new/red.jpg", "new/green.jpg", "--csv", "-", "--json", "out.json")
    status, out, err = commands("predict", made, *words, cwd=folder)
    assert (status, err) == (0, "")
    assert json.loads((folder / "out.json").read_text()) == answers
    rows = list(csv.reader(io.StringIO(out)))
    assert rows[0] == ["image", "class", "probability"]
    assert rows[1][:2] == ["new/red.jpg", "red"]
    assert float(rows[1][2]) == pytest.approx(answers[0]["probability"])


def test_predict_tells_of_broken_images_and_predicts_the_others(made, folder, commands, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    words = ("predict", made, folder / "new" / "red.jpg", tmp_path / "broken.png", tmp_path / "none.png", "--csv", "-")
    status, out, err = commands(*words)
    assert status == 2
    assert [row.split(",")[1] for row in out.splitlines()] == ["class", "red"]
    assert err.splitlines() == [
        f"cannot read {tmp_path}/broken.png as an image (no format that is known here): save it as JPEG or PNG, or "
        "remove it",
        f"cannot read {tmp_path}/none.png as an image (No such file or directory): check its name and permissions",
        "metalstm: 2 of 3 images could not be read; the others are predicted",
    ]


def test_predict_reads_paths_from_stdin(made, folder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "metalstm", "predict", made, "-", "--csv", "-"],
        input="new/red.jpg\nnew/blue [b].jpg\n",
        cwd=folder,
        env=os.environ | {"METALSTM_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert [row.split(",")[:2] for row in done.stdout.splitlines()[1:]] == [
        ["new/red.jpg", "red"], ["new/blue [b].jpg", "blue [b]"]
    ]  # fmt: skip


def test_reject_says_none_of_these(made, folder, commands, tmp_path):
    tensors, meta = checkpoint.load(made)
    shy, plain = tmp_path / "shy.safetensors", tmp_path / "plain.safetensors"
    checkpoint.save(shy, tensors, meta | {"calibration": meta["calibration"] | {"threshold": 1.01}})
    checkpoint.save(plain, tensors, meta | {"calibration": None})
    assert [row["class"] for row in json.loads(commands("predict", shy, "new", "--json", "-", cwd=folder)[1])] == [
        *COLOURS
    ]
    status, out, _ = commands("predict", shy, "new", "--reject", "--json", "-", cwd=folder)
    assert (status, [row["class"] for row in json.loads(out)]) == (0, [None] * 3)
    _, out, _ = commands("predict", shy, "new", "--reject", "--csv", "-", cwd=folder)
    assert [row.split(",")[1] for row in out.splitlines()[1:]] == ["none of these"] * 3
    assert commands.refusal("predict", plain, "new", "--reject", cwd=folder) == (
        "meta-lstm-cifar-fs-5w5s has no calibration, so that what it made cannot tell 'none of these': adapt with a "
        f"shipped checkpoint: {', '.join(checkpoint.shipped())}"
    )


def test_what_predict_refuses(made, commands, tmp_path):
    def refusal(*words):
        return commands.refusal("predict", *words, cwd=tmp_path)

    assert refusal(made) == "no images: name files or folders, or - to read paths from stdin"
    assert (
        refusal(made, "x.png", "--csv", "-", "--json", "-") == "--csv - and --json -: only one of them can go to stdout"
    )
    assert refusal(made, tmp_path) == f"{tmp_path} has no images: name a folder with files such as .jpg or .png in it"
    assert refusal("nowhere.safetensors", "x.png") == "no checkpoint at nowhere.safetensors"


# export


def test_export_writes_beside_the_classifier(made, commands):
    for form, suffix in (("onnx", ".onnx"), ("torch", ".pt2")):
        status, out, err = commands("export", made, "--format", form)
        assert (status, out) == (0, ""), err
        path = made.with_suffix(suffix)
        assert err == f"{path}: takes uint8 (n, 32, 32, 3)\n"
        assert path.stat().st_size > 100_000
    assert commands.refusal("export", made, "--format", "onx") == (
        "unknown format 'onx', did you mean 'onnx'? allowed: onnx, torch"
    )
