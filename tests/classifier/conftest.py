"""A small data set, checkpoints of methods that were not trained, and drawings."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageDraw

from metalstm import checkpoint, recipes
from metalstm.data import MetaSets
from metalstm.settings import Traits

STROKES = {"one": [(30, 8), (30, 52)], "ell": [(15, 8), (15, 50), (45, 50)], "vee": [(8, 8), (30, 50), (52, 8)]}


class Patterns(NamedTuple):
    """Images of three classes."""

    support: list[np.ndarray]  # five, three and one of each class
    labels: list[str]
    query: list[np.ndarray]  # three others of each
    query_labels: list[str]


@pytest.fixture(scope="session")
def drawings() -> Callable[..., tuple[list[Image.Image], list[str]]]:
    """Draws `n` of each of three symbols with a shaking hand."""

    def draw(n: int, seed: int = 0, ink="black", paper="white") -> tuple[list[Image.Image], list[str]]:
        rng, images, labels = np.random.RandomState(seed), [], []
        for label, stroke in STROKES.items():
            for _ in range(n):
                image = Image.new("RGB", (60, 60), paper)
                shaken = [(x + rng.randint(-4, 5), y + rng.randint(-4, 5)) for x, y in stroke]
                ImageDraw.Draw(image).line(shaken, fill=ink, width=3)
                images.append(image)
                labels.append(label)
        return images, labels

    return draw


@pytest.fixture(scope="session")
def meta_sets(tmp_path_factory) -> MetaSets:
    import helpers  # not at the top: pytest reads this file before it sets METALSTM_CACHE

    return helpers.load_folder(helpers.make_folder(tmp_path_factory.mktemp("images") / "patterns"))


@pytest.fixture(scope="session")
def make(meta_sets, tmp_path_factory) -> Callable[..., Path]:
    """Writes a checkpoint of a method that was not trained, and gives its path."""
    import helpers

    def make(
        method: str = "meta-lstm", calibrated: bool = False, traits: Traits | None = None, n_shot: int = 1, **settings
    ) -> Path:
        config = helpers.tiny_config(meta_sets, method)
        if method == "from-random":  # it shares no head, and serves its own number of classes alone: that of `patterns`
            config = replace(config, n_way=3)
        elif recipes.has_setting(config, "shared_head"):
            settings = {"shared_head": True, **settings}
        config = recipes.with_changes(config, settings)
        config = replace(config, traits=traits or config.traits, n_shot=n_shot)
        meta = {"config": recipes.to_dict(config), "meta_val": 55.5}
        if calibrated:
            entry = {"n_way": 2, "n_shot": 1, "temperature": 2.0, "least": 0.6, "auroc": 0.9}
            meta["calibration"] = [entry, entry | {"n_way": 5, "temperature": 3.0}, entry | {"n_shot": 5}]
        path = tmp_path_factory.mktemp("checkpoints") / f"{method}.safetensors"
        checkpoint.save(path, checkpoint.method_tensors(recipes.build(config)), meta)
        return path

    return make


@pytest.fixture(scope="session")
def patterns(meta_sets) -> Patterns:
    images = meta_sets.splits["meta-test"]
    found = Patterns([], [], [], [])
    for name, (start, stop), n in zip(images.classes, images.spans, (5, 3, 1), strict=True):
        found.support.extend(images.images[start : start + n])
        found.labels.extend([name] * n)
        found.query.extend(images.images[start + 5 : stop])
        found.query_labels.extend([name] * 3)
    return found
