"""What the tests of the commands share: data, a trained run, a classifier, and a process that runs commands."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# `helpers` is imported within the fixtures: it notes the session's cache, which is not set yet when pytest reads this.


@pytest.fixture(scope="package")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import helpers

    return helpers.make_folder(tmp_path_factory.mktemp("images") / "patterns", noise=170)


@pytest.fixture(scope="package")
def commands(cache: Path) -> Iterator[Any]:
    """Runs many commands in one process."""
    import helpers

    commands = helpers.Commands(cache)
    yield commands
    commands.close()


@pytest.fixture(scope="package")
def trained(folder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run folder that a real process has left behind, and what the process said."""
    from cli.examples import TRAIN
    from helpers import metalstm

    out = tmp_path_factory.mktemp("runs") / "run [1]"  # brackets are markup to some
    return out, metalstm(*TRAIN, "--recipe", "paper", "--data", f"folder:{folder}", "--out", out, cache=cache)


@pytest.fixture
def run(trained: tuple[Path, Any]) -> Path:
    """The run folder."""
    return trained[0]


@pytest.fixture(scope="package")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos`, with 3, 3 and 2 images, and `new`, with one of each class."""
    from cli.examples import COLORS, paint

    folder = tmp_path_factory.mktemp("colors")
    for number, (name, color) in enumerate(COLORS.items()):
        for k in range(3 if number < 2 else 2):
            paint(folder / "photos" / name / f"{k}.png", color, 10 * number + k)
        paint(folder / "new" / f"{name}.jpg", color, 100 + number)
    return folder


@pytest.fixture(scope="package")
def adapted(colors: Path, commands: Any) -> tuple[int, str, str]:
    """What `metalstm adapt photos` says."""
    return commands("adapt", "photos", cwd=colors)


@pytest.fixture
def made(colors: Path, adapted: tuple[int, str, str]) -> Path:
    """The classifier of `photos`."""
    assert adapted[0] == 0, adapted[2]
    return colors / "photos.safetensors"
