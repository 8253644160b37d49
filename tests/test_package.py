"""What a user installs: the built wheel alone, outside the checkout, and the files around it."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from dependencies import UNLOCKED
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import metalstm

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run to the end, without the environment's ways to other packages."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
    return subprocess.run(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def run_well(*command: str | Path, cwd: Path) -> str:
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    run_well(*build, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def commands(wheel, tmp_path_factory) -> Path:
    """The commands of a new virtual environment, which has the wheel, and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("installed")
    run_well(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    bin_ = Path(sysconfig.get_path("scripts", "venv", {"base": str(folder)}))
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    pip = (sys.executable, "-m", "pip", "--python", bin_ / "python", "install", "--no-deps", "--no-index", wheel)
    run_well(*pip, cwd=folder)
    # Behind the wheel, and without the .pth files in there: so not the checkout, which is installed by one of them.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return bin_


def test_wheel_holds_the_package_and_nothing_else(wheel):
    source = ROOT / "src" / "metalstm"
    files = {path.relative_to(source.parent).as_posix() for path in source.rglob("*") if path.is_file()}
    files = {file for file in files if "__pycache__" not in file}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == files
    assert {"metalstm/py.typed", "metalstm/data/splits/cifar-fs/meta-test.txt"} <= names


def test_wheel_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = f"metalstm-{metalstm.__version__}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        assert archive.read(f"{info}/licenses/LICENSE").decode() == (ROOT / "LICENSE").read_text("utf-8")
    assert "License-Expression: MIT\n" in metadata
    assert "Requires-Python: <3.14,>=3.11\n" in metadata
    assert {f"Provides-Extra: {extra}" for extra in ("app", "dev", "export", "tensorboard")} <= set(
        metadata.splitlines()
    )


@pytest.mark.slow
def test_wheel_alone_runs_the_demo(commands, tmp_path):
    where = run_well(commands / "python", "-c", "import metalstm; print(metalstm.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(commands.parent)
    table = run_well(commands / "metalstm", "demo", "--episodes", "20", "--out", "demo run", cwd=tmp_path)
    assert re.search(r"Meta-LSTM\W+\d+\.\d+", table), table
    assert re.search(r"chance\W+20\.00 %", table), table
    assert (tmp_path / "demo run" / "report.html").read_text("utf-8").rstrip().endswith("</html>")


def test_command_is_installed(commands, tmp_path):
    assert "metalstm" in run_well(commands / "metalstm", "--help", cwd=tmp_path)


def test_help_does_not_wait_for_torch(tmp_path):
    program = """if True:
        import sys
        from metalstm.cli import main
        try:
            main(["--help"])
        except SystemExit as end:
            assert end.code == 0, end.code
        slow = {"torch", "tyro", "rich", "numpy", "matplotlib", "PIL"} & set(sys.modules)
        assert not slow, slow
    """
    assert "demo" in run_well(sys.executable, "-c", program, cwd=tmp_path)


def test_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert metalstm.__version__ == PROJECT["version"]
    assert f"\nversion: {PROJECT['version']}\n" in citation


def test_constraints_fit_the_requirements():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = {}
    for pin in (Requirement(line) for line in lines if not line.startswith("#")):
        (specifier,) = pin.specifier
        assert specifier.operator == "==", f"{pin} is not a pin"
        assert "+" not in specifier.version, f"{pin} is one build of many"
        pins[canonicalize_name(pin.name)] = specifier.version
    extras = PROJECT["optional-dependencies"].items()
    locked = (text for name, extra in extras if name not in UNLOCKED for text in extra)
    for text in (*PROJECT["dependencies"], *locked):
        requirement = Requirement(text)
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}, but constraints.txt has {version}"


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_says_which_python_it_needs(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "locked", tmp_path / "locked")
    for name, content in {"old": "echo 3.10", "bare": 'case "$2" in *ensurepip*) exit 1;; *) echo 3.12;; esac'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{content}\n")
        (tmp_path / name).chmod(0o755)
    done = run("make", "PYTHON=./old ./none ./bare", "demo", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        "metalstm needs Python 3.11 to 3.13 with venv, but found ./old: 3.10, ./none: missing, ./bare: 3.12 without "
        "venv: install one (Debian: apt install python3-venv), or name it: make PYTHON=/path/to/python3.12 demo"
    )
    assert not (tmp_path / ".venv").exists()
