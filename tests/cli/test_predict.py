import csv
import io
import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from cli.examples import COLORS
from metalstm import checkpoint
from metalstm.cli import predict
from metalstm.errors import UserError


def test_predict_shows_a_table(made, colors, commands):
    status, out, err = commands("predict", made, "new", cwd=colors)
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if ".jpg" in line]
    assert [row[:-2] for row in rows] == [
        ["new/blue", "[b].jpg", "blue", "[b]"],
        ["new/green.jpg", "green"],
        ["new/red.jpg", "red"],
    ]


def test_predict_gives_csv_and_json(made, colors, commands):
    status, out, err = commands("predict", made, "new/red.jpg", "new/green.jpg", "--json", "-", cwd=colors)
    assert (status, err) == (0, "")
    answers = json.loads(out)
    assert [(answer["image"], answer["class"]) for answer in answers] == [
        ("new/red.jpg", "red"), ("new/green.jpg", "green")
    ]  # fmt: skip
    for answer in answers:
        assert list(answer["probabilities"]) == list(COLORS)
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert answer["probability"] == max(answer["probabilities"].values())
    words = ("new/red.jpg", "new/green.jpg", "--csv", "-", "--json", "out.json")
    status, out, err = commands("predict", made, *words, cwd=colors)
    assert (status, err) == (0, "")
    assert json.loads((colors / "out.json").read_text()) == answers
    rows = list(csv.reader(io.StringIO(out)))
    assert rows[0] == ["image", "class", "probability", "p(blue [b])", "p(green)", "p(red)"]
    assert rows[1][:2] == ["new/red.jpg", "red"]
    assert float(rows[1][2]) == pytest.approx(answers[0]["probability"])
    assert [float(cell) for cell in rows[1][3:]] == list(answers[0]["probabilities"].values())


def test_predict_reports_broken_images_and_predicts_the_others(made, colors, commands, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    words = ("predict", made, colors / "new" / "red.jpg", tmp_path / "broken.png", tmp_path / "none.png", "--csv", "-")
    status, out, err = commands(*words)
    assert status == 2
    assert [row.split(",")[1] for row in out.splitlines()] == ["class", "red"]
    assert err.splitlines() == [
        f"cannot read {tmp_path}/broken.png as an image (no format that is known here): save it as JPEG or PNG, or "
        "remove it",
        f"cannot read {tmp_path}/none.png as an image (No such file or directory): check its name and permissions",
        "metalstm: 2 of 3 images could not be read; the others are predicted",
    ]


def test_predict_skips_broken_images_on_request(made, colors, commands, tmp_path):
    status, out, err = commands("predict", made, colors / "new", tmp_path / "none.png", "--csv", "-", "--skip-bad")
    assert (status, out.count("\n")) == (0, 4)
    assert err.splitlines()[1:] == ["1 of 4 images could not be read; the others are predicted"]


def test_predict_reads_paths_from_stdin(made, colors, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "metalstm", "predict", made, "-", "--csv", "-"],
        input="new/red.jpg\nnew/blue [b].jpg\n",
        cwd=colors,
        env=os.environ | {"METALSTM_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert [row.split(",")[:2] for row in done.stdout.splitlines()[1:]] == [
        ["new/red.jpg", "red"], ["new/blue [b].jpg", "blue [b]"]
    ]  # fmt: skip


def test_predict_looks_at_several_crops(made, colors, commands, tmp_path):
    """The middle of the photo is blue, its ends are red."""
    ends = [Image.open(colors / "new" / f"{name}.jpg").resize((40, 40)) for name in ("red", "blue [b]", "red")]
    wide = Image.new("RGB", (200, 40), "white")
    for end, left in zip(ends, (0, 80, 160), strict=True):
        wide.paste(end, (left, 0))
    wide.save(tmp_path / "wide.png")
    found = []
    for words in ([], ["--crops", "3"]):
        status, out, err = commands("predict", made, tmp_path / "wide.png", *words, "--json", "-")
        assert (status, err) == (0, "")
        found += json.loads(out)
    assert [each["class"] for each in found] == ["blue [b]", "red"]
    assert "--crops 26" in commands.refusal("predict", made, tmp_path / "wide.png", "--crops", "26")
    commands("adapt", colors / "photos", "--framing", "squeeze", "--out", tmp_path / "x.safetensors")
    assert commands.refusal("predict", tmp_path / "x.safetensors", tmp_path / "wide.png", "--crops", "3") == (
        "--crops 3: this classifier looks at whole images (framing squeeze): leave it out, or adapt anew with "
        "--framing crop"
    )


HOSTILE = ["=1+1", "\x1b[31mred", "-7"]  # a formula, a command for the terminal, and a number


@pytest.fixture
def hostile(made, colors, tmp_path):
    """A classifier with such classes and an image with such a name."""
    tensors, meta = checkpoint.load(made)
    checkpoint.save(tmp_path / "x.safetensors", tensors, meta | {"classes": HOSTILE})
    for name, color in zip(("@blue.jpg", "\x1b]0;green\x07.jpg", "red.jpg"), COLORS, strict=True):
        (tmp_path / name).write_bytes((colors / "new" / f"{color}.jpg").read_bytes())
    return tmp_path


def test_names_are_shown_and_not_obeyed(hostile, commands):
    status, out, err = commands("predict", "x.safetensors", ".", cwd=hostile)
    assert (status, err) == (0, "")
    assert "\x1b" not in out
    assert r"\x1b]0;green\x07.jpg" in out
    assert r"\x1b[31mred" in out
    status, _, err = commands("predict", "x.safetensors", "\x1b[2J.jpg", cwd=hostile)
    assert status == 2
    assert err.startswith(r"cannot read \x1b[2J.jpg as an image")
    assert commands.refusal("predict", "\x1b[2J", "red.jpg", cwd=hostile) == r"no checkpoint at \x1b[2J"


def test_csv_has_no_formulas_and_a_terminal_gets_no_commands(hostile, commands):
    _, out, _ = commands("predict", "x.safetensors", ".", "--csv", "-", cwd=hostile)
    rows = list(csv.reader(io.StringIO(out)))
    assert [row[:2] for row in rows[1:]] == [
        ["\x1b]0;green\x07.jpg", "\x1b[31mred"], ["'@blue.jpg", "'=1+1"], ["red.jpg", "-7"]
    ]  # fmt: skip
    pty = pytest.importorskip("pty", reason="this system has no terminals of its own")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "metalstm", "predict", "x.safetensors", ".", "--csv", "-"]
    environment = os.environ | {"METALSTM_CACHE": str(hostile / "cache")}
    subprocess.run(command, cwd=hostile, env=environment, stdout=theirs, timeout=300, check=True)
    shown = os.read(ours, 10_000)
    assert b"\x1b" not in shown
    assert rb"\x1b]0;green\x07.jpg,\x1b[31mred" in shown


def test_no_name_begins_a_line_of_its_own():
    assert predict._row(("a\r=1+1\nb", "c,d", 0.5)) == '"a\r=1+1\nb","c,d",0.5\n'


def test_names_need_not_be_text(hostile, tmp_path):
    name = os.fsdecode(b"\xff.jpg")
    try:
        (hostile / "red.jpg").rename(hostile / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    done = subprocess.run(
        [sys.executable, "-m", "metalstm", "predict", "x.safetensors", "-", "--csv", "-"],
        input=b"\xff.jpg\n",
        cwd=hostile,
        env=os.environ | {"METALSTM_CACHE": str(tmp_path), "PYTHONUTF8": "1"},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith(b"\xff.jpg,-7,")


def test_stdin_ends(monkeypatch):
    monkeypatch.setattr(predict, "MAX_PATHS", 3)
    assert list(predict.lines(io.StringIO("a\nb\nc"))) == ["a\n", "b\n", "c"]
    with pytest.raises(UserError) as error:
        list(predict.lines(io.StringIO("a\n" * 4)))
    assert str(error.value) == "stdin has more than 3 lines: predict fewer images at a time"
    if os.path.exists("/dev/zero"):
        with open("/dev/zero") as zeros, pytest.raises(UserError) as error:
            list(predict.lines(zeros))
        assert str(error.value) == "a line on stdin has more than 65,536 characters: write one path on each line"


def test_reject_says_none_of_these(made, colors, commands, tmp_path):
    tensors, meta = checkpoint.load(made)
    shy, plain, old = (tmp_path / f"{name}.safetensors" for name in ("shy", "plain", "old"))
    checkpoint.save(shy, tensors, meta | {"calibration": meta["calibration"] | {"threshold": 1.01}})
    unscored = {name: tensor for name, tensor in tensors.items() if not name.startswith("known.")}
    checkpoint.save(plain, unscored, meta | {"calibration": None})
    checkpoint.save(old, unscored, meta)
    assert [row["class"] for row in json.loads(commands("predict", shy, "new", "--json", "-", cwd=colors)[1])] == [
        *COLORS
    ]
    status, out, _ = commands("predict", shy, "new", "--reject", "--json", "-", cwd=colors)
    assert (status, [row["class"] for row in json.loads(out)]) == (0, [None] * 3)
    _, out, _ = commands("predict", shy, "new", "--reject", "--csv", "-", cwd=colors)
    assert [row.split(",")[1] for row in out.splitlines()[1:]] == ["none of these"] * 3
    assert commands.refusal("predict", plain, "new", "--reject", cwd=colors) == (
        "meta-lstm-cifar-fs-resnet12-5w5s has no calibration, so its classifiers cannot answer 'none of these': "
        f"adapt with a shipped checkpoint: {', '.join(checkpoint.shipped())}"
    )
    assert commands("predict", old, "new", cwd=colors)[0] == 0
    assert commands.refusal("predict", old, "new", "--reject", cwd=colors) == (
        "this classifier, or its meta-learner, was made by an older version, whose calibration is no longer used: "
        "adapt anew with a shipped checkpoint to get 'none of these'"
    )


def test_what_predict_refuses(made, commands, tmp_path):
    def refusal(*words):
        return commands.refusal("predict", *words, cwd=tmp_path)

    assert refusal(made) == "no images: name files or folders, or - to read paths from stdin"
    assert (
        refusal(made, "x.png", "--csv", "-", "--json", "-") == "--csv - and --json -: only one of them can go to stdout"
    )
    assert refusal(made, tmp_path) == f"{tmp_path} has no images: name a folder with files such as .jpg or .png in it"
    assert refusal(made, "") == (
        f"metalstm predict has an empty word after {made}: a name or value is missing, or a variable is not set"
    )
    assert refusal("nowhere.safetensors", "x.png") == "no checkpoint at nowhere.safetensors"
