"""The real command `metalstm app`, and what it must leave behind: nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

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
    assert list(folder.glob("metalstm-*")) == []
