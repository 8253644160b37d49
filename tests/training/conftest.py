"""What the tests of training share: a folder of small images, decoded once."""

from pathlib import Path
from typing import Any

import pytest

# `helpers` is imported within the fixtures: it notes the session's cache, which is not set yet when pytest reads this.


@pytest.fixture(autouse=True)
def _one_thread():
    import helpers

    with helpers.one_thread():
        yield


@pytest.fixture(scope="package")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _decode_into(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("METALSTM_CACHE", str(cache))


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import helpers

    return helpers.make_folder(tmp_path_factory.mktemp("images") / "patterns")


@pytest.fixture
def meta_sets(folder: Path, _decode_into: None) -> Any:
    import helpers

    return helpers.load_folder(folder)
