"""The page in a real browser, served by the real command.

METALSTM_SCREENSHOTS=docs pytest tests/app/test_page.py -k example    makes docs/app.png, and others of other widths
"""

import base64
import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from browser import check_looks, watched
from helpers import make_folder

pytest.importorskip("gradio", reason="needs the extra app")
expect = pytest.importorskip("playwright.sync_api", reason="needs playwright").expect
pytestmark = pytest.mark.slow


def draw(page: Any, canvas: Any, *strokes: list[tuple[float, float]]) -> None:
    """Draw with the mouse; points are shares of the pad's sides."""
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for stroke in strokes:
        for k, (x, y) in enumerate(stroke):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=5 if k else 1)
            if k == 0:
                page.mouse.down()
        page.mouse.up()


def cross(shift: float = 0) -> list[list[tuple[float, float]]]:
    return [[(0.2 + shift, 0.2), (0.8, 0.8 - shift)], [(0.8 - shift, 0.2), (0.2, 0.8)]]


def ring(shift: float = 0) -> list[list[tuple[float, float]]]:
    angles = np.linspace(0, 2 * np.pi, 14)
    return [[(0.5 + shift + 0.3 * np.sin(a), 0.5 - 0.3 * np.cos(a)) for a in angles]]


def learn(page: Any) -> None:
    page.get_by_role("button", name="Learn", exact=True).click()
    page.get_by_text("Learned from").wait_for()


def test_draw_learn_try_download(browser, url, tmp_path):
    from metalstm.classifier import Classifier

    with watched(browser, viewport={"width": 1280, "height": 1000}) as page:
        page.goto(url)
        pads = page.locator("#support canvas")
        for card, (name, shape) in enumerate({"cross": cross, "ring": ring}.items()):
            page.locator("#support .name").nth(card).fill(name)
            draw(page, pads.nth(card), *shape())
            page.locator("#support .next").nth(card).click()
            draw(page, pads.nth(card), *shape(0.06))  # which counts too, kept or not
        learn(page)
        assert page.get_by_text("Learned from 4 images").is_visible()
        expect(page.locator(".accuracy p").first).to_have_text(
            re.compile(r"\d+ % right of images that it had not seen")
        )
        assert page.get_by_text("2-fold cross-validation on 4 images.").is_visible()
        assert page.locator(".chart").count() == 4
        lines = [line.get_attribute("points").split() for line in page.locator("polyline").all()]
        assert len(lines) == 2 + 2 * 5  # loss, accuracy; both gates of each layer
        assert len(set(map(len, lines))) == 1

        with page.expect_download() as download:
            page.get_by_role("button", name="Download").click()
        assert download.value.suggested_filename == "classifier.safetensors"
        download.value.save_as(tmp_path / "classifier.safetensors")
        classifier = Classifier.load(tmp_path / "classifier.safetensors")
        assert classifier.classes_.tolist() == ["cross", "ring"]

        # The page shows what the downloaded classifier makes of the drawing.
        pad = page.locator("#query canvas")
        draw(page, pad, *ring(-0.05))
        drawn = pad.evaluate("canvas => canvas.toDataURL()")
        image = Image.open(io.BytesIO(base64.b64decode(drawn.partition(",")[2]))).convert("L")
        assert classifier.predict([image]) == ["ring"]
        shares = sorted(classifier.predict_proba([image])[0], reverse=True)
        for place, (name, share) in enumerate(zip(("ring", "cross"), shares, strict=True)):
            bar = page.locator(".answer p").nth(place)
            expect(bar).to_have_text(f"{name}{100 * share:.0f} %", timeout=60_000)  # the answers follow the pen


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_example(browser, url, scheme, width):
    with watched(browser, viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        page.goto(url)
        page.get_by_role("button", name="Try an example").click()
        page.locator("#query .images img").first.wait_for()
        names = [field.input_value() for field in page.locator("#support .name").all()]
        assert names == ["Lao ko", "Lao mo", "Lao wo", "Old Italic esh", "Old Italic phe"]
        check_looks(page)
        learn(page)
        answers = page.locator(".answer")
        answers.first.wait_for()
        guesses = [answer.locator("p").first.inner_text().split("\n")[0] for answer in answers.all()]
        right = sum(guess == name for guess, name in zip(guesses, names, strict=True))
        assert right >= 4
        check_looks(page)
        draw(page, page.locator("#query canvas"), *cross())
        answers.nth(5).wait_for()
        expect(page.locator(".accuracy")).to_contain_text("3-fold cross-validation on 15 images")
        for name in ("Wide or tall photos", "Several squares of a photo"):
            page.get_by_role("button", name=name).click()
        page.locator("#crops").get_by_label("9").wait_for()
        check_looks(page)
        if folder := os.environ.get("METALSTM_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"app-open-{scheme}-{width}.png", full_page=True)
        for name in ("Wide or tall photos", "Several squares of a photo"):
            page.get_by_role("button", name=name).click()
        if folder := os.environ.get("METALSTM_SCREENSHOTS"):
            page.mouse.move(0, 0)
            name = "app.png" if (scheme, width) == ("light", 1280) else f"app-{scheme}-{width}.png"
            page.screenshot(path=Path(folder) / name, full_page=True)


def test_files_and_folders(browser, url, tmp_path):
    folder = make_folder(tmp_path / "photos")
    classes = ("class 00", "class 01", "class 02")
    events = []
    with watched(browser) as page:
        page.on("request", lambda request: events.append(request.url) if request.url.endswith("/queue/join") else None)
        page.goto(url)
        page.locator("#support .more input").set_input_files(folder)
        page.wait_for_function("document.querySelectorAll('#support img').length == 96")
        while page.locator("#support .card").count() > 3:
            page.locator("#support .remove").last.click()
        assert [field.input_value() for field in page.locator("#support .name").all()] == list(classes)
        assert not events  # one that ends as another begins can lose the answers of that one: see ENABLE in page.py
        learn(page)
        assert page.get_by_text("Learned from 24 images").is_visible()
        assert page.get_by_text("meta-lstm-cifar-fs-resnet12-5w5s").is_visible()  # photos
        page.locator("#query input[type=file]").set_input_files([folder / name / "7.png" for name in classes])
        page.locator(".answer").nth(2).wait_for()
        guesses = [answer.locator("p").first.inner_text() for answer in page.locator(".answer").all()]
        assert [guess.split("\n")[0] for guess in guesses] == list(classes)


def bar(page: Any, answer: int, place: int = 0) -> Any:
    """A line of an answer."""
    return page.locator(".answer").nth(answer).locator("p").nth(place)


@pytest.mark.parametrize(("framing", "crops"), [("usual", (1, 5)), ("letterbox", ()), ("squeeze", ())])
def test_framing_and_crops_are_those_of_the_commands(framing, crops, browser, url, tmp_path):
    """The page shows what the downloaded classifier answers, in each framing and with each number of crops."""
    from metalstm.classifier import Classifier

    folder, events, wide = make_folder(tmp_path / "photos"), [], [[], []]
    for own in range(2):
        for k in range(4):  # the own class is in the middle, the other one at the left
            parts = [np.asarray(Image.open(folder / f"class 0{c}" / f"{k}.png")) for c in (1 - own, own, 2)]
            wide[own].append(tmp_path / f"{own} {k}.png")
            Image.fromarray(np.concatenate(parts, 1)).save(wide[own][k])
    queries = [files[3] for files in wide]
    with watched(browser) as page:
        page.on("request", lambda request: events.append(request.url) if request.url.endswith("/queue/join") else None)
        page.goto(url)
        for number, files in enumerate(wide):
            card = page.locator("#support .card").nth(number)
            card.locator("input[type=file]").set_input_files(files[:3])
            expect(card.locator("img")).to_have_count(3)
        choices = page.locator("#crops")
        for name, fold in (("Wide or tall photos", "#framing"), ("Several squares of a photo", "#crops")):
            assert not page.locator(f"{fold} label").first.is_visible(), "it is folded away"
            page.get_by_role("button", name=name).click()
        page.locator("#framing").get_by_label(framing, exact=True).check()
        expect(choices.get_by_label("5")).to_be_disabled()
        assert not events, "nothing is sent before Learn"
        learn(page)
        page.locator("#query input[type=file]").set_input_files(queries)
        with page.expect_download() as download:
            page.get_by_role("button", name="Download").click()
        download.value.save_as(tmp_path / "classifier.safetensors")
        classifier = Classifier.load(tmp_path / "classifier.safetensors")
        assert classifier.preprocessing.framing == ("crop" if framing == "usual" else framing)
        seen = set()
        for n in crops or [1]:
            if crops:
                choices.get_by_label(str(n)).check()
            for answer, row in enumerate(classifier.predict_proba(queries, n)):
                said = f"{'AB'[row.argmax()]}{100 * row.max():.0f} %"
                expect(page.locator(".answer").nth(answer).locator("p").first).to_have_text(said)
                seen.add((answer, said))
        assert len(seen) == 2 * len(crops or [1]), "other crops give other answers"
        if crops:  # they are over once it has learned in another framing
            page.locator("#framing").get_by_label("letterbox").check()
            page.get_by_role("button", name="Learn", exact=True).click()
        expect(choices.get_by_label("5")).to_be_disabled()


def test_an_image_is_cropped_moved_and_removed(browser, url, tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 30:] = 200, 0, 0
    Image.fromarray(pixels).save(tmp_path / "two.png")
    with watched(browser) as page:
        page.goto(url)
        cards, dialog = page.locator("#support .card"), page.locator("dialog")
        cards.first.locator("input[type=file]").set_input_files(tmp_path / "two.png")
        cards.first.get_by_alt_text("two.png").click()
        box = dialog.locator("canvas").bounding_box()
        assert dialog.get_by_role("button", name="Crop").is_disabled()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.1 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.3 * box["height"], steps=4)
        page.mouse.up()
        dialog.get_by_role("button", name="Crop").click()
        part = cards.first.get_by_alt_text("part of two.png")
        part.wait_for()
        content = page.request.get(part.get_attribute("src")).body()
        with Image.open(io.BytesIO(content)) as image:
            assert image.convert("RGB").getcolors() == [(image.width**2, (200, 0, 0))]
            assert image.width == pytest.approx(18, abs=1)  # 0.3 of 60
        assert cards.first.locator(".images img").count() == 1

        part.click()
        dialog.get_by_label("Class").select_option("B")
        cards.nth(1).get_by_alt_text("part of two.png").click()
        assert cards.first.locator(".images img").count() == 0
        dialog.get_by_role("button", name="Remove").click()
        expect(page.locator("#support .images img")).to_have_count(0)
        assert not dialog.is_visible()


def test_camera(browser, url):
    """The flags of the browser give it one that shows a test picture."""
    with watched(browser) as page:
        page.goto(url)
        card = page.locator("#support .card").first
        card.get_by_role("button", name="Camera").click()
        card.get_by_role("button", name="Take it").click()
        card.locator(".images img").wait_for()
        card.get_by_role("button", name="Clear").click()
        assert not card.locator("video").is_visible()
        assert card.locator(".images img").count() == 1
        page.add_init_script("navigator.mediaDevices.getUserMedia = async () => { throw new Error('none here') }")
        page.reload()
        card.get_by_role("button", name="Camera").click()
        expect(card.locator(".refused")).to_have_text(
            "The browser gives no camera (none here): allow it for this page, or use Files"
        )


def test_mistakes_are_reported(browser, url, tmp_path):
    (tmp_path / "no image.png").write_text("text")
    with watched(browser) as page:
        page.goto(url)
        button = page.get_by_role("button", name="Learn", exact=True)
        expect(button).to_be_disabled()
        draw(page, page.locator("#support canvas").first, *ring())
        expect(button).to_be_disabled()
        page.locator("#support .card").nth(1).locator("input[type=file]").set_input_files(tmp_path / "no image.png")
        page.get_by_alt_text("no image.png").wait_for()
        page.locator("#support .name").nth(1).fill("A")
        button.click()
        page.get_by_text("Give each class a name of its own.").wait_for()
        page.locator("#support .name").nth(1).fill("<b>")
        button.click()
        page.get_by_text("cannot read").wait_for()
        assert "no image.png" in page.get_by_text("cannot read").inner_text()


def test_files_that_are_too_large_are_refused(browser, url, tmp_path):
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(60_000_001)
    Image.new("RGB", (9, 9)).save(tmp_path / "small.png")
    with watched(browser) as page:
        page.goto(url)
        files = [tmp_path / "large.png", tmp_path / "small.png"]
        page.locator("#support .card").first.locator("input[type=file]").set_input_files(files)
        page.get_by_alt_text("small.png").wait_for()
        refused = page.locator("#support .refused").first
        expect(refused).to_have_text("large.png: not uploaded, because it is too large or there are too many")
        assert page.locator("#support .images img").count() == 1


SCRIPT = "<img src=x onerror='window.hit = 1'><script>window.hit = 1</script><svg onload='window.hit = 1'>"


def test_names_and_metadata_run_no_scripts(browser, url, tmp_path):
    text = PngImagePlugin.PngInfo()
    for key in ("Title", "Comment", "XML:com.adobe.xmp"):
        text.add_itxt(key, SCRIPT)
    rng = np.random.RandomState(0)
    for name in ("a", "b"):
        pixels = rng.randint(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}'><img src=x onerror=hit=1>.png", pnginfo=text)
    (tmp_path / "x.svg").write_text(f'<svg xmlns="http://www.w3.org/2000/svg" onload="window.hit = 1">{SCRIPT}</svg>')
    (tmp_path / "x.html").write_text(f"<html><body>{SCRIPT}</body></html>")
    with watched(browser) as page:
        page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
        page.goto(url)
        images = sorted(tmp_path.glob("*.png"))
        for number, image in enumerate(images):
            card = page.locator("#support .card").nth(number)
            card.locator(".name").fill(f"{SCRIPT[:55]}{number}")
            card.locator("input[type=file]").set_input_files(image)
            card.locator("img").wait_for()
        learn(page)
        page.locator("#query input[type=file]").set_input_files(images)
        page.locator(".answer").nth(1).wait_for()
        assert SCRIPT[:30] in page.locator(".answer").first.inner_text()
        # A file that is no image is named in a message.
        (tmp_path / f"c{images[0].name[1:]}").write_text("text")
        page.locator("#query input[type=file]").set_input_files(tmp_path / f"c{images[0].name[1:]}")
        page.get_by_text("cannot read").wait_for()
        assert page.evaluate("window.hit") is None
        # Uploaded pages are downloads, wherever a link to them leads.
        for name, kind in (("x.svg", "image/svg+xml"), ("x.html", "text/html")):
            place = page.evaluate(
                """async ([text, name, type]) => {
                    const form = new FormData();
                    form.append("files", new File([text], name, { type }));
                    const answer = await fetch("/gradio_api/upload", { method: "POST", body: form });
                    return (await answer.json())[0];
                }""",
                [(tmp_path / name).read_text(), name, kind],
            )
            answer = page.request.get(f"{url}/gradio_api/file={place}")
            assert answer.headers["content-type"] == "application/octet-stream"
            assert answer.headers["content-disposition"].startswith("attachment")
        assert page.evaluate("window.hit") is None
