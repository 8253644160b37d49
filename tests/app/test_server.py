import io
import json
import os
import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

from app.serving import FILE, FORM, ask, end, event, outcome, start

pytest.importorskip("gradio", reason="needs the extra app")
pytestmark = pytest.mark.slow


def test_ends_with_the_terminal(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there, and nobody must ask
    process, said = start(tmp_path)
    assert said.startswith("The page is at http://127.0.0.1:"), said
    end(process, tmp_path, signal.SIGHUP)


def test_ends_while_it_is_busy(tmp_path):
    process, said = start(tmp_path)
    address = urlsplit(said.split()[4])
    folder = next(tmp_path.glob("metalstm-*"))
    streams = [socket.create_connection((address.hostname, address.port)) for _ in range(2)]
    streams[0].sendall(b"GET /gradio_api/heartbeat/x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert b"200 OK" in streams[0].recv(100)
    head = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 10000\r\n\r\n--x\r\n"
    part = b'Content-Disposition: form-data; name="files"; filename="a"\r\n\r\nabc'
    streams[1].sendall(b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\n" + head + part)
    while not list(folder.iterdir()):  # what is uploaded has not all come, and never will
        assert process.poll() is None
    end(process, tmp_path, signal.SIGTERM)
    for stream in streams:
        stream.close()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not say how much memory is used")
def test_memory_of_large_images_is_not_kept(tmp_path):
    process, said = start(tmp_path)
    url = said.split()[4]
    content = io.BytesIO()
    Image.new("RGBA", (7000, 7000), (9, 9, 9, 99)).save(content, "webp", lossless=True, method=0, quality=0)
    content = FILE.replace(b"abc", content.getvalue())
    cards = []
    for name in "abc":
        _, _, body = ask(url, "POST", "/gradio_api/upload", content.replace(b"a.png", name.encode()), **FORM)
        cards.append({"name": name, "images": [{"url": "", "path": json.loads(body)[0]}]})
    ask(url, "POST", "/gradio_api/queue/join", event([cards], "me"))
    assert outcome(url, "me")["success"]
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    assert pages * os.sysconf("SC_PAGE_SIZE") < 700e6, "one of these images takes 750 MB"
    end(process, tmp_path, signal.SIGTERM)


def test_a_killed_server_leaves_no_uploads(tmp_path):
    process, said = start(tmp_path)
    assert said.startswith("The page is at http://127.0.0.1:"), said
    (folder,) = tmp_path.glob("metalstm-*")
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 60
    while folder.exists():
        assert time.monotonic() < deadline


def test_a_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process, said = start(tmp_path, "--port", str(port))
        process.communicate(timeout=30)
    assert process.returncode == 2
    assert said == (f"metalstm: --port {port} is taken or not allowed: pass another, or 0 for the first free one\n")
