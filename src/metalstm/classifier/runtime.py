"""onnxruntime-web, which runs ONNX files in browsers: one version of its npm package, checked by its hash."""

import hashlib
import io
import tarfile
from pathlib import Path
from typing import NamedTuple

from metalstm import data, files
from metalstm.data.downloads import receive
from metalstm.data.reading import reason
from metalstm.errors import UserError

VERSION = "1.30.0"
NAME = f"onnxruntime-web-{VERSION}.tgz"  # as `npm pack` calls it
URL = f"https://registry.npmjs.org/onnxruntime-web/-/{NAME}"
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"


class Runtime(NamedTuple):
    """What a page needs of the package."""

    script: bytes  # an ES module
    wasm: bytes


def load(archive: Path | None = None) -> Runtime:
    """Read the package.

    Args:
        archive: Its file, as `npm pack` writes it. By default it is in the cache, and downloaded if it is not there.

    Raises:
        UserError: It cannot be downloaded or read, or its hash is wrong.
    """
    path = archive or data.cache_root() / NAME
    if archive is None and not path.is_file():
        download(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): {_remedy()}") from error
    if wrong := _wrong(content):
        raise UserError(f"{path} is not {NAME} as released ({wrong}): {_remedy()}")
    with tarfile.open(fileobj=io.BytesIO(content)) as package:
        names = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
        members = [package.extractfile(f"package/dist/{name}") for name in names]
        return Runtime(*(member.read() for member in members if member))


def download(path: Path) -> None:
    """Download the package. The file appears only if it is complete and correct.

    Raises:
        UserError: It cannot be downloaded, or its hash is wrong.
    """
    import urllib3

    try:
        content = receive(URL, NAME)
        if wrong := _wrong(content):
            raise ValueError(wrong)
    except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
        raise UserError(f"cannot download {URL} ({reason(error)}): {_remedy()}") from error
    files.write(path, content)


def _wrong(content: bytes) -> str:
    """What is wrong with the content of the archive; empty if it is as released."""
    sha256 = hashlib.sha256(content).hexdigest()
    return "" if sha256 == SHA256 else f"its sha256 is {sha256}, not {SHA256}"


def _remedy() -> str:
    return f"run npm pack onnxruntime-web@{VERSION} where there is a network, and pass --runtime {NAME}"
