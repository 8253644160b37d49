"""The server of the page: its start, its temporary files, its end."""

import os
import signal
import tempfile
import threading
from pathlib import Path

import gradio as gr
from gradio.themes import Base, Soft

from metalstm.app.page import page
from metalstm.classifier import Classifier
from metalstm.console import console
from metalstm.errors import UserError

HOST = "127.0.0.1"
CSS = Path(__file__).with_name("app.css")


def serve(learner: Classifier, port: int | None, browser: bool) -> None:
    """Serve the page until Ctrl-C, or until the terminal is closed.

    Args:
        learner: Its settings are those of every classifier that the page trains. It is not changed.
        port: The port; None takes the first free one from 7860 on.
        browser: Whether to open the browser.

    Raises:
        UserError: The port is taken or not allowed.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # SIGINT too: a shell may have it ignored in the background
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    # gradio requests its own page to see whether it is up. That request must not go through a proxy.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join([HOST, os.environ.get("NO_PROXY", "")])
    with tempfile.TemporaryDirectory(prefix="metalstm-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads and classifiers, deleted at the end
        blocks = page(learner)
        url = _launch(blocks, port, browser)
        try:
            console.print(f"The page is at {url} until Ctrl-C", soft_wrap=True)
            threading.Event().wait()
        except KeyboardInterrupt:
            blocks.close(verbose=False)


def _launch(blocks: gr.Blocks, port: int | None, browser: bool) -> str:
    """Start the server in a thread of its own and return its address."""
    try:
        _, url, _ = blocks.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            inbrowser=browser,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            pwa=False,
            theme=_theme(),
            css_paths=CSS,
        )
    except OSError as error:
        raise UserError(f"--port {port} is taken or not allowed: pass another, or 0 for the first free one") from error
    return url


def _theme() -> Base:
    """The soft theme of gradio with the fonts of the system, and with enough contrast on buttons."""
    return Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
        button_secondary_background_fill_dark="*neutral_700",
        button_secondary_background_fill_hover_dark="*neutral_800",
    )
