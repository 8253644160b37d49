"""The entries of docs/extending.md, taken from the page, in a copy of the package: every command knows them.

Nothing but what the page says is done: one file each, and one line with its import.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import helpers
import metalstm
from helpers import assert_same_tensors, flags, metrics, start, stop_after

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text("utf-8")
ENTRIES = re.findall(r"^\| `src/metalstm/(.+)\.py` \| `(\w+)`: `(.+)` \|$", PAGE, re.MULTILINE)
CODE = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)

# What makes a run of each: all four entries between them, and a resumed one after a kill.
SMALL = flags(data="boards", learner="tiny", width=8, n_way=3, n_shot=2, n_query=3, val_every=4, val_episodes=2)
SMALL += flags(episodes=60, pretrain=0, threads=1)
RUNS = {
    "ridge": ["--method", "ridge", "--penalty", "0.5", *SMALL],
    "sign": ["--method", "meta-lstm", "--optimizer", "sign", "--step", "0.002", "--epochs", "5", *SMALL],
}


def extended(folder: Path) -> Path:
    """A copy of the package with the entries of the page, as a reader adds them."""
    package = folder / "metalstm"
    home = Path(metalstm.__file__).parent
    shutil.copytree(home, package, ignore=shutil.ignore_patterns("__pycache__", "checkpoints"))
    (package / "checkpoints").symlink_to(home / "checkpoints")
    for (file, table, line), code in zip(ENTRIES, CODE, strict=True):
        (package / f"{file}.py").write_text(code)
        init = package / Path(file).parent / "__init__.py"
        (name,) = re.findall(r": (\w+)", line)
        text, n = re.subn(rf"^({table}\b.*= \{{\n)", rf"\1    {line}\n", init.read_text(), flags=re.MULTILINE)
        assert n == 1, f"no table {table} in {init}"
        own_import = f"from metalstm.{file.replace('/', '.')} import {name}\n"
        init.write_text(re.sub(r"^(?=from metalstm\.)", own_import, text, count=1, flags=re.MULTILINE))
    return package


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Iterator[Path]:
    """The folder with the package; all processes that tests start import it."""
    folder = tmp_path_factory.mktemp("house")
    extended(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def commands(house, cache) -> Iterator[helpers.Commands]:
    commands = helpers.Commands(cache)
    yield commands
    commands.close()


@pytest.fixture(scope="module", params=RUNS)
def run(request, commands, tmp_path_factory) -> Path:
    """A run of an entry that nothing came in the way of."""
    out = tmp_path_factory.mktemp("runs") / request.param
    status, _, err = commands("train", *RUNS[request.param], "--out", out)
    assert status == 0, err
    return out


def ran(commands: helpers.Commands, *words: object, cwd: Path | None = None) -> str:
    """What a command writes to stdout that succeeds."""
    status, out, err = commands(*words, cwd=cwd)
    assert status == 0, err
    return out


@pytest.fixture(scope="module")
def photos(house, tmp_path_factory) -> Path:
    """Boards as image files, of three classes: four of each to adapt to, and two new ones."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.RandomState(7)
    for k in range(3):
        colors = random.randint(0, 256, (2, 3))
        for number in range(6):
            rows, columns = (np.arange(16) + random.randint(0, 8, (2, 1))) // 4
            pixels = colors[(rows[:, None] + columns[None]) % 2].astype(np.uint8)
            path = folder / ("photos" if number < 4 else "new") / f"board {k}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return folder


def test_the_page_adds_one_entry_to_each_table():
    assert [table for _, table, _ in ENTRIES] == ["METHODS", "LEARNERS", "OPTIMIZERS", "DATASETS"]
    assert len(CODE) == len(ENTRIES)
    assert len(PAGE.splitlines()) < 250
    assert max(map(len, PAGE.splitlines())) <= 100


def test_the_code_of_the_page_is_well_formed(tmp_path):
    for (file, _, _), code in zip(ENTRIES, CODE, strict=True):
        (tmp_path / f"{Path(file).name}.py").write_text(code)
    for words in (["check"], ["format", "--check", "--diff", "--line-length=100"]):
        command = [sys.executable, "-m", "ruff", *words, "--config", ROOT / "pyproject.toml", "--no-cache", tmp_path]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_help_shows_the_entries_and_their_settings(commands):
    help_of_ridge = ran(commands, "train", "--method", "ridge", "--learner", "tiny", "--help")
    for word in ("--penalty", "Weight of the squared norm of the solution.", "--width", "Ridge regression", "boards"):
        assert word in help_of_ridge
    help_of_sign = ran(commands, "train", "--optimizer", "sign", "--help")
    for word in ("--step", "Length of a step before meta-training.", "sign descent"):
        assert word in help_of_sign
    assert "boards" in ran(commands, "data", "list")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "ridge", "--penalty", "0"], "--penalty 0.0: must be above 0"),
        (["--method", "ridg"], "unknown method 'ridg', did you mean 'ridge'? allowed: "),
        (["--method", "ridge", "--learner", "tiny", "--width", "0"], "--width 0: must be at least 1"),
        (["--method", "ridge", "--optimizer", "sign"], "--optimizer sign: ridge has no inner loop"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_with_an_entry_is_one_line(commands, tmp_path, words, message):
    assert commands.refusal("train", *words, "--out", tmp_path / "run").startswith(message)


def test_killed_in_the_middle_a_run_resumes_to_the_same_bits(run, cache, tmp_path):
    words, out = ["train", *RUNS[run.name], "--out", tmp_path / "run"], tmp_path / "run"
    process = start(*words, cache=cache)
    stop_after(process, out / "metrics.jsonl", 4, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert len(metrics(out)) < len(metrics(run))
    done = helpers.metalstm(*words, "--resume", cache=cache)
    assert done.returncode == 0, done.stderr
    for file in ("last.safetensors", "best.safetensors"):
        assert_same_tensors(run / file, out / file)
    assert metrics(out) == metrics(run)


def test_a_run_of_another_setting_is_not_resumed(run, commands):
    name, value = {"ridge": ("penalty", 2.0), "sign": ("step", 0.5)}[run.name]
    said = commands.refusal("train", *RUNS[run.name], *flags(**{name: value}), "--out", run, "--resume")
    assert f"holds another run ({name} " in said


def test_evaluate(run, commands):
    result: dict[str, Any] = json.loads(ran(commands, "evaluate", run, *flags(n_query=3, episodes=20, json="-")))
    assert (result["method"], result["data"]) == ("ridge" if run.name == "ridge" else "meta-lstm", "boards")
    assert len(result["per_episode"]) == 20
    assert result["accuracy"] > 60, "colors alone tell boards apart"
    changed = {"ridge": {"penalty": 0.5, "width": 8}, "sign": {"step": 0.002, "width": 8}}[run.name]
    assert changed.items() <= result["changes"].items()


def test_a_classifier_is_made_asked_and_exported(run, commands, photos, tmp_path):
    made = tmp_path / "boards.safetensors"
    ran(commands, "adapt", photos / "photos", "--checkpoint", run, "--out", made)
    new = sorted((photos / "new").rglob("*.png"))
    answers = json.loads(ran(commands, "predict", made, *new, "--json", "-"))
    assert [Path(answer["image"]) for answer in answers] == new
    right = [answer["class"] == path.parent.name for answer, path in zip(answers, new, strict=True)]
    assert sum(right) >= 4, answers

    onnxruntime = pytest.importorskip("onnxruntime")
    ran(commands, "export", made, "--format", "onnx", "--out", tmp_path / "boards.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "boards.onnx")
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in new])
    (probabilities, *_) = session.run(None, {session.get_inputs()[0].name: pixels})
    classes = sorted({path.parent.name for path in new})
    assert [classes[k] for k in probabilities.argmax(1)] == [answer["class"] for answer in answers]


def test_a_line_of_the_table_is_trained_and_tested(commands, tmp_path):
    assert "ridge\tRidge regression\n" in ran(commands, "table", "--only", "list")
    out = ran(commands, "table", *flags(data="boards", only="ridge", quick=True, threads=1, out=tmp_path / "table"))
    assert "Ridge regression" in out
    rows = sorted(path.name for path in (tmp_path / "table" / "rows").iterdir())
    assert rows == ["ridge-5w1s.json", "ridge-5w5s.json"]
    for row in rows:
        result = json.loads((tmp_path / "table" / "rows" / row).read_text())
        assert (result["method"], result["data"], len(result["per_episode"])) == ("ridge", "boards", 50)
    assert (tmp_path / "table" / "report.html").exists()


@pytest.mark.parametrize(
    ("room", "name"), [("methods", "ridge"), ("learners", "tiny"), ("optimizers", "sign"), ("data", "boards")]
)
def test_the_contract_tests_take_the_entry_and_it_passes(house, cache, room, name):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{room}/test_contract.py"]
    there = os.environ | {"METALSTM_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "-k", name], cwd=ROOT, env=there, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    (passed,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) >= 3, done.stdout
