import re
import shlex
from pathlib import Path

import pytest

from metalstm import cli

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_in_the_readme_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 10
    exec(compile(code, "README.md", "exec"), {})
    accuracy = re.search(r"50 episodes: ([\d.]+) \+- [\d.]+ %", capsys.readouterr().out)
    assert accuracy is not None
    assert float(accuracy[1]) > 60  # chance is 20


@pytest.mark.parametrize("command", re.findall(r"^\$ metalstm ([^#\n]+)", README, re.MULTILINE))
def test_the_commands_in_the_readme_can_be_parsed(command):
    cli._parse(shlex.split(command))


def test_what_the_readme_points_to_is_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
