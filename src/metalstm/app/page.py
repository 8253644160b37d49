"""The page: what is on it, and what its buttons do."""

import html
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from metalstm.app.answers import NO_ANSWER, answers
from metalstm.app.cards import Cards, example_cards, read
from metalstm.app.charts import charts
from metalstm.app.guard import MAX_FILE
from metalstm.app.scratch import make_room
from metalstm.app.templates import render
from metalstm.classifier import Classifier
from metalstm.errors import UserError
from metalstm.geometry import FRAMINGS
from metalstm.kernels import return_memory

N_CONFUSED = 5  # pairs of classes that are shown
DECENT = 0.75  # area under the ROC curve on meta-val from which on "perhaps none of these" means something
CERTAIN = 0.95  # probability from which on nothing is said against an answer
USUAL = ""  # crop for photos, letterbox for drawings
CROPS = (1, 3, 5, 9)
JS = Path(__file__).with_name("app.js")
# Whether the button is enabled is decided in the browser: no event is then on its way when it is pressed. Gradio's
# client closes its stream of answers when the last one has come, and misses those of an event that starts just then.
ENABLE = """(cards) => ({
  __type__: "update",
  interactive: cards.filter((card) => card.images.length).length > 1,
})"""


def page(learner: Classifier) -> gr.Blocks:
    """The parts of the page and its events.

    Args:
        learner: Its settings are those of every classifier that the page trains.
    """
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
                    gr.HTML("<h2>1 · Show it a few of each</h2>")
                    example = gr.Button("Try an example", size="sm", scale=0, min_width=130)
                gr.HTML('<p class="note">Draw symbols or drop photos. One of each class will do, five are better.</p>')
                support = _cards([{"name": name, "images": []} for name in "AB"], query=False)
            with gr.Column(scale=4, min_width=320):
                gr.HTML("<h2>2 · Let it learn</h2>")
                with gr.Accordion("Wide or tall photos", open=False, elem_id="framing"):
                    framing = gr.Radio(
                        [("usual", USUAL), *((name, name) for name in FRAMINGS)],
                        value=USUAL,
                        label="What it sees of them (usual: crop)",
                        info="crop: the middle. letterbox: all, between bars. squeeze: all, distorted.",
                    )
                learn = gr.Button("Learn", variant="primary", interactive=False)
                progress = gr.HTML()
                accuracy = gr.HTML()
                gr.HTML("<h2>3 · Try it on new ones</h2>")
                with gr.Row():
                    with gr.Column(scale=2, min_width=150):
                        query = _cards([{"name": "", "images": []}], query=True)
                    with gr.Column(scale=3, min_width=200):
                        answer = gr.HTML(NO_ANSWER)
                with gr.Accordion("Several squares of a photo", open=False, elem_id="crops"):
                    crops = gr.Radio(
                        CROPS,
                        value=1,
                        interactive=False,
                        label="Squares along its longer side",
                        info="Answers are the mean over them. Only for what was learned with crop.",
                    )
                download = gr.DownloadButton("Download the classifier", interactive=False)
        example.click(example_cards, None, [support, query], show_progress="minimal")
        learned, asked = [classifier, progress, download, accuracy, crops], [classifier, query, crops]
        learn.click(partial(train, learner), [support, framing], learned, show_progress="hidden").success(
            classify, asked, answer, show_progress="hidden"
        ).success(estimate, classifier, accuracy, show_progress="hidden")
        query.change(classify, asked, answer, show_progress="hidden", trigger_mode="always_last")
        support.change(None, support, learn, js=ENABLE)
        # Tests and clients know the events above by their numbers: new ones come last.
        crops.input(classify, asked, answer, show_progress="hidden", trigger_mode="always_last")
    return blocks


def train(learner: Classifier, cards: Cards, framing: str = USUAL) -> Iterator[tuple[Any, ...]]:
    """Learn from the cards.

    Args:
        learner: Its settings are those of the classifier.
        cards: The images and the names of their classes.
        framing: As `Classifier` takes it, or `USUAL`.

    Yields:
        After each inner step the charts; at the end the classifier, the charts, the button to download it, and the
        choice of crops; each time what stands in the place of the accuracy.

    Raises:
        gr.Error: The cards cannot be learned from. The page shows the message.
    """
    names = _named(cards)
    if len(names) < 2:
        raise _error("Draw or drop at least one image for each of two classes.")
    if "" in names or len(set(names)) < len(names):
        raise _error("Give each class a name of its own.")
    labels = [card["name"] for card in cards for _ in card["images"]]
    classifier = Classifier(**learner.get_params()).set_params(framing=framing or None)
    unknown = render("accuracy.html", estimate=None, few=False)  # until it has been estimated
    started = time.perf_counter()
    steps = []
    try:
        images = [read(image) for card in cards for image in card["images"]]
        for step in classifier.steps(images, labels):
            steps.append(step)
            yield gr.skip(), charts(steps), gr.skip(), unknown, gr.skip()
    except UserError as error:
        raise _error(str(error)) from error
    finally:
        return_memory()  # of large images
    seconds = time.perf_counter() - started
    note = f"Learned from {len(images)} images in {seconds:.1f} s, starting from {Path(classifier.checkpoint_).name}."
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    path = Path(tempfile.mkdtemp(dir=folder)) / "classifier.safetensors"
    classifier.save(path)
    make_room(folder)
    may_crop = gr.Radio(interactive=classifier.preprocessing.framing == "crop")
    yield classifier, charts(steps, note), gr.DownloadButton(value=path, interactive=True), unknown, may_crop


def estimate(classifier: Classifier) -> str:
    """The accuracy on images that were not learned from, and what is confused, as HTML.

    Raises:
        gr.Error: There are not enough images. The page shows the message.
    """
    if max(classifier.meta["images"]) < 2:
        return render("accuracy.html", estimate=None, few=True)
    try:
        result = classifier.cross_validate()
    except UserError as error:
        raise _error(str(error)) from error
    finally:
        return_memory()
    return render("accuracy.html", estimate=result.estimate, confused=result.confused()[:N_CONFUSED])


def classify(classifier: Classifier | None, cards: Cards, crops: int = 1) -> str:
    """The classes of the images of the one card, as HTML.

    Args:
        classifier: None until one has learned.
        cards: One card.
        crops: Of each image; counts only if the classifier has the framing `crop`.

    Raises:
        gr.Error: An image cannot be read. The page shows the message.
    """
    images = [image for card in cards for image in card["images"]]
    if classifier is None or not images:
        return NO_ANSWER
    crops = crops if classifier.preprocessing.framing == "crop" else 1
    try:
        probabilities, scores = classifier.predict_with_scores([read(image) for image in images], crops)
    except UserError as error:
        raise _error(str(error)) from error
    finally:
        if any("path" in image for image in images):  # drawings are small, and follow the pen
            return_memory()
    if scores is None or classifier.meta["calibration"].get("auroc", 0) < DECENT:
        doubtful = np.zeros(len(images), bool)
    else:
        doubtful = (scores < classifier.threshold()) & (probabilities.max(1) < CERTAIN)
    return answers(images, [str(name) for name in classifier.classes_], probabilities, doubtful)


def _cards(value: Cards, query: bool) -> gr.HTML:
    return gr.HTML(
        value,
        html_template='<div class="cards"></div>',
        js_on_load=JS.read_text("utf-8"),
        apply_default_css=False,
        elem_id="query" if query else "support",
        query=query,
        bytes=MAX_FILE,
    )


def _named(cards: Cards) -> list[str]:
    """The names of the classes that have images."""
    return [card["name"] for card in cards if card["images"]]


def _error(message: str) -> gr.Error:
    """An error that the page shows in a corner."""
    return gr.Error(html.escape(message), title="", print_exception=False)
