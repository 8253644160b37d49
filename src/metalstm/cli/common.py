"""What all commands have: an interface, the options for seed and machine, and the device that they start on."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro
from msgspec import Meta

from metalstm.cli import process
from metalstm.settings import Seed


class Command(ABC):
    """A command with its options; a subclass is a frozen dataclass whose field docstrings are the help."""

    many_processes: ClassVar[bool] = False
    """Whether torchrun may start it."""
    resumes: ClassVar[bool] = False
    """Whether the same command, given again, resumes what was interrupted."""

    @abstractmethod
    def run(self) -> None:
        """Do it.

        Raises:
            UserError: The user can mend what is wrong.
        """


@dataclass(frozen=True)
class Common:
    """Options of every command."""

    seed: Seed = 0
    """Seed of episodes and weights. The same seed gives every method the same episodes, on every machine."""
    device: str = "auto"
    """`cpu`, `cuda` or `cuda:1`. `auto` takes a GPU if there is one."""
    threads: Annotated[int, Meta(ge=0)] = 0
    """CPU threads. 0 leaves the choice to torch."""
    data_root: Path | None = None
    """Folder of the data sets; METALSTM_DATA by default, or the user cache directory."""
    debug: bool = False
    """Show the traceback of an error."""

    def start(self) -> str:
        """Set the threads and join the processes that torchrun started.

        Returns:
            The device.

        Raises:
            UserError: The device cannot be used.
        """
        import torch

        from metalstm import devices, distributed, kernels

        kernels.keep_memory()
        if self.threads:
            torch.set_num_threads(self.threads)
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if process.rank() is not None:
            device = distributed.join(device)
        with distributed.all_fail_together():
            devices.usable(device)
            if device.startswith("cuda:"):
                torch.cuda.set_device(device)
        return device


Options = tyro.conf.OmitArgPrefixes[Common]
