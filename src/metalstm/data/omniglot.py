"""Omniglot: handwritten characters of 50 alphabets, each drawn by 20 people."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from metalstm.data.archives import decode_zip
from metalstm.data.base import Dataset, MetaSets, Stored, check_disjoint, permuted
from metalstm.data.cache import Decoded, cached
from metalstm.data.downloads import File
from metalstm.data.reading import checksum
from metalstm.errors import UserError
from metalstm.images import Preprocessing
from metalstm.settings import Traits

# Of the 964 background characters, 161 are in the alphabets of meta-val; of a smaller archive, about the same share.
N_VAL, N_BACKGROUND = 161, 964
N_VAL_BEFORE = 164  # when drawings were not centered yet, and meta-val was single characters of all alphabets


class Omniglot(Dataset):
    """Lake, Salakhutdinov and Tenenbaum 2015; the paper's data set of drawings.

    Whole alphabets of the background set are meta-val, a seeded choice: Arcadian, Cyrillic, Grantha, Sanskrit, Tagalog.
    """

    name = "omniglot"
    image_shape = (1, 28, 28)
    licence = "MIT, Copyright (c) 2015 Brenden Lake"
    traits = Traits(drawing=True, mirrors=False, rotations=True, centered=True)
    earlier = (replace(traits, centered=False),)
    n_classes = (N_BACKGROUND - N_VAL, N_VAL, 659)
    tasks = ((5, 1), (5, 5), (20, 1), (20, 5))
    groups = "alphabets"
    n_groups = (25, 5, 20)
    group_tasks = ((20, 1),)
    files = (
        File(
            "omniglot/images_background.zip",
            url="https://github.com/brendenlake/omniglot/raw/master/python/images_background.zip",
            md5="68d2efa1b9178cc56df9314c21c6e718",
            rebuilt="5e40902b4b72dcec6d87732eb8e8c0862f2c92b579cf264e65fc7a0954e80d47",
        ),
        File(
            "omniglot/images_evaluation.zip",
            url="https://github.com/brendenlake/omniglot/raw/master/python/images_evaluation.zip",
            md5="6b91aef0f799c5bb55b94e3f2daec811",
            rebuilt="bcc0b44a73cc146a6739d98c0004e3fc70173968e567278fb429b3dd55342400",
        ),
    )

    def load(self, root: Path, size: int) -> MetaSets:
        """Load both archives."""
        paths = [root / file.path for file in self.files]
        for path in paths:
            if not path.is_file():
                raise self.missing(path)
        background, evaluation = (self._stored(path, size) for path in paths)
        names = background.images.classes
        held_out = self._held_out(names, paths[0])
        members = {
            "meta-train": [name for name in names if name not in held_out],
            "meta-val": [name for name in names if name in held_out],
            "meta-test": evaluation.images.classes,
        }
        check_disjoint(paths[0].parent, members)
        return self.from_stored([background, evaluation], members)

    def group(self, label: str) -> str:
        """The alphabet."""
        return label.partition("/")[0]

    def _held_out(self, names: Sequence[str], path: Path) -> set[str]:
        """The background characters that are meta-val.

        Raises:
            UserError: There is one alphabet only.
        """
        if not self.traits.centered:
            return set(permuted(names)[: max(1, round(len(names) * N_VAL_BEFORE / N_BACKGROUND))])
        alphabets = permuted({self.group(name) for name in names})
        if len(alphabets) < 2:
            raise UserError(f"{path} has 1 alphabet, but needs at least 2: {self.fetch_again}")
        sizes = [sum(self.group(name) == alphabet for name in names) for alphabet in alphabets]
        # As many alphabets as come nearest to the share.
        n = 1 + int(np.abs(np.cumsum(sizes[:-1]) - len(names) * N_VAL / N_BACKGROUND).argmin())
        return {name for name in names if self.group(name) in alphabets[:n]}

    def _stored(self, path: Path, size: int) -> Stored:
        drawing = Preprocessing(size, 1, drawing=True, centered=self.traits.centered)
        content = [checksum(path), "centered"] if drawing.centered else checksum(path)
        decode = functools.partial(self._decode, path, drawing)
        return cached(f"omniglot-{path.stem}", content, (size, size, 1), decode)

    def _decode(self, path: Path, drawing: Preprocessing) -> Decoded:
        layout = "images_*/<alphabet>/<character>/*.png"
        labels, images = decode_zip(path, layout, drawing, self.fetch_again)
        # In the files, paper is light and ink is dark; here ink is 255 and paper is 0.
        return labels, (255 - image for image in images)
