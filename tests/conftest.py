"""Where tests find data, and how they are run: with one torch thread, and with shapes and types checked."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"

# Before torch is imported, and for the processes that tests start: xdist's workers share the cores, and a result does
# not depend on their number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if SHARED_DATA.is_dir():
    os.environ.setdefault("METALSTM_DATA", str(SHARED_DATA))

# Before anything imports metalstm.
jaxtyping.install_import_hook("metalstm", "beartype.beartype")


def pytest_configure(config: pytest.Config) -> None:
    """Decode once for all tests, workers and sessions; `pytest --cache-clear` starts anew."""
    # xdist's workers inherit it.
    if hasattr(config, "cache"):
        os.environ.setdefault("METALSTM_CACHE", str(config.cache.mkdir("metalstm")))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The real data; skips the test where there is none."""
    root = os.environ.get("METALSTM_DATA")
    if not root:
        pytest.skip(f"needs the real data: set METALSTM_DATA, or put it in {SHARED_DATA}")
    return Path(root)


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    """Kernels, where there is a compiler, so that all tests run on what users train with."""
    from metalstm import kernels

    kernels.build()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; skips the test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    flags = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync"
    flags += " --use-fake-device-for-media-stream --use-fake-ui-for-media-stream"  # a camera with a test picture
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=flags.split())
        yield chromium
        chromium.close()
