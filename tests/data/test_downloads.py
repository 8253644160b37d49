import contextlib
import functools
import hashlib
import http.server
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metalstm import console
from metalstm.data import DATASETS, check, downloads, fetch, load
from metalstm.data.downloads import File
from metalstm.errors import UserError

from .makers import make_omniglot


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server with an Omniglot of its own, whose checksums are made known."""
    root = make_omniglot(tmp_path / "served")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):  # quiet
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=root / "omniglot"))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    files = []
    for file in DATASETS["omniglot"].files:
        md5 = hashlib.md5((root / file.path).read_bytes()).hexdigest()
        files.append(File(file.path, url=f"http://127.0.0.1:{web.server_port}/{Path(file.path).name}", md5=md5))
    monkeypatch.setattr(DATASETS["omniglot"], "files", tuple(files))
    yield root
    web.shutdown()
    web.server_close()


def test_fetch(tmp_path, server, monkeypatch):
    root = tmp_path / "root"
    assert [state for _, state in check("omniglot", root)] == ["missing", "missing"]
    paths = fetch("omniglot", root)
    assert paths == [root / "omniglot" / "images_background.zip", root / "omniglot" / "images_evaluation.zip"]
    assert check("omniglot", root) == [(path, "original") for path in paths]
    assert load("omniglot", root).digest == load("omniglot", server).digest
    # Files that are there are not fetched again; a damaged one is.
    paths[0].write_bytes(b"damaged")
    background, evaluation = DATASETS["omniglot"].files
    monkeypatch.setattr(DATASETS["omniglot"], "files", (background, replace(evaluation, url="http://x")))
    assert fetch("omniglot", root) == paths
    assert [state for _, state in check("omniglot", root)] == ["original", "original"]


def test_fetch_shows_progress(tmp_path, server, monkeypatch):
    seen: dict[str, Any] = {}

    @contextlib.contextmanager
    def progress():
        with console.progress() as bar:
            yield bar
            for task in bar.tasks:
                seen[task.description] = (task.completed, task.total)

    monkeypatch.setattr(downloads, "progress", progress)
    for path in fetch("omniglot", tmp_path / "root"):
        size = path.stat().st_size // 1024
        assert seen[f"{path.name} (kB)"] == (size, size)


def test_fetch_with_a_wrong_checksum_leaves_no_file(tmp_path, server):
    (server / "omniglot" / "images_background.zip").write_bytes(b"something else")
    with pytest.raises(UserError) as error:
        fetch("omniglot", tmp_path / "root")
    path = tmp_path / "root" / "omniglot" / "images_background.zip"
    assert str(error.value).startswith(f"cannot download {DATASETS['omniglot'].files[0].url} to {path} (its md5 is ")
    assert str(error.value).endswith("): try again, or put the file there yourself")
    assert "\n" not in str(error.value)
    assert not path.parent.exists()


@pytest.fixture
def endless():
    """The address of a server whose answers never end, and a switch: whether they come a byte at a time."""
    slow = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):  # the client has gone
                while True:
                    self.wfile.write(b"x" if slow.wait(0) else bytes(2**16))
                    if slow.wait(0):
                        time.sleep(0.01)

        def log_message(self, format, *args):  # quiet
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}/x", slow
    web.shutdown()
    web.server_close()


@pytest.mark.parametrize(
    ("is_slow", "message"),
    [
        (False, "the server sends more than 1,000,000 bytes"),
        (True, "the server sends fewer than 10,000 bytes a second"),
    ],
)
def test_downloads_end(tmp_path, monkeypatch, endless, is_slow, message):
    url, slow = endless
    if is_slow:
        slow.set()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(downloads, "MAX_BYTES", 1_000_000)
    monkeypatch.setattr(downloads, "PATIENCE", 0.1)
    with pytest.raises(UserError) as error:
        File("set/x.zip", url, "0" * 32).download(tmp_path)
    assert str(error.value) == (
        f"cannot download {url} to {tmp_path}/set/x.zip ({message}): try again, or put the file there yourself"
    )
    assert list(tmp_path.rglob("*.*")) == []


def test_a_promise_of_too_much_is_not_waited_for(tmp_path, server, monkeypatch):
    monkeypatch.setattr(downloads, "MAX_BYTES", 100)
    with pytest.raises(UserError, match="the server sends more than 100 bytes"):
        fetch("omniglot", tmp_path / "root")


FETCH = """
import sys
from pathlib import Path
from metalstm.data.downloads import File

print("starts", flush=True)
File("set/x.zip", sys.argv[1], "0" * 32).download(Path(sys.argv[2]))
"""


def test_a_killed_download_leaves_nothing(tmp_path, server, endless):
    url, slow = endless
    slow.set()
    environment = os.environ | {"NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", FETCH, url, tmp_path / "root"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "starts\n"
        time.sleep(1)  # it is somewhere in the download
        process.kill()
    assert list(tmp_path.glob("root/**/*")) == []
    # What was killed while it wrote the file is removed by the next download.
    left = tmp_path / "root" / "omniglot" / ".images_background.zip.123.tmp"
    left.parent.mkdir(parents=True)
    left.touch()
    assert fetch("omniglot", tmp_path / "root") == sorted(left.parent.iterdir())


def test_fetch_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    files = (File("cifar100/x.tar.gz", "http://127.0.0.1:1/x", "0" * 32),)
    monkeypatch.setattr(DATASETS["fc100"], "files", files)
    with pytest.raises(UserError, match=r"^cannot download http://127.0.0.1:1/x to .*/x.tar.gz \(.*\): try again, or"):
        fetch("fc100", tmp_path)


def test_states(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    md5, sha256 = hashlib.md5(b"a").hexdigest(), hashlib.sha256(b"a").hexdigest()
    assert File("b").state(tmp_path) == "missing"
    assert File("a").state(tmp_path) == "unknown checksum"
    assert File("a", md5=md5, rebuilt=sha256).state(tmp_path) == "original"
    assert File("a", md5="0" * 32, rebuilt=sha256).state(tmp_path) == "rebuilt"


@pytest.mark.data
def test_real_files_are_known(real_data):
    assert {state for name in ("omniglot", "fc100") for _, state in check(name, real_data)} <= {"original", "rebuilt"}
