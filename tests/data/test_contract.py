"""What every data set in `DATASETS` promises. A new line in the table is tested here without a change."""

from pathlib import Path

import numpy as np
import pytest

from metalstm import data
from metalstm.data import DATASETS, SPLITS, Dataset, MetaSets, find
from metalstm.episodes import EpisodeSampler
from metalstm.errors import UserError
from metalstm.settings import Traits

from .checkerboards import Checkerboards
from .conftest import REAL

# The toy shows that one file is enough.
ENTRIES: dict[str, Dataset] = {**DATASETS, "checkerboards": Checkerboards()}


@pytest.fixture(params=ENTRIES)
def name(request) -> str:
    return request.param


@pytest.fixture
def dataset(name, monkeypatch) -> Dataset:
    monkeypatch.setitem(DATASETS, name, ENTRIES[name])
    return ENTRIES[name]


@pytest.fixture
def loadable(dataset, session_cache, monkeypatch) -> Dataset:
    """A data set that needs no download here."""
    if not dataset.is_here(REAL):
        pytest.skip(f"{dataset.name} is not in {REAL}")
    monkeypatch.setenv("METALSTM_CACHE", session_cache)
    return dataset


def test_it_describes_itself(name, dataset):
    assert dataset.name == name
    assert type(dataset).__doc__
    assert dataset.licence
    assert isinstance(dataset.traits, Traits)
    channels, height, width = dataset.image_shape
    assert channels in (1, 3)
    assert height == width >= 16, "the least that Conv4 takes"
    assert len(dataset.n_classes) == len(SPLITS)
    if dataset.traits.drawing:
        assert channels == 1
    record = next(record for record in data.describe(Path("nowhere")) if record.name == name)
    assert record.classes == dict(zip(SPLITS, dataset.n_classes, strict=True))
    assert record.present == (not dataset.files)


def test_its_table_is_feasible(dataset):
    assert len(set(dataset.tasks)) == len(dataset.tasks) > 0
    assert all(2 <= n_way <= min(dataset.n_classes) and n_shot >= 1 for n_way, n_shot in dataset.tasks)


def test_its_files_have_checksums(dataset):
    for file in dataset.files:
        assert not Path(file.path).is_absolute()
        assert file.md5 or file.rebuilt
        assert file.md5 or not file.url, "a download is checked by its md5"


def test_it_is_found_and_suggested(name, dataset):
    assert find(name) is dataset
    with pytest.raises(UserError) as error:
        data.load(f"{name}x")
    assert f"did you mean {name!r}? allowed: " in str(error.value)


def test_without_its_files_it_says_what_to_do(name, dataset, tmp_path):
    if not dataset.files:
        assert data.check(name, tmp_path) == data.fetch(name, tmp_path) == []
        return
    with pytest.raises(UserError, match=rf"^{name} needs .* in {tmp_path}.*: .*--data-root DIR$"):
        data.load(name, tmp_path)


@pytest.mark.slow
def test_it_loads_as_it_says(name, loadable):
    sets = data.load(name, REAL)
    assert isinstance(sets, MetaSets)
    assert (sets.name, sets.traits) == (name, loadable.traits)
    assert (sets.tasks, sets.group_tasks) == (loadable.tasks, loadable.group_tasks)
    assert sets.licence.startswith(loadable.licence)
    assert list(sets.splits) == list(SPLITS)
    for split, n_classes in zip(SPLITS, loadable.n_classes, strict=True):
        part = sets.splits[split]
        assert part.name == split
        assert len(part.classes) == n_classes
        assert list(part.classes) == sorted(set(part.classes))
        assert part.image_shape == loadable.image_shape
        assert part.images.dtype == np.uint8
        assert not part.images.flags.writeable
        assert (np.diff(part.spans) > 0).all()
        assert len(part.groups) == (len(part.classes) if loadable.groups else 0)
    assert tuple(len(set(part.groups)) for part in sets.splits.values()) == loadable.n_groups
    names = [label for part in sets.splits.values() for label in part.classes]
    assert len(set(names)) == len(names), "no class is in two splits"
    for n_way, n_shot in sets.tasks:
        for part in sets.splits.values():
            EpisodeSampler(part, n_way, n_shot)
    for n_way, n_shot in sets.group_tasks:
        for part in sets.splits.values():
            EpisodeSampler(part, n_way, n_shot, within_group=True)


@pytest.mark.slow
def test_its_digest_is_stable(name, loadable):
    first, second = (data.load(name, REAL) for _ in range(2))
    assert first.digest == second.digest
    assert len(first.digest) == 64


@pytest.mark.slow
def test_images_have_the_size_that_the_user_wants(name, loadable):
    if loadable.files:
        pytest.skip("tested with small files in the test of its own file")
    sets = data.load(name, REAL, 20)
    assert all(part.image_shape == (loadable.image_shape[0], 20, 20) for part in sets.splits.values())


@pytest.mark.slow
def test_drawings_are_light_on_dark(name, loadable):
    if not loadable.traits.drawing:
        pytest.skip("photos")
    for part in data.load(name, REAL).splits.values():
        assert part.images[:: len(part.images) // 100].mean() < 100
