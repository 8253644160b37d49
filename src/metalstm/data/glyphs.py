"""Glyphs: characters of the world's scripts, drawn on the spot. They need no file and no network."""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from metalstm.data.base import SPLITS, Dataset, MetaSets
from metalstm.data.cache import Decoded, cached
from metalstm.images import square
from metalstm.settings import Traits


class Glyphs(Dataset):
    """A stand-in for Omniglot; `glyph_drawings` says how the images are made."""

    name = "glyphs"
    image_shape = (1, 28, 28)
    licence = "MIT, part of metalstm; drawn from the DejaVu and STIX fonts"
    traits = Traits(drawing=True, mirrors=False, built_in=True)
    n_classes = (1269, 216, 381)

    def load(self, root: Path, size: int) -> MetaSets:
        """Draw the images, the first time; `root` is not used."""
        from PIL import Image

        from metalstm.data import glyph_drawings  # imports matplotlib and fontTools

        render = functools.cache(glyph_drawings.render)  # one rendering serves all splits

        def decode(split: str) -> Decoded:
            images, classes, members = render()
            labels = np.repeat(classes, len(images) // len(classes))
            own = set(members[split])
            order = [k for k in np.argsort(labels, kind="stable") if labels[k] in own]
            resized: Iterator[np.ndarray] = (square(Image.fromarray(images[k, :, :, 0]), size, 1) for k in order)
            return [str(labels[k]) for k in order], resized

        stored = {
            split: cached("glyphs", [glyph_drawings.KEY, split], (size, size, 1), functools.partial(decode, split))
            for split in SPLITS
        }
        return self.from_stored(list(stored.values()), {split: part.images.classes for split, part in stored.items()})
