import shutil
import sys
from pathlib import Path

import pytest

from helpers import flags
from metalstm import checkpoint


def test_export_writes_beside_the_classifier(made, commands):
    for form, suffix in (("onnx", ".onnx"), ("torch", ".pt2")):
        status, out, err = commands("export", made, "--format", form)
        assert (status, out) == (0, ""), err
        path = made.with_suffix(suffix)
        assert err == f"{path}: takes uint8 (n, 32, 32, 3)\n"
        assert path.stat().st_size > 100_000
    assert commands.refusal("export", made, "--format", "onx") == (
        "unknown format 'onx', did you mean 'onnx'? allowed: html, onnx, torch"
    )


def test_the_page_needs_its_runtime(made, commands, tmp_path):
    remedy = (
        "run npm pack onnxruntime-web@1.30.0 where there is a network, and pass --runtime onnxruntime-web-1.30.0.tgz"
    )
    missing = tmp_path / "x.tgz"
    assert commands.refusal("export", made, "--format", "html", "--runtime", missing) == (
        f"cannot read {missing} (No such file or directory): {remedy}"
    )
    assert not made.with_suffix(".html").exists()
    assert commands.refusal("export", made, "--runtime", missing) == (
        "--runtime is for --format html only, not for onnx: leave it out"
    )


def test_the_page_is_one_file(made, commands):
    archive = Path(sys.prefix) / "onnxruntime-web-1.30.0.tgz"
    if not archive.is_file():
        pytest.skip(f"needs {archive}: make .venv/dev")
    page = made.with_suffix(".html")
    result = commands("export", made, "--format", "html", "--runtime", archive)
    assert result == (0, "", f"{page}: {page.stat().st_size / 1e6:.1f} MB; open it in a browser\n")


def test_a_head_and_a_backbone_that_was_moved(colors, commands, tmp_path):
    own = Path(shutil.copy(checkpoint.shipped()["meta-lstm-cifar-fs-5w1s"], tmp_path / "net.safetensors"))
    made, out = tmp_path / "made.safetensors", tmp_path / "made.onnx"
    assert commands("adapt", "photos", *flags(backbone=own, head="logistic", out=made), cwd=colors)[0] == 0
    moved = own.rename(tmp_path / "moved.safetensors")
    assert commands("export", made, "--head-only") == (0, "", f"{out}: takes floats (n, 64), features of {own}\n")
    assert commands("export", made, "--backbone", moved) == (0, "", f"{out}: takes uint8 (n, 32, 32, 3)\n")
    assert commands.refusal("export", made).startswith(f"no checkpoint at {own}: ")
    assert commands.refusal("export", made, "--head-only", "--format", "html") == (
        "--head-only is not for --format html, which takes images: leave it out, or pass --format onnx"
    )
