"""The real command `metalstm app`, and what it must leave behind: nothing."""

import http.client
import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# `metalstm app`, which logs every host that it looks up or connects to.
SPY = """
import sys

def log_hosts(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple):
        print(args[1][0], file=log, flush=True)
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        print(args[0], file=log, flush=True)

log = open(sys.argv[1], "w")
sys.addaudithook(log_hosts)
from metalstm.cli import main
main(["app", "--no-browser", *sys.argv[2:]])
"""


def start(folder: Path, *words: str) -> tuple[subprocess.Popen[str], str]:
    """The process, whose temporary files go into a folder, and the first line that it prints."""
    command = [sys.executable, "-c", SPY, folder / "hosts.txt", *words]
    environment = {**os.environ, "TMPDIR": str(folder)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    assert process.stderr
    return process, process.stderr.readline()


def end(process: subprocess.Popen[str], folder: Path, number: signal.Signals) -> None:
    """End it by a signal. It must print nothing and delete what was uploaded or learned."""
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert [path.name for path in folder.iterdir()] == ["hosts.txt"]


# Requests without a browser

TRAIN, CLASSIFY = 1, 4  # the numbers of the events behind "Learn" and behind an image to be classified
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
FILE = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nabc\r\n--x--\r\n'


def ask(url: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, bytes]:
    """Status, headers and body of an answer. A header's name has `_` for `-`."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None and "Content-Type" not in named:
        named["Content-Type"] = "application/json"
    connection.request(method, path, content, named)
    answer = connection.getresponse()
    result = answer.status, answer.headers, answer.read()
    connection.close()
    return result


def event(data: Any, session: str = "", last: Any = "", **more: Any) -> dict[str, Any]:
    """Something that happens; `last` is the last input: the framing to learn with, the number of crops to classify."""
    return {"fn_index": TRAIN, "data": [*data, last], "session_hash": session or uuid.uuid4().hex, **more}


def outcome(url: str, session: str) -> dict[str, Any]:
    """The last message of a session's events."""
    _, _, body = ask(url, "GET", f"/gradio_api/queue/data?session_hash={session}")
    messages = [json.loads(line.removeprefix("data: ")) for line in body.decode().splitlines() if line]
    return next(m for m in reversed(messages) if m["msg"] == "process_completed")
