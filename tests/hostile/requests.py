"""Requests to the page: cards, names, files, sessions, sizes, hosts and origins of any kind."""

import http.client
import json
import os
import select
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from app.serving import TRAIN, ask, event, outcome, start
from hostile.lists import WORDS, png
from hostile.mutations import VALUES, Random, mutated_bytes
from hostile.pictures import image as image_file
from metalstm.app.cards import data_url
from metalstm.errors import UserError

MEGABYTES = 1500  # of the server
PATHS = [
    "/", "/config", "/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/gradio_api/info",
    "/gradio_api/file=../../etc/passwd", "/gradio_api/proxy=http://127.0.0.1:9/", "/gradio_api/call/train", "/login",
    "/gradio_api/queue/data", "/gradio_api/queue/data?session_hash=", "/gradio_api/stream/x/y/0/playlist.m3u8", "//x",
    "/gradio_api/run/predict", "/gradio_api/component_server", "/gradio_api/cancel", "/gradio_api/reset",
    "/static/../x",
    "/assets/..%2f..%2fetc%2fpasswd", "/gradio_api/heartbeat/x", "/theme.css", "/openapi.json", "/docs", "/%00",
    "/monitoring",
]  # fmt: skip
HOSTS = [
    "evil.example",
    "",
    "127.0.0.1",
    "localhost:1",
    "127.0.0.1@evil.example",
    "[::1]",
    "a" * 3000,
    "127.0.0.1, evil",
]
ENOUGH = (200, 204, 206, 304, 307, 400, 401, 403, 404, 405, 408, 411, 413, 416, 421, 422, 429, 431, 503)


class Cases:
    """Requests that a page, or another site, may send to the real server.

    Args:
        folder: Where the server's temporary files go.
    """

    def __init__(self, folder: Path):
        self.process, said = start(folder)
        assert said.startswith("The page is at "), said
        self.url = said.split()[4]
        drawings = [data_url(255 - 5 * k * _square()) for k in range(2)]
        self.images = [{"url": url} for url in drawings]

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=30)

    def __call__(self, random: Random, number: int) -> None:
        try:
            [self._event, self._event, self._upload, self._request][number % 4](random)
        finally:
            stderr = self.process.stderr
            assert stderr
            assert self.process.poll() is None, "the server has ended"
            if select.select([stderr], [], [], 0)[0]:
                raise AssertionError(f"the server says: {os.read(stderr.fileno(), 3000).decode()}")
            status = Path(f"/proc/{self.process.pid}/status")
            if status.exists():
                megabytes = int(status.read_text().partition("VmHWM:")[2].split()[0]) // 1024
                assert megabytes < MEGABYTES, f"the server takes {megabytes} MB"

    def _event(self, random: Random) -> None:
        """Something happens on the page; one of its values may be odd."""
        cards = [
            {
                "name": WORDS[random.randint(len(WORDS))],
                "images": [self._image(random) for _ in range(random.randint(4))],
            }
            for _ in range(random.randint(1, 5))
        ]
        session = uuid.uuid4().hex
        body = event([cards], session)
        if random.rand() < 0.3:
            part: Any = [body, cards[0], (cards[0]["images"] or [{}])[0]][random.randint(3)]
            names = [*part, "meta", "_type", "trigger_id", "fn_index"]
            part[names[random.randint(len(names))]] = VALUES[random.randint(len(VALUES))]
        content = json.dumps(body, allow_nan=True).encode()
        if random.rand() < 0.1:
            content = mutated_bytes(content, random)
        status, _, said = ask(self.url, "POST", "/gradio_api/queue/join", content)
        if status != 200:
            raise refused(status, said)
        if body.get("session_hash") != session or body.get("fn_index") != TRAIN or content != json.dumps(body).encode():
            return
        answer = outcome(self.url, session)
        if not answer["success"]:
            error = answer["output"]["error"]
            assert error, "an error without a message is an internal one"
            raise UserError(f"the page says: {error}")

    def _image(self, random: Random) -> dict[str, Any]:
        match random.randint(6):
            case 0:
                path = ["/etc/passwd", "/dev/zero", "..", "\0", "/proc/self/mem", "a" * 3000, "/"][random.randint(7)]
                return {"url": "", "path": path}
            case 1:
                return {"url": "data:image/png;base64," + ["", "AAAA", "=", "\u00e9", "A" * 9999][random.randint(5)]}
        return dict(self.images[random.randint(2)])  # a case changes it

    def _upload(self, random: Random) -> None:
        """A file is uploaded, and learned from."""
        name = WORDS[random.randint(len(WORDS))].encode("utf-8", "replace").replace(b"\n", b"")
        name = [name, b"../../escaped.png", b"/tmp/escaped.png", b"a" * 5000, b"", b"a.png"][random.randint(6)]
        head = b'Content-Disposition: form-data; name="files"; filename="' + name + b'"\r\n\r\n'
        body = b"--x\r\n" + head + (image_file(random) if random.rand() < 0.7 else png(1)) + b"\r\n--x--\r\n"
        body = mutated_bytes(body, random) if random.rand() < 0.2 else body
        status, _, said = ask(
            self.url, "POST", "/gradio_api/upload", body, **{"Content-Type": "multipart/form-data; boundary=x"}
        )
        if status != 200:
            raise refused(status, said)
        files = [{"url": "", "path": path} for path in json.loads(said)]
        cards = [{"name": "a", "images": files}, {"name": "b", "images": self.images[:1]}]
        session = uuid.uuid4().hex
        status, _, said = ask(self.url, "POST", "/gradio_api/queue/join", event([cards], session))
        assert status == 200, said
        answer = outcome(self.url, session)
        if not answer["success"]:
            assert answer["output"]["error"]
            raise UserError(f"the page says: {answer['output']['error']}")

    def _request(self, random: Random) -> None:
        """Any request, of any site."""
        path, here = PATHS[random.randint(len(PATHS))], urlsplit(self.url).netloc
        path = quote(path + WORDS[random.randint(len(WORDS))], errors="replace") if random.rand() < 0.2 else path
        headers, is_foreign = {}, False
        if random.rand() < 0.3:
            headers["Host"] = HOSTS[random.randint(len(HOSTS))]
            is_foreign = headers["Host"].partition(":")[0] not in ("127.0.0.1", "localhost")
        if random.rand() < 0.3:
            headers["Origin"] = ["null", "http://evil.example", f"http://{here}.evil.example", f"https://{here}"][
                random.randint(4)
            ]
            is_foreign = True
        if random.rand() < 0.1:
            headers["Content_Length"] = ["-1", "x", "9" * 30, "60000001", "\u00b2".encode("latin1").decode("latin1")][
                random.randint(5)
            ]
        if random.rand() < 0.1:
            headers["Transfer_Encoding"] = "chunked"
        method = str(random.choice(["GET", "GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "X"]))
        if path.startswith("/gradio_api/queue/data") or path.startswith("/gradio_api/heartbeat"):
            method = "HEAD"  # others may be answered for ever
        try:
            status, _, said = ask(self.url, method, path, None, **headers)
        except (http.client.HTTPException, ConnectionError) as error:
            raise UserError(f"the connection was closed: {error!r}") from error
        assert status in ENOUGH, (status, said[:300])
        assert b"root:" not in said, "a file of the machine"
        assert not (is_foreign and status < 400), f"another site is answered: {headers}"
        if status >= 400:
            raise refused(status, said)


def refused(status: int, said: bytes) -> UserError:
    """The end of a request that is not answered."""
    assert status in ENOUGH, (status, said[:300])
    return UserError(f"status {status}: {' '.join(said[:300].decode(errors='replace').split())}")


def _square() -> Any:
    import numpy as np

    pixels = np.zeros((40, 40), np.uint8)
    pixels[10:20, 10:30] = 40
    return pixels
