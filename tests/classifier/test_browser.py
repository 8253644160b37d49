"""The page of a classifier in a real browser, from a file and without a network."""

import base64
import functools
import hashlib
import http.server
import io
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageDraw

from browser import check_looks, watched
from metalstm.classifier import Classifier, browser, runtime
from metalstm.errors import UserError
from metalstm.geometry import FRAMINGS
from metalstm.images import Preprocessing

ARCHIVE = Path(sys.prefix) / runtime.NAME
HOSTILE = "</script><img src=x onerror=\"document.title='run'\">"
KINDS = {"photo": (False, False), "drawing": (True, False), "centered": (True, True)}
PREPARE = """async ([encoded, about]) => {
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  const canvas = await read(new Blob([bytes]));
  return [...prepare(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height), about)];
}"""


class Exported(NamedTuple):
    """A classifier with an evil class name, its page, and image files."""

    classifier: Classifier
    page: Path
    images: list[Path]


def scene(width: int, height: int, seed: int) -> Image.Image:
    """A drawing on colored, noisy paper."""
    rng = np.random.RandomState(seed)
    noise = rng.randint(0, 40, (height, width, 3)) + rng.randint(120, 200, 3)
    image = Image.fromarray(noise.astype(np.uint8))
    points = [tuple(point) for point in rng.randint(0, (width, height), (6, 2)).tolist()]
    ImageDraw.Draw(image).line(points, fill=tuple(rng.randint(0, 90, 3).tolist()), width=3)
    return image


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def photo(width: int, height: int) -> Image.Image:
    """Smooth, as photos are: colored noise of 9 x 9 pixels, enlarged."""
    noise = np.random.RandomState(0).randint(0, 256, (9, 9, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def archive() -> Path:
    """onnxruntime-web; skips the test where it is not."""
    if not ARCHIVE.is_file():
        pytest.skip(f"needs {ARCHIVE}: make .venv/dev")
    return ARCHIVE


@pytest.fixture(scope="module")
def export(archive, tmp_path_factory) -> Callable[[str], Exported]:
    """Makes a classifier of "photos" or "drawings" and its page."""

    @cache
    def export(kind: str) -> Exported:
        folder = tmp_path_factory.mktemp(kind)
        paths = [folder / f"{k}.png" for k in range(6)]
        for k, path in enumerate(paths):
            image = Image.new("RGB", (70, 60), "white") if kind == "drawings" else scene(70, 60, k)
            box = [(20 + k, 20), (40 + k, 40)] if k < 3 else [(k, 5), (50 + k, 55)]
            ImageDraw.Draw(image).ellipse(box, outline="black", width=4)
            image.save(path)
        framing = "squeeze" if kind == "drawings" else "letterbox"
        classifier = Classifier(framing=framing).fit(paths, [HOSTILE] * 3 + ["disc ü"] * 3)
        page = folder / f"{kind} & <b>.html"
        browser.to_html(classifier, page, archive)
        return Exported(classifier, page, paths)

    return export


@pytest.fixture
def photos(export) -> Exported:
    return export("photos")


def opened(page, path: Path) -> None:
    page.goto(path.as_uri())
    page.locator("#message:empty").wait_for(state="attached")


def answers(page, n: int) -> list[list[float]]:
    """The probabilities of `n` images, once all are there."""
    page.locator("#answers .card h2").nth(n - 1).wait_for()
    return page.evaluate("[...document.querySelectorAll('#answers .card')].map((card) => card.probabilities)")


def turned(image: Image.Image, orientation: int) -> bytes:
    """A JPEG whose EXIF says how the camera was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "jpeg", exif=exif)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("framing", FRAMINGS)
def test_pixels_are_those_of_pillow(browser, photos, kind, framing):
    """Files of all kinds, wide and tall, large and small, through the browser's own decoder."""
    rng, gray = np.random.RandomState(0), scene(50, 61, 1).convert("L")
    clear = scene(40, 33, 2).convert("RGBA")
    clear.putalpha(Image.fromarray(np.where(rng.rand(33, 40) < 0.3, 0, 255).astype(np.uint8)))
    images = [encoded(scene(width, height, 3), "png") for width, height in rng.randint(5, 300, (12, 2)).tolist()]
    images += [encoded(scene(*size, 3), "png") for size in ((28, 28), (32, 32), (1, 20), (700, 90), (31, 84))]
    images += [encoded(Image.new("RGB", (40, 30), color), "png") for color in ("white", "black", (1, 2, 3))]
    images += [encoded(gray, "png"), encoded(gray, "jpeg"), encoded(clear, "png"), encoded(scene(40, 50, 4), "gif")]
    images += [encoded(scene(60, 40, 5), "bmp"), encoded(scene(60, 40, 5), "webp", lossless=True)]
    images += [encoded(scene(51, 53, 7), "jpeg", subsampling=0), *(turned(scene(50, 30, k), k) for k in range(1, 9))]
    with watched(browser, offline=True) as page:
        opened(page, photos.page)
        for size, channels in ((28, 1), (32, 3)):
            if kind != "photo" and channels == 3:
                continue
            preprocessing = Preprocessing(size, channels, *KINDS[kind], framing)
            about = asdict(preprocessing)
            for number, content in enumerate(images):
                with Image.open(io.BytesIO(content)) as image:
                    try:
                        wanted = preprocessing(image)
                    except UserError:  # too narrow for a letterbox
                        with pytest.raises(Exception, match="it is too narrow"):
                            page.evaluate(PREPARE, [base64.b64encode(content).decode(), about])
                        continue
                found = page.evaluate(PREPARE, [base64.b64encode(content).decode(), about])
                found = np.array(found, np.uint8).reshape(wanted.shape)
                np.testing.assert_array_equal(found, wanted, f"image {number}")


def test_large_photos_are_nearly_those_of_pillow(browser, photos, tmp_path):
    """Of a large JPEG, Python decodes a fraction and the browser all. The phone was held upright."""
    content = turned(photo(1600, 1200), 6)
    (tmp_path / "large.jpg").write_bytes(content)
    with watched(browser, offline=True) as page:
        opened(page, photos.page)
        for framing in FRAMINGS:
            preprocessing = Preprocessing(32, 3, drawing=False, framing=framing)
            wanted = preprocessing(tmp_path / "large.jpg").astype(int)
            found = page.evaluate(PREPARE, [base64.b64encode(content).decode(), asdict(preprocessing)])
            difference = np.abs(np.array(found).reshape(wanted.shape) - wanted)
            assert difference.max() <= 3, framing


@pytest.mark.parametrize(("kind", "width", "scheme"), [("photos", 1280, "light"), ("drawings", 400, "dark")])
def test_answers_are_those_of_python(browser, export, kind, width, scheme):
    classifier, path, images = export(kind)
    wanted = classifier.predict_proba(images)
    with watched(browser, offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        opened(page, path)
        check_looks(page)
        page.set_input_files("#files", images)
        np.testing.assert_allclose(answers(page, len(images)), wanted, atol=1e-4)
        check_looks(page)
        assert page.title() == path.stem, "the class name was run"
        assert page.locator("h1").inner_text() == path.stem
        assert page.locator("#answers img").count() == 0
        known = classifier.known(images)
        labels = [label if k else "none of these" for label, k in zip(classifier.predict(images), known, strict=True)]
        assert page.locator("#answers h2").all_inner_texts() == labels
        page.locator("#reject input").uncheck()
        assert page.locator("#answers h2").all_inner_texts() == classifier.predict(images).tolist()
        page.locator("summary").click()
        assert page.get_by_text("Copyright (c) Microsoft Corporation").first.is_visible()
        check_looks(page)
        if folder := os.environ.get("METALSTM_SCREENSHOTS"):
            page.locator("summary").click()
            page.screenshot(path=Path(folder) / f"{path.stem[:5]}-{scheme}-{width}.png", full_page=True)


def test_drop_and_what_is_no_image(browser, photos):
    classifier, path, images = photos
    with watched(browser, offline=True) as page:
        opened(page, path)
        content = base64.b64encode(images[0].read_bytes()).decode()
        dropped = page.evaluate_handle(
            """(encoded) => {
              const data = new DataTransfer();
              const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
              data.items.add(new File([bytes], "a.png"));
              data.items.add(new File(["no image"], "b.txt"));
              return data;
            }""",
            content,
        )
        page.locator("#drop").dispatch_event("drop", {"dataTransfer": dropped})
        assert page.locator(".wrong").inner_text() == (
            "b.txt: this browser cannot read it as an image: save it as JPEG or PNG"
        )
        np.testing.assert_allclose(answers(page, 1)[0], classifier.predict_proba(images[:1])[0], atol=1e-4)


def test_camera(browser, photos):
    """The flags of the browser give it one that shows a test picture."""
    with watched(browser, offline=True) as page:
        opened(page, photos.page)
        page.get_by_role("button", name="Use the camera").click()
        page.locator("#live .card h2").wait_for()
        page.get_by_role("button", name="Keep this picture").click()
        assert abs(sum(answers(page, 1)[0]) - 1) < 1e-4
        page.get_by_role("button", name="Close the camera").click()
        page.locator("#live .card").wait_for(state="detached")
        assert not page.locator("video").is_visible()


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ("undefined", "This browser gives no camera to a file or to http. Choose images instead"),
        ("{getUserMedia: async () => { throw new DOMException('', 'NotFoundError') }}", "There is no camera. You can"),
        ("{getUserMedia: async () => { throw new DOMException('', 'NotAllowedError') }}", "This page may not use the"),
    ],
)
def test_no_camera(browser, photos, devices, said):
    with watched(browser, offline=True) as page:
        page.add_init_script(f"Object.defineProperty(navigator, 'mediaDevices', {{value: {devices}}})")
        opened(page, photos.page)
        page.get_by_role("button", name="Use the camera").click()
        page.get_by_text(said).wait_for()


def test_the_page_may_not_connect(browser, photos):
    """Not even its own code, where the browser has a network."""
    with browser.new_context() as context:
        page = context.new_page()
        opened(page, photos.page)
        for attempt in ("fetch('http://127.0.0.1:9')", "import('http://127.0.0.1:9/a.js')"):
            assert page.evaluate(f"{attempt}.then(() => 'sent', () => 'refused')") == "refused"
        blocked = "new Promise((stop) => { addEventListener('securitypolicyviolation', (e) => stop(e.blockedURI));"
        assert (
            page.evaluate(f"{blocked} new Image().src = 'http://127.0.0.1:9/a.png' }})") == "http://127.0.0.1:9/a.png"
        )


def test_the_runtime_must_be_as_released(tmp_path):
    (tmp_path / "x.tgz").write_bytes(b"abc")
    remedy = f"run npm pack onnxruntime-web@1.30.0 where there is a network, and pass --runtime {runtime.NAME}"
    with pytest.raises(UserError) as error:
        runtime.load(tmp_path / "x.tgz")
    assert str(error.value) == (
        f"{tmp_path / 'x.tgz'} is not onnxruntime-web-1.30.0.tgz as released (its sha256 is ba7816bf8f01cfea414140de5da"
        f"e2223b00361a396177a9cb410ff61f20015ad, not {runtime.SHA256}): {remedy}"
    )
    with pytest.raises(UserError) as error:
        runtime.load(tmp_path / "y.tgz")
    assert str(error.value) == f"cannot read {tmp_path / 'y.tgz'} (No such file or directory): {remedy}"


def test_the_download_is_kept_only_if_it_is_right(tmp_path, monkeypatch):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / runtime.NAME).write_bytes(b"abc")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *words: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        url, kept = f"http://127.0.0.1:{web.server_port}/{runtime.NAME}", tmp_path / "cache" / runtime.NAME
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(runtime, "URL", url)
        with pytest.raises(UserError) as error:
            runtime.download(kept)
        assert str(error.value).startswith(f"cannot download {url} (its sha256 is ba7816bf8f01cfea414140de5dae2223b003")
        assert not kept.exists()
        monkeypatch.setattr(runtime, "SHA256", hashlib.sha256(b"abc").hexdigest())
        runtime.download(kept)
        assert kept.read_bytes() == b"abc"
        web.shutdown()
