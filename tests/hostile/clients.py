"""Many clients of the page at the same time: each gets the answers of its own classifier, and memory stays flat."""

import hashlib
import signal
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from app.serving import CLASSIFY, TRAIN, ask, event, outcome, start
from metalstm.app.cards import data_url

GROWTH = 1.1, 50  # times and MB that memory may have grown by, from the second quarter of the time to the last


def visit(folder: Path, clients: int, minutes: float) -> dict[str, Any]:
    """Let clients use a page.

    Returns:
        `cases`, the answers; `failures`; `seconds`; `megabytes`, the most that the server took.
    """
    process, said = start(folder, "--port", "0", "--threads", "1")
    url, until = said.split()[4], time.monotonic() + 60 * minutes
    answers, failures, memory = [0] * clients, [], []

    def use(number: int) -> None:
        try:
            client = Client(url, number)
            while time.monotonic() < until:
                client()
                answers[number] += 1
        except Exception as error:
            failures.append(f"client {number}: {type(error).__name__}: {str(error)[:500]}")

    threads = [threading.Thread(target=use, args=(number,)) for number in range(clients)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        memory.append(megabytes(process.pid))
        time.sleep(1)
    quarter = max(1, len(memory) // 4)
    early, late = max(memory[quarter : 2 * quarter] or memory), max(memory[-quarter:])  # after all have come
    if late > GROWTH[0] * early + GROWTH[1]:
        failures.append(f"memory grew from {early} to {late} MB")
    if min(answers) == 0:
        failures.append(f"{answers.count(0)} clients got no answer")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    left = [path.name for path in folder.iterdir() if not path.name.startswith("torchinductor")]  # an empty folder
    if (process.returncode, said, left) != (0, "", ["hosts.txt"]):
        failures.append(f"the server ended with {process.returncode}, left {left} and said {said[-1000:]!r}")
    seconds = time.monotonic() - started
    return {"cases": sum(answers), "failures": failures, "seconds": seconds, "megabytes": max(memory)}


class Client:
    """A session with drawings and names of its own, which must get the same answers each time.

    Args:
        url: Of the page.
        number: Of the client.
    """

    def __init__(self, url: str, number: int):
        self.url, self.session, self.before = url, uuid.uuid4().hex, ""
        random = np.random.RandomState(number)
        self.names = [f"client {number} {letter}" for letter in "ab"]
        images = [[{"url": data_url(255 * (random.rand(28, 28) < share).astype(np.uint8))} for _ in range(3)]
                  for share in (0.85, 0.95)]  # fmt: skip
        self.cards = [{"name": name, "images": own[:2]} for name, own in zip(self.names, images, strict=True)]
        self.query = [{"name": "", "images": [images[number % 2][2]]}]

    def __call__(self) -> None:
        """Learn and classify; the answer is of its own classes, and the same as before."""
        self._ask(TRAIN, [self.cards], "")
        answer = str(self._ask(CLASSIFY, [None, self.query], 1)["data"][0])
        assert all(name in answer for name in self.names), f"not its own classes: {answer}"
        assert answer.count("client ") == 2, f"another client's classes: {answer}"
        found = hashlib.sha256(answer.encode()).hexdigest()
        assert self.before in ("", found), f"another answer than before: {answer}"
        self.before = found

    def _ask(self, number: int, data: list[Any], last: Any) -> dict[str, Any]:
        body = event(data, self.session, last, fn_index=number)
        status, _, said = ask(self.url, "POST", "/gradio_api/queue/join", body)
        assert status == 200, (status, said)
        answer = outcome(self.url, self.session)
        assert answer["success"], answer
        return answer["output"]


def megabytes(process: int) -> int:
    """The memory that a process has now."""
    status = Path(f"/proc/{process}/status")
    return int(status.read_text().partition("VmRSS:")[2].split()[0]) // 1024 if status.exists() else 0
