from dataclasses import replace

import numpy as np

from metalstm.data import SPLITS, glyph_drawings, load
from metalstm.images import Preprocessing

from .makers import images_of


def test_glyphs(cache, monkeypatch):
    # Drawing the real ones takes a minute.
    images = np.random.RandomState(0).randint(0, 256, (80, 28, 28, 1), dtype=np.uint8)
    members = {"meta-train": ("b", "a"), "meta-val": ("d",), "meta-test": ("c",)}
    calls = []
    monkeypatch.setattr(glyph_drawings, "render", lambda: calls.append(1) or (images, ("b", "a", "d", "c"), members))
    sets = load("glyphs")
    assert load("glyphs").digest == sets.digest
    assert len(calls) == 1
    assert [sets.splits[split].classes for split in SPLITS] == [("a", "b"), ("d",), ("c",)]
    before = load("glyphs", traits=replace(sets.traits, centered=False))
    for sets_, read in ((before, lambda image: image), (sets, Preprocessing(28, 1, drawing=True, centered=True))):
        for split, label, rows in (("meta-train", "a", images[20:40]), ("meta-test", "c", images[60:])):
            np.testing.assert_array_equal(images_of(sets_, split)[label], [read(image) for image in rows])
    monkeypatch.setattr(glyph_drawings, "KEY", "another")
    load("glyphs")
    assert len(calls) == 3
