"""What the commands that test checkpoints share: the data of a checkpoint, and notes that meta-test was opened."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from metalstm import checkpoint, data
from metalstm.console import console
from metalstm.data.folder import PREFIX
from metalstm.errors import UserError
from metalstm.methods import RunConfig
from metalstm.training import record


def load_data(config: RunConfig, name: str | None, root: Path | None, skip_bad: bool = False) -> data.MetaSets:
    """The data to test a checkpoint on: what it was trained on, unless a name is given.

    Raises:
        UserError: It cannot be read.
    """
    name = name or config.data
    # Images are read as in training, whatever those of a folder look like.
    traits = config.traits if name == config.data or name.startswith(PREFIX) else None
    return data.load(name, root, config.image_shape[1], traits, skip_bad)


def to_note(split: str, checkpoints: Iterable[str]) -> dict[str, Path]:
    """The run folders of some checkpoints, if they are to note that meta-test is opened.

    Raises:
        UserError: There is no such checkpoint, or the `run.json` of its folder is damaged.
    """
    folders = {name: checkpoint.find(name).parent for name in checkpoints}
    if split != "meta-test":
        return {}
    runs = {name: folder for name, folder in folders.items() if (folder / "config.json").exists()}
    for folder in runs.values():
        record.read(folder)  # complains now, not after all episodes
    return runs


def note(folder: Path, result: dict[str, Any], **more: Any) -> None:
    """Note in a run folder that meta-test was opened; arguments as for `record.opening`."""
    try:
        record.opening(folder, result, **more)
    except UserError as error:  # the figure is worth more than its note
        console.print(f"{error}; this opening of meta-test is not noted", soft_wrap=True)
