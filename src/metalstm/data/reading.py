"""Reading files whose content nobody vouches for: every error names the file and says what to do."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from metalstm.errors import UserError, short


def reason(error: Exception) -> str:
    """The message of an error in one short line; some hold what they found in the file."""
    return short(str(error)) or type(error).__name__


@contextlib.contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Turn every error into one that names the file.

    Args:
        path: The file that is read.
        remedy: What the user can do if it is damaged.

    Raises:
        UserError: The content is not what was expected.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damaged archives, pickles, parquet files and images raise nearly anything
        raise UserError(f"{path} is damaged ({reason(error)}): {remedy}") from error


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """The checksum of a file (hex).

    Raises:
        UserError: The file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path} ({reason(error)}): check its permissions") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without white space around them; empty lines are left out.

    Raises:
        UserError: The file cannot be read as text.
    """
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({reason(error)}): save it as UTF-8 text") from error
