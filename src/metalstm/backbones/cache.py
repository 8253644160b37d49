"""Features that were computed once: a database in the user's cache folder, by the content of image and network."""

import contextlib
import hashlib
import sqlite3
import time
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from metalstm.backbones.base import Backbone
from metalstm.data.places import cache_root
from metalstm.errors import UserError

MOST = 256_000_000  # bytes of features that are kept; those that were not used for longest go first
BATCH = 16  # images that a network sees at a time
WAIT = 10  # seconds for another process that writes


def features(
    backbone: Backbone, pixels: UInt8[np.ndarray, "n height width channels"]
) -> Float[np.ndarray, "n 1 n_features 1"]:
    """The features of images, each computed once: as images with one row of pixels, which learners take.

    Args:
        backbone: The network.
        pixels: As its `preprocessing` makes them.

    Raises:
        UserError: The network cannot take them, or a feature is not finite.
    """
    keys = [hashlib.sha256(backbone.key + image.tobytes()).digest() for image in pixels]
    found = _read(keys, backbone.n_features)
    missing = list({key: row for row, key in enumerate(keys) if key not in found}.values())
    new = {}
    for start in range(0, len(missing), BATCH):
        rows = missing[start : start + BATCH]
        values = backbone.compute(pixels[rows])
        if not np.isfinite(values).all():
            raise UserError(
                f"{backbone.name} gives features that are not finite: check its mean and std, or export it anew"
            )
        new |= {keys[row]: each for row, each in zip(rows, values, strict=True)}
    if new:
        _write(new)
    known = found | new
    rows = [known[key] for key in keys]
    return np.stack(rows)[:, None, :, None] if rows else np.empty((0, 1, backbone.n_features, 1), np.float32)


def _read(keys: Sequence[bytes], n_features: int) -> dict[bytes, np.ndarray]:
    """Those features that are there. A cache that cannot be used is empty."""
    found = {}
    with contextlib.suppress(sqlite3.Error, OSError), _open() as database:
        for key in keys:
            for (values,) in database.execute("select numbers from features where name = ?", (key,)):
                if isinstance(values, bytes) and len(values) == 4 * n_features:
                    found[key] = np.frombuffer(values, "<f4").astype(np.float32)
        now = int(time.time())
        database.executemany("update features set used = ? where name = ?", [(now, key) for key in found])
    return {key: values for key, values in found.items() if np.isfinite(values).all()}


def _write(new: dict[bytes, np.ndarray]) -> None:
    """Add features, and remove the oldest beyond `MOST`."""
    now = int(time.time())
    rows = [(key, values.astype("<f4").tobytes(), now) for key, values in new.items()]
    with contextlib.suppress(sqlite3.Error, OSError), _open() as database:
        database.executemany("insert or replace into features values (?, ?, ?)", rows)
        total = database.execute("select coalesce(sum(length(numbers)), 0) from features").fetchone()[0]
        if total > MOST:
            for name, size in database.execute("select name, length(numbers) from features order by used").fetchall():
                database.execute("delete from features where name = ?", (name,))
                total -= size
                if total <= MOST * 0.9:  # not again at once
                    break


@contextlib.contextmanager
def _open() -> Iterator[sqlite3.Connection]:
    """The database, made if there is none; one that is damaged is made anew.

    Raises:
        sqlite3.Error, OSError: It cannot be used here.
    """
    path = cache_root() / "features.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(2):
        with contextlib.closing(sqlite3.connect(path, timeout=WAIT)) as database:
            try:
                database.execute("create table if not exists features (name blob primary key, numbers blob, used int)")
            except sqlite3.OperationalError:  # locked, or not to be written to
                raise
            except sqlite3.DatabaseError:
                if attempt:
                    raise
                path.unlink(missing_ok=True)
                continue
            with database:
                yield database
            return
