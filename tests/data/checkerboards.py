"""Checkerboards: a toy data set that makes its images in memory."""

from pathlib import Path

import numpy as np

from metalstm.data.base import Dataset, MetaSets
from metalstm.settings import Traits


class Checkerboards(Dataset):
    """Boards in two random tones per class. The images of a class differ in where the board begins."""

    name = "checkerboards"
    image_shape = (3, 16, 16)
    licence = "public domain"
    traits = Traits()
    n_classes = (12, 6, 6)

    def load(self, root: Path, size: int) -> MetaSets:
        random = np.random.default_rng(0)
        splits = {}
        for split, n_classes in zip(("meta-train", "meta-val", "meta-test"), self.n_classes, strict=True):
            splits[split] = {f"{split} {k}": self.boards(random, size) for k in range(n_classes)}
        return self.from_arrays(splits)

    def boards(self, random: np.random.Generator, size: int) -> np.ndarray:
        tones = random.integers(0, 256, (2, 3), dtype=np.uint8)
        corners = random.integers(0, 8, (20, 2, 1))
        row, column = ((np.arange(size) + corner) // 4 for corner in corners.swapaxes(0, 1))
        return tones[(row[:, :, None] + column[:, None, :]) % 2]  # (20, size, size, 3)
