import signal
import socket

import pytest

from app.serving import end, start

pytest.importorskip("gradio", reason="needs the extra app")
pytestmark = pytest.mark.slow


def test_ends_with_the_terminal(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there, and nobody must ask
    process, said = start(tmp_path)
    assert said.startswith("The page is at http://127.0.0.1:"), said
    end(process, tmp_path, signal.SIGHUP)


def test_a_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process, said = start(tmp_path, "--port", str(port))
        process.communicate(timeout=30)
    assert process.returncode == 2
    assert said == (f"metalstm: --port {port} is taken or not allowed: pass another, or 0 for the first free one\n")
