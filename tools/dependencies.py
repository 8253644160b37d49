"""What the package depends on: the license of each dependency, and the pins and hashes of all of them.

    python tools/dependencies.py licenses        # name, version and license of what is installed here, and who needs it
    python tools/dependencies.py lock            # write constraints.txt and locked/*.txt from the newest versions
    python tools/dependencies.py lock --keep     # the same, but keep the pins that are there

`lock` needs uv, and downloads no packages.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
DEPENDENCIES: list[str] = PYPROJECT["project"]["dependencies"]
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]
# `make` builds without pip's build environment, whose packages would have no hashes. An editable build needs editables.
CORE = [*DEPENDENCIES, *PYPROJECT["build-system"]["requires"], "editables"]
# timm needs torchvision, which fits only one build of torch, and that differs between machines.
UNLOCKED = {"timm"}
ALL = [*CORE, *(text for name, extra in EXTRAS.items() if name not in UNLOCKED for text in extra)]
OLDEST_PYTHON = "3.11.5"  # the oldest one for which every pin exists
TORCH = "torch==2.13.0"  # the tested one; it is pinned, but not hashed
TO_BE_CONTINUED = " \\"  # ends a line whose hashes follow
# The build of torch differs between machines, and so does what only that build pulls in.
TORCH_BUILD = re.compile(r"nvidia-.*|cuda-.*|triton.*")


def closure(requirements: Iterable[str]) -> dict[str, metadata.Distribution]:
    """The installed distributions that these requirements need, and what those need in turn, by canonical name.

    Raises:
        PackageNotFoundError: One of them is not installed.
    """
    found: dict[tuple[str, frozenset[str]], metadata.Distribution] = {}
    todo = [Requirement(text) for text in requirements]
    while todo:
        requirement = todo.pop()
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key not in found:
            found[key] = metadata.distribution(requirement.name)
            for needed in map(Requirement, found[key].requires or ()):
                extras = ("", *requirement.extras)
                if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                    todo.append(needed)
    return {name: found[name, extras] for name, extras in sorted(found, key=lambda key: key[0])}


def license_of(distribution: metadata.Distribution) -> str:
    """The license that a distribution states, as an SPDX expression or in its own words."""
    info = distribution.metadata
    classifiers = [
        text.rpartition(" :: ")[2] for text in info.get_all("Classifier") or () if text.startswith("License")
    ]
    # Before SPDX expressions, some put the whole text into the field.
    stated = (info.get_all("License-Expression") or info.get_all("License") or [""])[0].strip()
    if stated and len(stated) < 80:
        return stated
    return ", ".join(classifiers) or stated.partition("\n")[0] or "not stated"


def licenses() -> None:
    """Print all dependencies that are installed, with version, license and who needs them."""
    needed_by: dict[str, list[str]] = {}
    for part, requirements in {"core": DEPENDENCIES, **EXTRAS}.items():
        try:
            names = closure(requirements)
        except metadata.PackageNotFoundError as missing:
            print(f"{part}: not installed ({missing.name} is missing)", file=sys.stderr)  # noqa: T201
            continue
        for name in names:
            needed_by.setdefault(name, []).append(part)
    for name, parts in sorted(needed_by.items()):
        found = metadata.distribution(name)
        who = "core" if "core" in parts else ", ".join(parts)
        print(f"{name:28} {found.version:14} {license_of(found):46} {who}")  # noqa: T201


def lock(keep: Path | None) -> None:
    """Write the newest versions that go together to constraints.txt, and the same with hashes to locked/.

    Args:
        keep: A file of pins that are kept as they are.
    """
    everything = resolve(ALL, keep)
    with tempfile.NamedTemporaryFile("w") as pins:
        pins.write("".join(f"{entry.splitlines()[0].removesuffix(TO_BE_CONTINUED)}\n" for entry in everything.values()))
        pins.flush()
        core = resolve(CORE, Path(pins.name)).keys()
    head = (
        "# The tested version of every dependency, of the package and its extras but timm. Made by: make constraints\n"
    )
    lines = [entry.splitlines()[0].removesuffix(TO_BE_CONTINUED) for entry in everything.values()]
    (ROOT / "constraints.txt").write_text(head + "\n".join(lines) + "\n")
    (ROOT / "locked").mkdir(exist_ok=True)
    parts = {
        "core": ("what the package needs, and what builds it", everything.keys() & core),
        "extras": ("what the extras need besides core.txt", everything.keys() - core),
    }
    for part, (about, names) in parts.items():
        head = f"# The files of {about}: constraints.txt with hashes.\n# Made by: make constraints\n"
        text = "".join(entry for name, entry in everything.items() if name in names - {"torch"})
        (ROOT / "locked" / f"{part}.txt").write_text(head + text)


def resolve(requirements: Iterable[str], keep: Path | None) -> dict[str, str]:
    """The pin of each package that some requirements need, with its marker and hashes, by canonical name.

    Covers every platform and every supported Python. The build of torch is left out.
    """
    with tempfile.NamedTemporaryFile("w") as torch:
        torch.write(TORCH)
        torch.flush()
        command = f"uv pip compile - --universal --python-version {OLDEST_PYTHON} --generate-hashes --no-annotate"
        command += f" --no-header --quiet --constraint {torch.name}{f' --constraint {keep}' if keep else ''}"
        text = "\n".join(requirements)
        compiled = subprocess.run(command.split(), input=text, stdout=subprocess.PIPE, check=True, text=True).stdout
    entries = re.findall(r"^\S.*\n(?: .*\n)*", compiled, re.MULTILINE)
    named = {canonicalize_name(entry.partition("==")[0]): entry for entry in entries}
    return {name: entry for name, entry in named.items() if not TORCH_BUILD.fullmatch(name)}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["licenses"]:
            licenses()
        case ["lock"]:
            lock(None)
        case ["lock", "--keep"]:
            lock(ROOT / "constraints.txt")
        case _:
            raise SystemExit("usage: python tools/dependencies.py licenses | lock [--keep]")
