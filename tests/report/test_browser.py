"""The page of a run in a real browser: from a file, light and dark, wide and narrow."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from browser import check_looks, watched
from helpers import load_folder, make_folder, tiny_config
from metalstm import report
from metalstm.report import Heading, Strong
from metalstm.training import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder with its page, which has a wide table and a large picture too."""
    folder = tmp_path_factory.mktemp("report")
    meta_sets = load_folder(make_folder(folder / "images"))
    train(tiny_config(meta_sets, episodes=100, val_every=50), meta_sets, folder / "run")
    classes = [f"class {k:02}" for k in range(12)]
    head = (
        "method",
        *(f"{way}-way {shot}-shot" for way in (5, 20) for shot in (1, 5)),
        "paper, 1-shot",
        "paper, 5-shot",
    )
    row = ("fine-tuning of all layers, Adadelta", *("12.34 ± 0.56",) * 5, Strong("98.76 ± 0.54"))
    results = [
        "Mean accuracy in percent and 95 % interval. " * 5,
        (head, [row] * 4),
        Heading("Which classes are confused"),
        report.confusion(torch.rand(12, 12), classes),
    ]
    report.write_run(
        folder / "run", "A run with a name-that-cannot-be-broken-" + "x" * 20, meta_sets.splits["meta-val"], results
    )
    return folder / "run"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_looks(browser, run, scheme, width, tmp_path):
    with watched(browser, viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True) as page:
        page.goto((run / "report.html").as_uri())
        check_looks(page)
        assert page.get_by_role("cell", name="input_bias").is_visible()
        figures = page.locator(".figure")
        assert figures.count() == 4
        assert page.locator(".images").count() == 2  # the confusions and the episode
        for number, figure in enumerate(figures.all()):
            picture = figure.locator("img")
            assert picture.evaluate("img => img.complete && img.naturalWidth") > 0
            figure.screenshot(path=tmp_path / f"{number}.png")
            pixels = np.asarray(Image.open(tmp_path / f"{number}.png").convert("L"), dtype=float)
            assert pixels.std() > 10  # there is something to see
            is_plot = "plot" in (figure.get_attribute("class") or "")
            ground = np.median(pixels)
            assert ground < 60 if is_plot and scheme == "dark" else ground > 100
            assert picture.bounding_box()["width"] >= min(600, float(picture.get_attribute("width") or 0)) * 0.95
        if folder := os.environ.get("METALSTM_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"report-{scheme}-{width}.png", full_page=True)
