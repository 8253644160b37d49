import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from metalstm import cli

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_in_the_readme_runs(capsys, tmp_path, monkeypatch):
    """All of it, one block after the other."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        assert len([line for line in code.splitlines() if line]) <= 10
        exec(compile(code, "README.md", "exec"), names)
    said = capsys.readouterr().out
    for pattern in (r"50 episodes: ([\d.]+) \+- [\d.]+ %", r"accuracy: (0\.\d+|1\.0)"):
        found = re.search(pattern, said)
        assert found is not None
        assert float(found[1]) > (60 if "%" in pattern else 0.6)  # chance is 20 %
    assert (tmp_path / "characters.safetensors").exists()


@pytest.mark.parametrize("command", re.findall(r"^\$ metalstm ([^#\n]+)", README, re.MULTILINE))
def test_the_commands_in_the_readme_can_be_parsed(command, tmp_path, monkeypatch):
    for number in range(15):  # `train --data folder:DIR` looks at the images
        (tmp_path / "DIR" / str(number)).mkdir(parents=True)
        Image.new("RGB", (32, 32), (200, 50, 10 * number)).save(tmp_path / "DIR" / str(number) / "0.png")
    monkeypatch.chdir(tmp_path)
    cli.parse(shlex.split(command))


def test_what_the_readme_points_to_is_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
