"""Help, errors and exit status of all commands."""

import os
import re
import subprocess
import sys

import pytest

import helpers
from helpers import flags, metalstm
from metalstm import cli
from metalstm.errors import UserError

EVERYWHERE = ("--seed", "--device", "--threads", "--data-root", "--debug")
SLOW = {"torch", "tyro", "rich", "numpy", "matplotlib", "PIL", "gradio", "onnx", "sklearn", "requests"}


def imported_by(*words: str) -> set[str]:
    """The packages that a command has imported when it ends."""
    program = f"""if True:
        import sys
        from metalstm.cli import main
        try:
            main({list(words)!r})
        except SystemExit as end:
            assert not end.code, end.code
        sys.stderr.write(" ".join(name for name in sys.modules if "." not in name))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_help_imports_nothing_that_is_slow():
    assert not SLOW & imported_by("--help")


def test_help_of_train_imports_torch_and_nothing_else_that_is_slow():
    assert SLOW & imported_by("train", "--help") <= {"torch", "tyro", "rich", "numpy"}


@pytest.mark.parametrize("command", sorted({*cli.COMMANDS} - {"train", "evaluate"}))
def test_help_of_a_command_without_settings_needs_no_torch(command):
    assert SLOW & imported_by(command, "--help") <= {"tyro", "rich", "numpy"}


def test_help_shows_every_command(cache):
    done = metalstm("--help", cache=cache)
    assert (done.returncode, done.stderr) == (0, "")
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name} +[A-Z].*\.$", done.stdout, re.MULTILINE), name


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("demo", ["--out", "--episodes"]),
        ("data", ["list", "fetch", "check"]),
        ("train", ["--out", "--data", "--kind", "--method", "--recipe", "--n-way", "--n-shot", "--resume"]),
        ("evaluate", ["--data", "--split", "--n-way", "--n-shot", "--episodes", "--json", "--query-norm"]),
        ("table", ["--data", "--kind", "--only", "--quick", "--minutes", "--seeds"]),
        ("adapt", ["--checkpoint", "--out"]),
        ("predict", ["--reject", "--csv", "--json"]),
        ("export", ["--format", "--out"]),
        ("app", ["--checkpoint", "--port", "--browser"]),
    ],
)
def test_every_command_has_its_help_with_an_example(command, words, commands):
    status, out, err = commands(command, "--help")
    assert (status, err) == (0, "")
    assert f"\nusage: metalstm {command} [-h]" in out
    assert f"\nExample: metalstm {command}" in out
    for word in (*words, *EVERYWHERE):
        assert word in out, word


def test_the_examples_of_the_help_can_be_parsed(monkeypatch):
    for name in cli.COMMANDS:
        (example,) = re.findall(r"^Example: metalstm (.*)$", cli._docstring(name), re.MULTILINE)
        assert example.split()[0] == name
        cli.parse(example.split())


def test_a_mistake_is_one_line_and_a_traceback_only_when_asked_for(cache, tmp_path):
    words = ["train", *flags(recipe="papers", out=tmp_path / "run")]
    done = metalstm(*words, cache=cache)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "metalstm: unknown recipe 'papers', did you mean 'paper'? allowed: best, paper\n"
    done = metalstm(*words, "--debug", cache=cache)
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "papers" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "which command? one of demo, data, "),
        (["trian"], "unknown command 'trian', did you mean 'train'? allowed: "),
        (["--seed"], "unknown command '--seed': allowed: "),
        (
            ["train", "--epsiodes", "1"],
            "metalstm train has no option --epsiodes, did you mean --episodes? metalstm train --help shows ",
        ),
        (["demo", "--xyz=3"], "metalstm demo has no option --xyz: metalstm demo --help shows what it takes"),
        (["demo", "4"], "metalstm demo does not take '4': metalstm demo --help shows what it takes"),
        (["demo", "--threads", "-1"], "--threads -1: must be at least 0"),
        (["demo", "--seed", "-1"], "--seed -1: must be at least 0 and below "),
        (["demo", "--seed", str(2**70)], f"--seed {2**70}: must be at least 0 and below "),
        (
            ["demo", "--seed", "-1", "--episodes", "0"],
            "--episodes 0: must be at least 1 and at most 1e+09; --seed -1: must be at least 0 and below ",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_words_that_are_not_understood_are_refused_in_one_line(words, said, commands):
    assert commands.refusal(*words).startswith(said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["train", "--out", "x", "--n-shot", "many"],
            "Error parsing --n-shot: ",
        ),
        (
            ["train", "--out", "x", "--order", "3"],
            "invalid choice '3' for argument '--order'. Expected one of ('1', '2')",
        ),
        (["train", "--out", "x", "--n-shot"], "Missing value for argument '--n-shot'. Expected 1 values: "),
        (["evaluate"], "Missing from metalstm evaluate: CHECKPOINT "),
        (
            ["evaluate", "x", "--query-norm", "none"],
            "invalid choice 'none' for argument '--query-norm'. Expected one of",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_value_that_is_missing_or_of_a_wrong_type_is_refused_in_one_line(words, said, tmp_path, commands):
    refusal = commands.refusal(*words, cwd=tmp_path)
    assert refusal.startswith(said)
    assert refusal.endswith(f": metalstm {words[0]} --help shows what it takes")
    assert os.listdir(tmp_path) == []


def test_parse_gives_the_command_and_raises_what_is_wrong():
    command = cli.parse(["demo", "--episodes", "7", "--seed", "3"])
    assert (vars(command)["episodes"], vars(command)["common"].seed) == (7, 3)
    with pytest.raises(UserError, match="unknown command 'dem', did you mean 'demo'"):
        cli.parse(["dem"])


def test_commands_that_resume_by_themselves_are_told_to_be_given_again(tmp_path):
    first = "from metalstm import demo\nfrom metalstm.errors import Interrupted\n"
    first += "def stop(*_):\n    raise Interrupted('saved after episode 3')\ndemo.demo = stop"
    commands = helpers.Commands(tmp_path, first)
    status, out, err = commands("demo")
    commands.close()
    assert (status, out, err) == (130, "", "metalstm: saved after episode 3; give the same command again\n")
