"""Words and images that the tests of several commands use."""

from pathlib import Path

import numpy as np
from PIL import Image

from helpers import TINY, flags

# Learns in twenty episodes, on images so noisy that it errs.
TRAIN = [
    "train", *TINY, "--input-bias", "-1", "-1", "--no-divide-gradient",
    *flags(lr=0.02, episodes=20, val_every=10, val_episodes=2, threads=1),
]  # fmt: skip
FEW = flags(n_query=3, episodes=6)
COLORS = {"blue [b]": (40, 60, 200), "green": (60, 180, 50), "red": (200, 50, 40)}


def paint(path: Path, color: tuple[int, int, int], seed: int) -> Path:
    """Write an image of noise around a color."""
    rng = np.random.RandomState(seed)
    pixels = np.array(color) + rng.randint(-40, 41, (40, 50, 3)) + rng.randint(-20, 21)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path
