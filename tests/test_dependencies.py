"""What is installed: only what is declared, pinned and hashed."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from dependencies import ALL, CORE, DEPENDENCIES, EXTRAS, ROOT, TORCH_BUILD, UNLOCKED, closure, license_of
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

USERS = [text for extra, requirements in EXTRAS.items() if extra != "dev" for text in requirements]


def names(requirements: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def apart() -> set[str]:
    """What the extras outside of the lock need."""
    return names(text for extra in UNLOCKED for text in EXTRAS[extra])


def imports(folder: Path) -> Iterator[tuple[str, str]]:
    """(top-level module, where) of every absolute import; also those by name, as in `import_module("x.y")`."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Import(names=aliases):
                    modules = [alias.name for alias in aliases]
                case ast.ImportFrom(module=str(module), level=0):
                    modules = [module]
                case ast.Call(
                    func=ast.Name(id="import_module") | ast.Attribute(attr="import_module" | "importorskip"),
                    args=[ast.Constant(value=str(module)), *_],
                ):
                    modules = [module]
                case _:
                    modules = []
            for module in modules:
                yield module.partition(".")[0], f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def undeclared(folder: Path, declared: set[str], own: set[str]) -> list[str]:
    """Imports of what is neither in the standard library, nor of the project, nor declared."""
    providers = packages_distributions()
    return [
        f"{where} imports {module}"
        for module, where in imports(folder)
        if module not in sys.stdlib_module_names | own | {"metalstm"}
        and not declared & {canonicalize_name(name) for name in providers.get(module, (module,))}
    ]


def test_package_imports_only_what_is_declared():
    # Only scikit-learn itself calls the one function that imports it.
    assert not undeclared(ROOT / "src", names([*DEPENDENCIES, *USERS]), {"sklearn"})


def test_package_declares_only_what_it_imports():
    providers = packages_distributions()
    used = {canonicalize_name(name) for module, _ in imports(ROOT / "src") for name in providers.get(module, ())}
    assert names(DEPENDENCIES) <= used


@pytest.mark.parametrize("folder", ["tests", "tools"])
def test_developers_import_only_what_is_declared(folder):
    own = {path.stem for each in ("tests", "tests/hostile", "benchmarks", "tools") for path in (ROOT / each).glob("*")}
    assert not undeclared(ROOT / folder, names([*DEPENDENCIES, *EXTRAS["dev"]]) | apart(), own)


def test_undeclared_import_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("test_dependencies.ROOT", tmp_path)
    (tmp_path / "one.py").write_text("import os, json\nfrom numpy import array\ndef late():\n    import yaml.nodes\n")
    assert undeclared(tmp_path, {"numpy"}, set()) == ["one.py:4 imports yaml"]


def test_developers_have_all_extras():
    """Every extra but those apart is within dev, so that each one is pinned, hashed and tested."""
    assert names(USERS) <= names(EXTRAS["dev"]) | apart()


def locked(part: str) -> dict[str, Requirement]:
    """The pin of each package of a lock file; each has hashes."""
    text = (ROOT / "locked" / f"{part}.txt").read_text("utf-8")
    found = {}
    for entry in re.sub(r"\\\n", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines():
        pin, *hashes = entry.split(" --hash=")
        assert hashes, f"{pin} has no hash"
        assert all(re.fullmatch("sha256:[0-9a-f]{64} *", each) for each in hashes), pin
        found[canonicalize_name(pin.partition("==")[0])] = Requirement(pin)
    return found


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in found}


def here(found: dict[str, Requirement]) -> set[str]:
    """Those that this platform and this Python need."""
    return {name for name, pin in found.items() if pin.marker is None or pin.marker.evaluate()}


def test_every_pin_but_that_of_torch_has_hashes():
    core, extras = locked("core"), locked("extras")
    assert not core.keys() & extras.keys()
    assert core | extras == {name: pin for name, pin in pins().items() if name != "torch"}


def test_every_dependency_is_pinned():
    needed = {name for name in closure(ALL) if not TORCH_BUILD.fullmatch(name)}
    assert needed == here(pins())
    core = {name for name in closure(CORE) if not TORCH_BUILD.fullmatch(name)}
    assert core == here(locked("core")) | {"torch"}


def test_licenses_are_listed():
    command = (sys.executable, ROOT / "tools" / "dependencies.py", "licenses")
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {line.split()[0] for line in listed} >= names([*DEPENDENCIES, *EXTRAS["dev"]])
    assert re.search(r"^numpy +\S+ +BSD-3-Clause.* core$", "\n".join(listed), re.MULTILINE)
    silent = [name for name in closure(ALL) if license_of(distribution(name)) == "not stated"]
    assert not silent
