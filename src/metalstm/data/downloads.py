"""The files of a data set: where they come from, and whether they are as released."""

import hashlib
import io
import time
from dataclasses import dataclass
from pathlib import Path

from metalstm import files
from metalstm.console import progress
from metalstm.data.reading import checksum, reason
from metalstm.errors import UserError

MAX_BYTES = 2**30  # of a download; the largest, CIFAR-100, has 169 million
SLOWEST = 10_000  # bytes a second, on average
PATIENCE = 60.0  # seconds that a server may need before that counts
TIMEOUT = 30.0  # seconds without any byte


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

        Until then it is in memory.

        Raises:
            UserError: The download fails, is larger than `MAX_BYTES` or slower than `SLOWEST`; the checksum is wrong;
                or the file cannot be written.
        """
        import urllib3

        path = root / self.path
        files.remove_temporary(path.parent, path.name)
        try:
            content = receive(self.url, path.name)
            md5 = hashlib.md5(content).hexdigest()
            if md5 != self.md5:
                raise ValueError(f"its md5 is {md5}, not {self.md5}")
        # Errors of requests are OSErrors.
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
            raise UserError(
                f"cannot download {self.url} to {path} ({reason(error)}): try again, or put the file there yourself"
            ) from error
        files.write(path, content)
        return path


def receive(url: str, name: str) -> bytes:
    """What a web server sends, with a progress bar.

    Args:
        url: The address.
        name: What the bar calls it.

    Raises:
        OSError: The server cannot be reached or refuses.
        ValueError: It sends more than `MAX_BYTES`, or fewer than `SLOWEST` a second.
        urllib3.exceptions.HTTPError: The connection breaks.
    """
    import requests

    content, started = io.BytesIO(), time.monotonic()
    with requests.get(url, headers={"Accept-Encoding": "identity"}, stream=True, timeout=TIMEOUT) as response:
        response.raise_for_status()
        size = int(response.headers.get("Content-Length", 0))
        with progress() as bar:
            task = bar.add_task(f"{name} (kB)", total=size // 1024 if size else None)
            # Unlike `read`, `read1` returns what is there, so that a slow server is noticed.
            while chunk := response.raw.read1(2**16):
                content.write(chunk)
                bar.update(task, completed=content.tell() // 1024)
                if max(size, content.tell()) > MAX_BYTES:
                    raise ValueError(f"the server sends more than {MAX_BYTES:,} bytes")
                if content.tell() < SLOWEST * (time.monotonic() - started - PATIENCE):
                    raise ValueError(f"the server sends fewer than {SLOWEST:,} bytes a second")
    return content.getvalue()
