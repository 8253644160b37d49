"""Glyphs: characters of the world's scripts, drawn on the spot. They need no file and no network."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np

from metalstm.data.base import SPLITS, Dataset, MetaSets
from metalstm.data.cache import Decoded, cached
from metalstm.images import Preprocessing, square
from metalstm.settings import Traits


class Glyphs(Dataset):
    """A stand-in for Omniglot; `glyph_drawings` says how the images are made."""

    name = "glyphs"
    image_shape = (1, 28, 28)
    licence = "MIT, part of metalstm; drawn from the DejaVu and STIX fonts"
    traits = Traits(drawing=True, mirrors=False, centered=True, built_in=True)
    earlier = (replace(traits, centered=False),)
    n_classes = (1269, 216, 381)
    groups = "scripts"
    n_groups = (13, 2, 8)

    def load(self, root: Path, size: int) -> MetaSets:
        """Draw the images, the first time; `root` is not used."""
        from metalstm.data import glyph_drawings  # imports matplotlib and fontTools

        key = [glyph_drawings.KEY, "centered"] if self.traits.centered else [glyph_drawings.KEY]
        render = functools.cache(glyph_drawings.render)  # one rendering serves all splits

        def decode(split: str) -> Decoded:
            images, classes, members = render()
            labels = np.repeat(classes, len(images) // len(classes))
            own = set(members[split])
            order = [k for k in np.argsort(labels, kind="stable") if labels[k] in own]
            return [str(labels[k]) for k in order], (self._resized(images[k], size) for k in order)

        stored = {
            split: cached("glyphs", [*key, split], (size, size, 1), functools.partial(decode, split))
            for split in SPLITS
        }
        return self.from_stored(list(stored.values()), {split: part.images.classes for split, part in stored.items()})

    def group(self, label: str) -> str:
        """The script."""
        return label.partition("/")[0]

    def _resized(self, image: np.ndarray, size: int) -> np.ndarray:
        if self.traits.centered:
            return Preprocessing(size, 1, drawing=True, centered=True)(image)
        from PIL import Image

        return square(Image.fromarray(image[:, :, 0]), size, 1)
