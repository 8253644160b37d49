"""A table so small that its rows take seconds."""

import numpy as np
import pytest
from PIL import Image

from metalstm.data import SPLITS
from metalstm.methods import Search
from metalstm.table import Budget, Table

BUDGET = Budget(
    train_episodes=4, val_every=2, val_episodes=2, search=Search(few=2, many=3, read_at=(1, 2)), test_episodes=4
)


@pytest.fixture(scope="session")
def small_sets(tmp_path_factory):
    """Fifteen classes of twenty images in three splits."""
    from helpers import SIZE, load_folder  # after pytest has set the cache

    root = tmp_path_factory.mktemp("table")
    for k in range(15):
        (root / f"class {k:02}").mkdir(parents=True)
        pattern = np.random.RandomState(k).randint(0, 200, (4, 4, 3))
        for image in range(20):
            grain = np.random.RandomState([k, image]).randint(0, 50, (SIZE, SIZE, 3))
            pixels = np.kron(pattern, np.ones((SIZE // 4, SIZE // 4, 1), int)) + grain
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"class {k:02}" / f"{image}.png")
    for number, split in enumerate(SPLITS):
        names = (f"class {k:02}\n" for k in range(5 * number, 5 * number + 5))
        (root / f"{split}.txt").write_text("".join(names))
    return load_folder(root)


@pytest.fixture
def small_table(small_sets, tmp_path) -> Table:
    """Nothing is made yet."""
    return Table(small_sets, tmp_path / "out", BUDGET)
