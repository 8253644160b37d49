"""Omniglot: handwritten characters of 50 alphabets, each drawn by 20 people."""

import functools
from pathlib import Path

from metalstm.data.archives import decode_zip
from metalstm.data.base import Dataset, MetaSets, Stored, check_disjoint, permuted
from metalstm.data.cache import Decoded, cached
from metalstm.data.downloads import File
from metalstm.data.reading import checksum
from metalstm.errors import UserError
from metalstm.settings import Traits

# 164 of the 964 background characters are meta-val; of a smaller archive, the same share.
N_VAL, N_BACKGROUND = 164, 964


class Omniglot(Dataset):
    """Lake, Salakhutdinov and Tenenbaum 2015; the paper's data set of drawings."""

    name = "omniglot"
    image_shape = (1, 28, 28)
    licence = "MIT, Copyright (c) 2015 Brenden Lake"
    traits = Traits(drawing=True, mirrors=False, rotations=True)
    n_classes = (N_BACKGROUND - N_VAL, N_VAL, 659)
    tasks = ((5, 1), (5, 5), (20, 1))
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
        """Load both archives; meta-val is a seeded choice of background characters."""
        paths = [root / file.path for file in self.files]
        for path in paths:
            if not path.is_file():
                raise self.missing(path)
        background, evaluation = (self._stored(path, size) for path in paths)
        names = permuted(background.images.classes)
        if len(names) < 2:
            raise UserError(f"{paths[0]} has {len(names)} character, but needs at least 2: {self.fetch_again}")
        n_val = max(1, round(len(names) * N_VAL / N_BACKGROUND))
        members = {
            "meta-train": names[n_val:],
            "meta-val": names[:n_val],
            "meta-test": evaluation.images.classes,
        }
        check_disjoint(paths[0].parent, members)
        return self.from_stored([background, evaluation], members)

    def _stored(self, path: Path, size: int) -> Stored:
        decode = functools.partial(self._decode, path, size)
        return cached(f"omniglot-{path.stem}", checksum(path), (size, size, 1), decode)

    def _decode(self, path: Path, size: int) -> Decoded:
        layout = "images_*/<alphabet>/<character>/*.png"
        labels, images = decode_zip(path, layout, size, 1, self.fetch_again)
        # In the files, paper is light and ink is dark; here ink is 255 and paper is 0.
        return labels, (255 - image for image in images)
