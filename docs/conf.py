"""How the documentation site is built: `make docs`. A warning fails the build; pages need no network to be read."""

import contextlib
import inspect
import io
import os
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.docutils import SphinxDirective

import metalstm
from metalstm import cli, recipes, settings
from metalstm.cli.options import field_docstrings
from metalstm.data import DATASETS, SPLITS
from metalstm.learners import LEARNERS
from metalstm.methods import METHODS
from metalstm.optimizers import OPTIMIZERS
from metalstm.settings import TrainingSettings, Traits

project = "metalstm"
author = "The metalstm authors"
version = release = metalstm.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
# The source folder is the repository, so that a link from a guide to results works here and on a forge.
include_patterns = ["docs/**", "results/**", "benchmarks/*.md", "*.md"]
exclude_patterns = [".*", "build", "runs", "demo", "src", "tests", "README.md"]
root_doc = "docs/index"

html_theme = "furo"
html_title = f"metalstm {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_additional_pages = {"index": "redirect.html"}
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathml"
highlight_language = "none"
pygments_style, pygments_dark_style = "default", "github-dark"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_url_schemes = {"http": None, "https": None, "source": {"url": "../_modules/metalstm/{{path}}.html"}}

default_role = "py:obj"
napoleon_numpy_docstring = False
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["gradio"]  # only the web page imports it
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

WIDTH = 88  # of help, in characters


class Help(SphinxDirective):
    """`{help} COMMAND`: what `metalstm COMMAND --help` prints."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The text as a block."""
        printed = io.TextIOWrapper(io.BytesIO(), "utf-8")
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            cli.parse([self.arguments[0], "--help"])
        printed.seek(0)
        text = "".join(textwrap.fill(line, WIDTH) + "\n" if len(line) > WIDTH else line for line in printed)
        return [nodes.literal_block(text, text, language="none")]


class Differences(SphinxDirective):
    """`{differences}`: a table of the Meta-LSTM's settings in which the recipes differ."""

    def run(self) -> list[nodes.Node]:
        """Option, meaning, `paper`, `best` for glyphs and for other data."""
        choices = (("paper", "cifar-fs"), ("best", "glyphs"), ("best", "omniglot"), ("best", "cifar-fs"))
        columns = [recipes.named("meta-lstm", recipe, DATASETS[data].traits, 5) for recipe, data in choices]
        lines = [
            "| option | what it is | `paper` | `best`, glyphs | `best`, Omniglot | `best`, photos |",
            "|---|---|---|---|---|---|",
        ]
        for part in ("settings", "learner_settings", "optimizer_settings", "training"):
            help_of = field_docstrings(type(getattr(columns[0], part)))
            for field in fields(getattr(columns[0], part)):
                values = [getattr(getattr(column, part), field.name) for column in columns]
                if any(value != values[0] for value in values):
                    meaning = help_of[field.name].split(". ")[0].rstrip(". ")
                    shown = " | ".join(map(_shown, values))
                    lines.append(f"| `{settings.option(field.name)}` | {meaning} | {shown} |")
        return self.parse_text_to_nodes("\n".join(lines))


class Entries(SphinxDirective):
    """`{entries} methods`: the entries of a table with label, settings and help; likewise for the other tables."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A section for each entry; one table for data sets and for the settings of training."""
        lines = {
            "methods": _methods,
            "learners": lambda: _classes(LEARNERS),
            "optimizers": lambda: _classes(OPTIMIZERS),
            "datasets": _datasets,
            "traits": lambda: _settings(Traits),
            "training": lambda: _settings(TrainingSettings),
        }[self.arguments[0]]()
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


class Modules(SphinxDirective):
    """`{modules} methods`: the reference of every file of a package, so that a new file is in it by itself."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A section for each file, `base` first."""
        package = import_module(f"metalstm.{self.arguments[0]}")
        names = sorted(
            (module.name for module in iter_modules(package.__path__)), key=lambda name: (name != "base", name)
        )
        lines = [f"## `metalstm.{self.arguments[0]}`", "", *_automodule(package.__name__, "   :no-members:")]
        own = [name for name, value in vars(package).items() if getattr(value, "__module__", "") == package.__name__]
        for name in own:
            if not name.startswith("_"):
                directive = "autoclass" if inspect.isclass(getattr(package, name)) else "autofunction"
                lines += ["```{eval-rst}", f".. {directive}:: {package.__name__}.{name}", "```", ""]
        for name in names:
            lines += [f"### `{package.__name__}.{name}`", "", *_automodule(f"{package.__name__}.{name}")]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def _automodule(name: str, *options: str) -> list[str]:
    return ["```{eval-rst}", f".. automodule:: {name}", *options, "```", ""]


def _methods() -> Iterator[str]:
    for name, method in METHODS.items():
        yield from (f"### {name}", "", f"**{method.label}.** {_about(method)}", "")
        recipe = recipes.named(name, "best", Traits(), 5)
        facts = [f"learner of its recipes: `{recipe.learner}`"]
        if recipe.optimizer:
            facts.append(f"inner optimizer: `{recipe.optimizer}`")
        if rows := ", ".join(f"`{row.name}`" for row in method.rows()):
            facts.append(f"rows of `metalstm table`: {rows}")
        yield from ("; ".join(facts).capitalize() + ".", "", *_settings(method.Settings), "")


def _classes(table: dict[str, Any]) -> Iterator[str]:
    for name, kind in table.items():
        label = f"**{kind.label}.** " if hasattr(kind, "label") else ""
        yield from (f"### {name}", "", label + _about(kind), "", *_settings(kind.Settings), "")


def _datasets() -> Iterator[str]:
    yield f"| name | image | classes in {', '.join(SPLITS)} | traits | groups | columns of its table | license |"
    yield "|---|---|---|---|---|---|---|"
    for name, dataset in DATASETS.items():
        image = "x".join(map(str, dataset.image_shape))
        traits = ", ".join(trait for trait, holds in vars(dataset.traits).items() if holds)
        tasks = ", ".join(f"{n_way}-way {n_shot}-shot" for n_way, n_shot in dataset.tasks)
        tasks += "".join(f", {n_way}-way {n_shot}-shot within a group" for n_way, n_shot in dataset.group_tasks)
        classes = ", ".join(f"{count:,}" for count in dataset.n_classes)
        yield f"| `{name}` | {image} | {classes} | {traits} | {dataset.groups} | {tasks} | {dataset.licence} |"


def _settings(kind: type) -> Iterator[str]:
    """A table of the fields of a dataclass."""
    help_of = field_docstrings(kind)
    options = fields(kind)  # pyright: ignore[reportArgumentType]
    if not options:
        yield "No settings of its own."
        return
    yield from ("| setting | default | meaning |", "|---|---|---|")
    for field in options:
        value = field.default if field.default_factory is MISSING else field.default_factory()
        yield f"| `{field.name}` | {_shown(value)} | {help_of[field.name].replace('|', chr(92) + '|')} |"


def _about(kind: type) -> str:
    """The first paragraph of a docstring."""
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()).replace("<", r"\<").replace("*", r"\*")


def _shown(value: Any) -> str:
    if isinstance(value, tuple) and all(isinstance(each, (int, float)) for each in value) and len(value) == 2:
        return _shown(value[0]) if value[0] == value[1] else f"{_shown(value[0])} to {_shown(value[1])}"
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "none"}[value]
    return value if isinstance(value, str) else f"{value:,}"


def mathml(self: Any, node: nodes.math | nodes.math_block) -> None:
    """Write equations as MathML. Browsers render it without a script, a font or the network."""
    block = isinstance(node, nodes.math_block)
    text = tex2mathml(node.astext(), as_block=block)
    self.body.append(f'<div class="math">{text}</div>' if block else text)
    raise nodes.SkipNode


def code(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn `code` that cannot be the name of an object into ``code``, which is taken as it is."""

    def marked(match: re.Match[str]) -> str:
        return match[0] if re.fullmatch(r"[\w.]+", match[2]) else f"``{match[2]}``"

    lines[:] = re.sub(r"(`+)(.+?)\1", marked, "\n".join(lines), flags=re.DOTALL).split("\n")


def escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape bars and stars outside ``code``: docstrings are plain text, `|x|` is not a substitution."""
    lines[:] = [re.sub(r"(``.*?``)|(?<!\\)([|*])", lambda m: m[1] or f"\\{m[2]}", line) for line in lines]


def link_to_source(app: Any, docname: str, content: list[str]) -> None:
    """Point the links of guides to source files at their pages in the site."""
    content[0] = re.sub(r"\]\(\.\./src/metalstm/(\w+(?:/\w+)*)\.py\)", r"](source:\1)", content[0])


def setup(app: Any) -> None:
    """Register directives and events."""
    os.environ.update(COLUMNS=str(WIDTH), NO_COLOR="1")
    app.add_directive("help", Help)
    app.add_directive("differences", Differences)
    app.add_directive("entries", Entries)
    app.add_directive("modules", Modules)
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    app.connect("autodoc-process-docstring", code, priority=400)  # before napoleon, which splits lines at colons
    app.connect("autodoc-process-docstring", escape)
    app.connect("source-read", link_to_source)
