"""The web page: draw or drop a few images a class, watch the learner train, try it on new ones. All on this machine."""

import base64
import html
import io
import os
import signal
import tempfile
import threading
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.themes import Soft
from jaxtyping import UInt8
from PIL import Image

from metalstm import datasets
from metalstm.classifier import Classifier, InnerStep
from metalstm.console import console
from metalstm.errors import UserError

HERE = Path(__file__).parent
HOST = "127.0.0.1"
# The example: characters of meta-test, of scripts that Omniglot hasn't either; so many drawings of each to learn from,
# and the next one to try.
CHARACTERS = ("Lao/U+0E81", "Lao/U+0EA1", "Lao/U+0EA7", "Old Italic/U+1030E", "Old Italic/U+10318")
SHOTS = 3
SHOWN, SHOWN_EACH = 10, 3  # classes of an answer: to one image, to each of several
COLORS = ("#6366f1", "#0ea5e9", "#10b981", "#f59e0b", "#ef4444", "#a855f7")

Cards = list[dict[str, Any]]  # {"name": ..., "images": [{"url": ...} or {"url": ..., "path": ...}]}, as app.js has them
NO_ANSWER = '<p class="note">Once it has learned, draw something new or drop images.</p>'


def serve(learner: Classifier, port: int | None, browser: bool) -> None:
    """Show the page until Ctrl-C, or until the terminal is closed.

    Args:
        learner: What is to learn; it is left as it is.
        port: Where; None takes the first free one from 7860 on.
        browser: Whether to open the browser.

    Raises:
        UserError: The port is taken.
    """
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    # gradio looks whether its page is there, which must not go through a proxy.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join([HOST, os.environ.get("NO_PROXY", "")])
    with tempfile.TemporaryDirectory(prefix="metalstm-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # of uploads and classifiers, which go with the page
        blocks = page(learner)
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
                theme=Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
                    # of enough contrast to be read with ease
                    button_primary_background_fill="*primary_600",
                    button_primary_background_fill_dark="*primary_600",
                    button_primary_background_fill_hover="*primary_700",
                    button_primary_background_fill_hover_dark="*primary_700",
                    button_secondary_background_fill_dark="*neutral_700",
                    button_secondary_background_fill_hover_dark="*neutral_800",
                ),
                css_paths=HERE / "app.css",
            )
        except OSError as error:
            raise UserError(
                f"--port {port} is taken or not allowed: pass another, or 0 for the first free one"
            ) from error
        try:
            console.print(f"The page is at {url} until Ctrl-C", soft_wrap=True)
            threading.Event().wait()
        except KeyboardInterrupt:
            blocks.close(verbose=False)


def page(learner: Classifier) -> gr.Blocks:
    """All that is on the page, and what happens when something is pressed."""
    with gr.Blocks(title="metalstm", analytics_enabled=False) as blocks:
        gr.HTML(
            "<h1>Teach a network with a handful of images</h1>"
            '<p class="note">It has learned how to learn: a few drawings or photos of each class make a classifier '
            "in a second. Nothing leaves this machine.</p>"
        )
        classifier = gr.State()
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                with gr.Row():
                    gr.HTML(
                        "<h2>1 · Show it a few of each</h2>"
                        '<p class="note">Draw symbols or drop photos. One of each class will do, five are better.</p>'
                    )
                    example = gr.Button("Try an example", size="sm", scale=0, min_width=150)
                support = _cards([{"name": name, "images": []} for name in "AB"], query=False)
            with gr.Column(scale=4, min_width=320):
                gr.HTML("<h2>2 · Let it learn</h2>")
                learn = gr.Button("Learn", variant="primary")
                told = gr.HTML()
                gr.HTML("<h2>3 · Try it on new ones</h2>")
                with gr.Row():
                    with gr.Column(scale=2, min_width=150):
                        query = _cards([{"name": "", "images": []}], query=True)
                    with gr.Column(scale=3, min_width=200):
                        answers = gr.HTML(NO_ANSWER)
                download = gr.DownloadButton("Download the classifier", interactive=False)
        example.click(example_cards, None, [support, query], show_progress="minimal")
        learn.click(partial(train, learner), support, [classifier, told, download], show_progress="hidden").success(
            answer, [classifier, query], answers, show_progress="hidden"
        )
        query.change(answer, [classifier, query], answers, show_progress="hidden", trigger_mode="always_last")
    return blocks


def _cards(value: Cards, query: bool) -> gr.HTML:
    return gr.HTML(
        value,
        html_template='<div class="cards"></div>',
        js_on_load=(HERE / "app.js").read_text("utf-8"),
        apply_default_css=False,
        elem_id="query" if query else "support",
        query=query,
    )


def example_cards() -> tuple[Cards, Cards]:
    """Drawings of characters that no shipped meta-learner has seen: to learn from, and to try."""
    meta_test = datasets.load("glyphs").splits["meta-test"]
    support, query = [], []
    for name in CHARACTERS:
        script, _, point = name.partition("/U+")
        start = meta_test.spans[meta_test.classes.index(name), 0]
        images = [{"url": data_url(255 - ink[..., 0])} for ink in meta_test.images[start : start + SHOTS + 1]]
        letter = unicodedata.name(chr(int(point, 16))).split()[-1].lower()
        support.append({"name": f"{script} {letter}", "images": images[:-1]})
        query.append(images[-1])
    return support, [{"name": "", "images": query}]


def train(learner: Classifier, cards: Cards) -> Iterator[tuple[Any, ...]]:
    """Learn from the cards: after each inner step the charts; at the end the classifier and the button to download it.

    Raises:
        gr.Error: The cards are not fit to be learned from; it is shown on the page.
    """
    names = [card["name"] for card in cards if card["images"]]
    if len(names) < 2:
        raise _error("Draw or drop at least one image for each of two classes.")
    if "" in names or len(set(names)) < len(names):
        raise _error("Give each class a name of its own.")
    images = [read(image) for card in cards for image in card["images"]]
    labels = [card["name"] for card in cards for _ in card["images"]]
    classifier = Classifier(**learner.get_params())
    started = time.perf_counter()
    steps = []
    try:
        for step in classifier.steps(images, labels):
            steps.append(step)
            yield gr.skip(), charts(steps), gr.skip()
    except UserError as error:
        raise _error(str(error)) from error
    seconds = time.perf_counter() - started
    note = f"Learned from {len(images)} images in {seconds:.1f} s, starting from {Path(classifier.checkpoint_).name}."
    path = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])) / "classifier.safetensors"
    classifier.save(path)
    told = f'{charts(steps)}<p class="note">{html.escape(note)}</p>'
    yield classifier, told, gr.DownloadButton(value=path, interactive=True)


def read(image: Mapping[str, str]) -> Image.Image | Path:
    """A drawing, or the path of an uploaded file."""
    if "path" not in image:
        return Image.open(io.BytesIO(base64.b64decode(image["url"].partition(",")[2]))).convert("L")
    path = Path(image["path"]).resolve()
    if not path.is_relative_to(Path(os.environ["GRADIO_TEMP_DIR"]).resolve()):
        raise _error("This file was not uploaded.")
    return path


def answer(classifier: Classifier | None, cards: Cards) -> str:
    """What the classifier takes the images for, the newest first, as HTML."""
    images = cards[0]["images"]
    if classifier is None or not images:
        return NO_ANSWER
    try:
        probabilities = classifier.predict_proba([read(image) for image in images])
    except UserError as error:
        raise _error(str(error)) from error
    known = classifier.are_known(probabilities) if classifier.meta["calibration"] else [True] * len(images)
    shown = SHOWN if len(images) == 1 else SHOWN_EACH
    rows = []
    for image, p, is_known in reversed(list(zip(images, probabilities, known, strict=True))):
        bars = [
            f'<p style="--share: {100 * p[k]:.1f}%">{html.escape(str(classifier.classes_[k]))}'
            f"<b>{100 * p[k]:.0f} %</b></p>"
            for k in (-p).argsort()[:shown]
        ]
        if not is_known:
            bars.append('<p class="doubt">perhaps none of these</p>')
        kind = "photo" if "path" in image else "drawing"
        picture = f'<span class="{kind}"><img alt="" src="{html.escape(image["url"])}"></span>'
        rows.append(f'<div class="answer">{picture}<div>{"".join(bars)}</div></div>')
    return f'<div class="answers">{"".join(rows)}</div>'


def _error(message: str) -> gr.Error:
    """What the page shows in a corner."""
    return gr.Error(html.escape(message), title="", print_exception=False)


def charts(steps: Sequence[InnerStep]) -> str:
    """Loss, accuracy and gates over the inner steps so far, as HTML; nothing of a method without inner steps."""
    if not steps:
        return ""
    last = steps[-1]
    losses, accuracies = [step.loss for step in steps], [100 * step.accuracy for step in steps]
    parts = [
        chart(f"Loss<b>{last.loss:.3f}</b>", [losses], last.of, 0, max(losses)),
        chart(f"Accuracy<b>{last.accuracy:.0%}</b>", [accuracies], last.of, 0, 100),
    ]
    if last.forget:
        forget = [[step.forget[layer] for step in steps] for layer in last.forget]
        rate = [[step.rate[layer] for step in steps] for layer in last.rate]
        keys = [f'<i style="background: {color}"></i>{layer}' for layer, color in zip(last.forget, cycle(COLORS))]
        parts += [
            chart("Keeps its weights (f)", forget, last.of, min(map(min, forget)), max(map(max, forget))),
            chart("Follows the gradient (i)", rate, last.of, 0, max(map(max, rate))),
            f'<div class="legend"><span>{"</span><span>".join(keys)}</span></div>',
        ]
    return f'<div class="charts">{"".join(parts)}</div>'


def chart(title: str, lines: Sequence[Sequence[float]], n_steps: int, low: float, high: float) -> str:
    """Lines over the inner steps, as SVG in HTML.

    Args:
        title: HTML above it.
        lines: One value for each step so far.
        n_steps: Those that there will be.
        low: The value at the bottom.
        high: The value at the top.
    """
    left, right, top, bottom = 34, 234, 8, 92

    def point(k: int, value: float) -> str:
        x = left + (right - left) * k / max(n_steps - 1, 1)
        y = bottom - (bottom - top) * (value - low) / (high - low or 1)
        return f"{x:.1f},{y:.1f}"

    parts = [f'<text x="{left}" y="107">1</text><text x="{right}" y="107" text-anchor="end">{n_steps} steps</text>']
    for y, value in ((top, high), (bottom, low)):
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{left - 4}" y="{y + 3}" text-anchor="end">{value:.3g}</text>')
    for line, color in zip(lines, cycle(COLORS)):
        points = " ".join(point(k, value) for k, value in enumerate(line))
        parts.append(f'<polyline stroke="{color}" points="{points}"/>')
    return f'<div class="chart"><h3>{title}</h3><svg viewBox="0 0 240 112">{"".join(parts)}</svg></div>'


def data_url(pixels: UInt8[np.ndarray, "height width"]) -> str:
    """A picture as the browser takes it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
