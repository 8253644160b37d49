"""A cache of its own for every test, so that decoding is tested and nothing is left behind."""

import os
from pathlib import Path

import pytest

REAL = Path(os.environ.get("METALSTM_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv("METALSTM_CACHE", str(path))
    return path


@pytest.fixture(scope="session")
def session_cache() -> str:
    """The cache of all tests and sessions."""
    return os.environ["METALSTM_CACHE"]


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("real-cache")


@pytest.fixture
def real_data(real_cache, monkeypatch) -> Path:
    """The real data, to be decoded anew once per session; skips the test if it is not there."""
    if not (REAL / "omniglot").is_dir():
        pytest.skip(f"the real data is not in {REAL}")
    monkeypatch.setenv("METALSTM_CACHE", str(real_cache))
    return REAL
