"""Kernels for the tests that need them."""

import pytest

from metalstm import kernels


@pytest.fixture(scope="session")
def compiled_kernels() -> None:
    """Skips the test if this machine has no C++ compiler."""
    if not kernels.build():
        pytest.skip("no C++ compiler is here")
