"""The build: once, whole or not at all, and machines without a compiler."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metalstm import kernels
from metalstm.kernels import compiler

TRY = """
import logging, sys, torch
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from metalstm import kernels
print(kernels.available(), kernels.build(), kernels.build())
"""


def try_build(cache: Path, **environment: str) -> str:
    env = os.environ | {"METALSTM_CACHE": str(cache)} | environment
    return subprocess.run([sys.executable, "-c", TRY], env=env, capture_output=True, text=True, check=True).stdout


def test_build_once(compiled_kernels: None, tmp_path: Path):
    first, second = try_build(tmp_path), try_build(tmp_path)
    message = "compiling the kernels for this machine: this takes some seconds, once"
    assert first.splitlines() == [message, "False True True"]
    assert second.splitlines() == ["True True True"]
    assert len(list((tmp_path / "kernels").iterdir())) == 1


def test_no_compiler(tmp_path: Path):
    message, result = try_build(tmp_path, PATH=str(tmp_path), CXX="").splitlines()
    assert message == "found no C++ compiler (c++, g++, clang++): training runs in plain PyTorch, which is slower"
    assert result == "False False False"


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script as a compiler")
def test_broken_compiler(tmp_path: Path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'no such header' >&2\nexit 1\n")
    broken.chmod(0o755)
    output = try_build(tmp_path, CXX=str(broken))
    assert f"which is slower; {broken} cannot compile them: no such header" in output
    assert output.splitlines()[-1] == "False False False"
    assert not list((tmp_path / "kernels").iterdir())


def test_unwritable_cache(tmp_path: Path):
    (tmp_path / "kernels").write_text("in the way")
    output = try_build(tmp_path).splitlines()
    assert "training runs in plain PyTorch, which is slower; they cannot be kept in" in output[1]
    assert output[2:] == ["False False False"]


def test_damaged_build_is_replaced(compiled_kernels: None, tmp_path: Path):
    try_build(tmp_path)
    (path,) = (tmp_path / "kernels").iterdir()
    path.write_bytes(b"no library")
    assert try_build(tmp_path).splitlines()[-1] == "False True True"


def test_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("METALSTM_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    compiler.library.cache_clear()
    try:
        with caplog.at_level(logging.INFO):
            assert not kernels.build()
            assert not kernels.build()
        assert len(caplog.records) == 1
    finally:
        compiler.library.cache_clear()


def test_disabled(compiled_kernels: None):
    assert kernels.available()
    with kernels.disabled():
        assert not kernels.available()
        with kernels.disabled():
            pass
        assert not kernels.available()
    assert kernels.available()
