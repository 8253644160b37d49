"""The files of a data set: where they come from, and whether they are as released."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalstm.console import progress
from metalstm.data.reading import checksum, reason
from metalstm.errors import UserError, is_full


@dataclass(frozen=True)
class File:
    """A file that a data set is read from.

    Attributes:
        path: The path below the data root.
        url: Where it is downloaded from; empty if it has no download.
        md5: Checksum of the original release.
        rebuilt: sha256 of an archive that was built anew from the same images.
    """

    path: str
    url: str = ""
    md5: str = ""
    rebuilt: str = ""

    def state(self, root: Path) -> str:
        """Compare the checksum: "original", "rebuilt", "unknown checksum" or "missing"."""
        path = root / self.path
        if not path.is_file():
            return "missing"
        if self.md5 and checksum(path, "md5") == self.md5:
            return "original"
        return "rebuilt" if self.rebuilt and checksum(path) == self.rebuilt else "unknown checksum"

    def download(self, root: Path) -> Path:
        """Download the file and check its md5. It appears under its name only if it is complete and correct.

        Raises:
            UserError: The download fails, the checksum is wrong, or the file cannot be written.
        """
        import pooch

        pooch.get_logger().setLevel("WARNING")
        path = root / self.path
        try:
            with progress() as bar:
                shown: Any = DownloadBar(bar, f"{path.name} (kB)")  # pooch's type hints only know bool
                downloader: Any = pooch.HTTPDownloader(progressbar=shown, chunk_size=1 << 16)
                pooch.retrieve(self.url, f"md5:{self.md5}", path.name, path.parent, downloader=downloader)
        except (OSError, ValueError) as error:  # errors of requests are OSErrors; a wrong checksum is a ValueError
            if is_full(error):
                raise UserError(
                    f"no space left in {path.parent} for {path.name}: free some, or pass --data-root DIR"
                ) from error
            raise UserError(
                f"cannot download {self.url} to {path} ({reason(error)}): try again, or put the file there yourself"
            ) from error
        return path


class DownloadBar:
    """A progress bar that pooch can drive: attribute `total` and these methods, all in bytes. rich shows it."""

    def __init__(self, bar: Any, description: str):
        self.total = 0
        self._bar, self._task = bar, bar.add_task(description, total=None)

    def update(self, size: int) -> None:
        """Add `size` bytes."""
        self._bar.update(self._task, advance=size // 1024, total=self.total // 1024)

    def reset(self) -> None:
        """Start again from zero."""
        self._bar.reset(self._task)

    def close(self) -> None:
        """Stop the clock."""
        self._bar.stop_task(self._task)
