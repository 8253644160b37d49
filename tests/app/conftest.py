"""One server for all tests of the page."""

import signal
from collections.abc import Iterator

import pytest

from app.serving import end, start


@pytest.fixture(scope="package")
def url(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("app")
    process, said = start(folder)
    assert said.startswith("The page is at http://127.0.0.1:"), said
    yield said.split()[4]
    assert list(folder.glob("metalstm-*"))
    end(process, folder, signal.SIGINT)
    assert set((folder / "hosts.txt").read_text().split()) <= {"127.0.0.1", "localhost", "None"}
