"""Who may ask the page for what, and how much of it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metalstm.app.scratch import MAX_BYTES, make_room

API = "/gradio_api"
JOIN, UPLOAD = f"{API}/queue/join", f"{API}/upload"
POSTS = {JOIN, UPLOAD, f"{API}/cancel", f"{API}/reset"}  # what the page itself posts
FETCHES = (f"{API}/proxy=", f"{API}/file=http")  # what would make the server ask other machines
MAX_BODY = 2**24  # bytes of a request that is no upload
MAX_FILE = 60_000_000  # bytes of a file
MAX_UPLOAD = MAX_FILE + 10_000  # with its form
MAX_WAITING = 4  # events of a session that wait or run; the page itself has two at a time
UPLOAD_SECONDS = 120
HEADERS = {
    # Whatever got into the page, the browser does not send it elsewhere, and no other site shows the page in a frame.
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


class Event(msgspec.Struct):
    """What the page posts when something has happened on it. Other fields than these are left out."""

    fn_index: int
    session_hash: Annotated[str, Meta(min_length=1, max_length=64)]
    data: Annotated[list[msgspec.Raw], Meta(max_length=10)]
    trigger_id: int | None = None


class Refusal(Exception):
    """A request that is not answered: the status and one line."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Guard:
    """An ASGI application in front of the page: it refuses what the page itself never asks for.

    That is: requests of other sites; requests that make the server ask other machines; bodies and uploads that are too
    large; events of a form that the page does not have; more than `MAX_WAITING` events of one session, so that it
    cannot keep all others waiting.

    Args:
        app: The page.
        folder: Where uploads go. The oldest files in it make room for new ones.
        inputs: The types of the inputs of each event, as msgspec takes them.
        n_waiting: Gives the number of events of a session that wait or run.
    """

    def __init__(
        self, app: ASGIApp, folder: Path, inputs: Mapping[int, Sequence[Any]], n_waiting: Callable[[str], int]
    ):
        self._app, self._folder, self._inputs, self._n_waiting = app, folder, inputs, n_waiting
        self._receiving = 0  # bytes of the uploads that are under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            await self._answer(scope, receive, send_headers)
        except Refusal as refusal:
            await PlainTextResponse(str(refusal), refusal.status)(scope, receive, send_headers)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise Refusal(400, "only HTTP")
        headers, path = Headers(scope=scope), scope["path"]
        if headers.get("origin", f"http://{headers['host']}") != f"http://{headers['host']}":
            raise Refusal(403, "requests of other sites are not answered")
        if (scope["method"] == "POST" and path not in POSTS) or path.startswith(FETCHES):
            raise Refusal(403, "the page does not need this")
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not length.isdecimal():
            raise Refusal(411, "give the length")
        limit = MAX_UPLOAD if path == UPLOAD else MAX_BODY
        if int(length) > limit:
            raise Refusal(413, f"{int(length):,} bytes, more than {limit:,}")
        if path == UPLOAD:
            await self._upload(scope, receive, send, int(length))
        elif path == JOIN:
            body = self._checked(await Request(scope, receive).body())

            async def receive_checked() -> Message:
                nonlocal body
                message = {"type": "http.request", "body": body} if body else await receive()
                body = b""
                return message

            await self._app(scope, receive_checked, send)
        else:
            await self._app(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send, length: int) -> None:
        if self._receiving + length > MAX_BYTES:
            raise Refusal(503, "too many uploads at the same time: try again")

        async def send_checked(message: Message) -> None:
            if message.get("status") == 500:  # Gradio's answer to a form that it does not expect
                raise Refusal(400, "no upload of this page, or no room for it")
            await send(message)

        self._receiving += length
        try:
            await run_in_threadpool(make_room, self._folder)
            async with asyncio.timeout(UPLOAD_SECONDS):
                await self._app(scope, receive, send_checked)
        except TimeoutError:
            raise Refusal(408, f"the upload took more than {UPLOAD_SECONDS} seconds") from None
        finally:
            self._receiving -= length

    def _checked(self, body: bytes) -> bytes:
        """An event as the page has them."""
        try:
            event = msgspec.json.decode(body, type=Event)
            kinds = self._inputs.get(event.fn_index)
            if kinds is None or len(event.data) != len(kinds):
                raise Refusal(400, "no event of this page: another number of inputs")
            pairs = zip(event.data, kinds, strict=True)
            data = [msgspec.json.decode(value, type=kind) for value, kind in pairs]
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise Refusal(400, f"no event of this page: {error}") from error
        if self._n_waiting(event.session_hash) >= MAX_WAITING:
            raise Refusal(429, "wait for the answers before asking for more")
        return msgspec.json.encode(msgspec.structs.asdict(event) | {"data": data})
