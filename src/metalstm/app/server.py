"""The server of the page: its start, its port, its end."""

import contextlib
import logging
import signal
import socket
import threading
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import fastapi
import gradio as gr
import uvicorn
from gradio.themes import Base, Soft
from msgspec import Meta
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp

from metalstm.app.cards import Card
from metalstm.app.guard import Guard
from metalstm.app.page import page
from metalstm.classifier import Classifier
from metalstm.console import console
from metalstm.errors import UserError

HOST = "127.0.0.1"
PORTS = range(7860, 7960)  # where a free one is looked for
CSS = Path(__file__).with_name("app.css")
MAX_SESSIONS = 200  # whose classifiers are kept; then the one that was not used for longest is forgotten
MAX_EVENTS = 200  # of all sessions that wait
MAX_CONNECTIONS = 500
SentCards = Annotated[list[Card], Meta(max_length=100)] | None
END_SECONDS = 0.5  # for requests that are still answered


def serve(learner: Classifier, folder: Path, port: int | None, browser: bool) -> None:
    """As `metalstm.app.serve`; uploads go into the folder."""
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # of malformed uploads
    signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    for number in signals:  # SIGINT too: a shell may have it ignored in the background
        signal.signal(number, signal.default_int_handler)
    try:
        with _listening(port) as listener, _answering(guarded(page(learner), folder), listener):
            url = f"http://{HOST}:{listener.getsockname()[1]}"
            console.print(f"The page is at {url} until Ctrl-C", soft_wrap=True)
            if browser:
                webbrowser.open(url)
            threading.Event().wait()
    except KeyboardInterrupt:
        for number in signals:  # the end is not interrupted
            signal.signal(number, signal.SIG_IGN)


def guarded(blocks: gr.Blocks, folder: Path) -> ASGIApp:
    """The page as an ASGI application, which answers its own browser on this machine and nobody else.

    Args:
        blocks: The page.
        folder: Where uploads go.
    """
    blocks.queue(max_size=MAX_EVENTS)
    blocks.state_session_capacity = MAX_SESSIONS
    app = gr.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None),
        blocks,
        path="/",
        server_name=HOST,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        theme=_theme(),
        css_paths=CSS,
    )
    waiting = blocks._queue.pending_event_ids_session
    inputs = {number: [_kind(each) for each in event.inputs] for number, event in blocks.fns.items()}
    guard = Guard(app, folder, inputs, lambda session: len(waiting.get(session, ())))
    # A site whose name an attacker has pointed to this machine sends that name as the host.
    return TrustedHostMiddleware(guard, [HOST, "localhost"], www_redirect=False)


def _kind(part: Any) -> Any:
    """The type of what the page sends of one of its parts; of a State it sends None."""
    if isinstance(part, gr.Radio):
        return Literal[tuple(value for _, value in part.choices)]
    return SentCards


def _listening(port: int | None) -> socket.socket:
    for number in PORTS if port is None else [port]:
        with contextlib.suppress(OSError):
            return socket.create_server((HOST, number))
    name = f"--port {port}" if port else f"every port from {PORTS.start} to {PORTS.stop - 1}"
    raise UserError(f"{name} is taken or not allowed: pass another, or 0 for the first free one")


@contextlib.contextmanager
def _answering(app: ASGIApp, listener: socket.socket) -> Iterator[None]:
    """Answer requests in a thread."""
    config = uvicorn.Config(
        app,
        log_level="critical",
        ws="none",
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=0,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(END_SECONDS)


def _theme() -> Base:
    """The soft theme of gradio with the fonts of the system, and with enough contrast."""
    return Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
        block_title_background_fill="none",
        block_title_background_fill_dark="none",
        block_title_padding="0",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        checkbox_border_color="*neutral_400",
        checkbox_label_background_fill_selected="*primary_600",
        checkbox_label_background_fill_selected_dark="*primary_600",
        button_secondary_background_fill_dark="*neutral_700",
        button_secondary_background_fill_hover_dark="*neutral_800",
    )
