"""The documentation builds without a warning, needs no network, leaves no public name out, and its examples run."""

import importlib
import inspect
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import metalstm
from metalstm import cli
from metalstm.data import DATASETS
from metalstm.learners import LEARNERS
from metalstm.methods import METHODS
from metalstm.optimizers import OPTIMIZERS
from metalstm.settings import NoSettings, Traits

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs").glob("*.md"))
# A block may stand under a comment: "not run: WHY" only parses its commands; "run with: OPTIONS" adds options to them,
# so that hours become seconds.
BLOCK = re.compile(
    r"(?:^<!-- (not run|run with): (.*?) -->\n)?^```(python|console)\n(.*?)^```", re.DOTALL | re.MULTILINE
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", ".", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


class Loads(HTMLParser):
    """What a page has the browser load."""

    def __init__(self, page: str):
        super().__init__()
        self.targets: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if (name in ("src", "srcset", "data", "poster") or (tag == "link" and name == "href")) and value:
                self.targets.append(value)


def test_no_page_loads_anything_from_another_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text("utf-8")
        for target in Loads(text).targets:
            assert not re.match(r"(\w+:)?//", target), f"{page.name} loads {target}"
            assert target.startswith("data:") or (page.parent / re.split("[?#]", target)[0]).exists(), target
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", style.read_text("utf-8")), style


def test_equations_are_set_by_the_browser(site):
    assert (site / "docs/meta-lstm.html").read_text("utf-8").count("<math") > 10


def test_the_page_of_methods_has_each_and_says_which_are_transductive():
    text = (ROOT / "docs" / "methods.md").read_text()
    first_cells = re.findall(r"^\| `(\w[\w-]*)` \|", text, re.MULTILINE)
    assert sorted(first_cells) == sorted(METHODS.keys() - {"pixels"})
    said = re.search(r"^\| (.*) \| all others \|$", text, re.MULTILINE)
    assert said is not None

    def transductive(name: str, recipe: str) -> bool:
        settings = METHODS[name].recipe(recipe, Traits(), 1).settings
        return getattr(settings, "query_norm", None) == "batch"

    assert set(re.findall("`([^`]+)`", said[1])) == {name for name in METHODS if transductive(name, "paper")}
    assert not any(transductive(name, "best") for name in METHODS)


def test_pictures_are_light():
    for picture in (ROOT / "docs").rglob("*.png"):
        assert picture.stat().st_size < 200_000, picture


def public(module_name: str) -> Iterator[str]:
    """Full names of the classes and functions that a module defines, and of what its classes do."""
    module = importlib.import_module(module_name)
    for name, value in vars(module).items():
        own = getattr(value, "__module__", None) == module_name and not name.startswith("_")
        if not own or not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        yield f"{module_name}.{name}"
        if inspect.isclass(value):
            for member, what in vars(value).items():
                does = isinstance(what, (property, classmethod, staticmethod)) or inspect.isfunction(what)
                if does and not member.startswith("_"):
                    yield f"{module_name}.{name}.{member}"


def test_every_public_name_is_in_the_reference(site):
    """Sphinx leaves out what has no docstring."""
    described = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    names = {line.split()[0] for line in described.splitlines()}
    modules = [module.name for module in pkgutil.walk_packages(metalstm.__path__, "metalstm.")]
    missing = [
        name for module in modules if module != "metalstm.__main__" for name in public(module) if name not in names
    ]
    assert not missing, "without a docstring, or in no page of docs/api"


def test_every_command_is_in_the_reference(site):
    page = (site / "docs/commands.html").read_text("utf-8")
    for command in cli.COMMANDS:
        assert f"usage: metalstm {command}" in page, command


@pytest.mark.parametrize(
    "table", [METHODS, LEARNERS, OPTIMIZERS, DATASETS], ids=("methods", "learners", "optimizers", "data")
)
def test_every_entry_of_a_table_is_in_the_reference(table, site):
    page = (site / "docs/entries.html").read_text("utf-8")
    for name, entry in table.items():
        assert f">{name}<" in page, name
        for field in fields(getattr(entry, "Settings", NoSettings)):
            assert f">{field.name}<" in page, f"{name}: {field.name}"


# The examples of the guides.


def blocks(guide: Path) -> list[tuple[str | None, str, str, str]]:
    """Mark, text of the mark, language and text of each example."""
    return [
        (mark or None, says, language, text) for mark, says, language, text in BLOCK.findall(guide.read_text("utf-8"))
    ]


def examples(text: str) -> Iterator[tuple[str, str]]:
    """Commands of a console block, each with the output that is shown."""
    text = re.sub(r"\\\n", "\\\n\0", text)  # a command goes on in the next line
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, output = re.split(r"\n(?!\0)", part, maxsplit=1)
        yield command.replace("\0", ""), output


def as_pattern(output: str) -> str:
    """A pattern of shown output: any number for a number, any space for a space, anything for `...`."""
    words = [re.sub(r"(?:\\\.\\\.\\\.)", ".*", re.escape(word)) for word in output.split()]
    return r"\s+".join(re.sub(r"\d[\d,]*(?:\\\.\d+)?", r"[\\d.,]+", word) for word in words)


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """A folder with what readers are assumed to have: photos, new photos, and a data set of their own."""
    rng = np.random.default_rng(0)

    def photo(path: str, class_number: int) -> None:
        color = np.array([[220, 60, 40], [40, 160, 60], [50, 80, 200]])[class_number % 3]
        noise = rng.integers(-30, 30, (48, 64, 3)) + 8 * (class_number // 3)
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((color + noise).clip(0, 255).astype(np.uint8)).save(tmp_path / path)

    for number, bird in enumerate(("bullfinch", "greenfinch", "blue tit")):
        for k in range(3 + number):
            photo(f"photos/{bird}/{k}.jpg", number)
        photo(f"new/{number}.jpg", number)
        photo(f"more/{bird}/9.jpg", number)
    for number in range(15):
        for k in range(20):
            photo(f"birds/species {number:02}/{k}.png", number)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_the_examples_of_a_guide_run(guide, desk):
    names: dict[str, object] = {}
    for mark, says, language, text in blocks(guide):
        if mark == "not run":
            continue
        if language == "python":
            exec(compile(text, guide.name, "exec"), names)
            continue
        for command, output in examples(text):
            if mark == "run with":
                command = re.sub(r"(metalstm \w+[^#|>]*)", rf"\1 {says} ", command)
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            assert re.search(as_pattern(output), done.stdout + done.stderr, re.DOTALL), f"{command}\n{done.stdout}"


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_the_commands_of_a_guide_can_be_parsed(guide, desk):
    for _, _, language, text in blocks(guide):
        for command, _ in examples(text) if language == "console" else ():
            for argv in re.findall(r"\bmetalstm ((?:[^#|\n]|\\\n)+)", command):
                if (words := shlex.split(argv.replace("\\\n", " "), comments=True)) and "--help" not in words:
                    cli.parse(words)
