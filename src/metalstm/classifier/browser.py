"""Classifiers as one HTML page, which runs in a browser without a network."""

import base64
import gzip
import hashlib
from pathlib import Path

from metalstm import files
from metalstm.classifier import export, runtime
from metalstm.classifier.classifier import Classifier
from metalstm.errors import UserError
from metalstm.templates import environment

FOLDER = Path(__file__).with_name("page")
MOST = 150_000_000  # bytes of the network: a browser has them in memory several times


def to_html(classifier: Classifier, path: Path, archive: Path | None = None) -> None:
    """Write the page; the name of the file is its heading.

    It contains the ONNX file, as `export.to_onnx` checks it, and onnxruntime-web. Its Content-Security-Policy forbids
    the browser to connect to anything, and to run any other script.

    Args:
        classifier: What the page runs.
        path: The file.
        archive: onnxruntime-web, as `runtime.load` takes it.

    Raises:
        UserError: As `export.to_onnx` and `runtime.load`; or the network is too large for a page.
    """
    model = export.onnx_model(classifier)
    if len(model) > MOST:
        raise UserError(
            f"the page would have a network of {len(model):,} bytes, more than {MOST:,}: pass --format onnx, or take a "
            "smaller backbone"
        )
    import onnxruntime  # after `onnx_model`, which says how to install it

    about, licenses = export.metadata(classifier), Path(onnxruntime.__file__).parent
    script, wasm = runtime.load(archive)
    texts = {name: (FOLDER / name).read_text("utf-8") for name in ("page.css", "pixels.js", "page.js")}
    page = environment(FOLDER).get_template("page.html")
    content = page.render(
        title=path.stem,
        about=about | {"classes": [str(name) for name in about["classes"]]},
        texts=texts,
        hashes={
            name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for name, text in texts.items()
        },
        packed={"model": _packed(model), "runtime": _packed(script), "wasm": _packed(wasm)},
        version=runtime.VERSION,
        licenses=[(licenses / name).read_text("utf-8") for name in ("LICENSE", "ThirdPartyNotices.txt")],
    )
    files.write(path, content.encode())


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()
