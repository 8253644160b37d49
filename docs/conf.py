"""How the documentation site is made: `make docs`. A warning fails the build, and no page needs the network."""

import contextlib
import io
import os
import re
import textwrap
from dataclasses import asdict
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

import metalstm
from metalstm import cli, recipes

project = "metalstm"
author = "The metalstm authors"
version = release = metalstm.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
# The source is the repository, so that a link from guide to results is the same here and on a forge.
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
autodoc_mock_imports = ["gradio"]  # which the page's code imports, and nothing else needs
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
            cli._parse([self.arguments[0], "--help"])
        printed.seek(0)
        text = "".join(textwrap.fill(line, WIDTH) + "\n" if len(line) > WIDTH else line for line in printed)
        return [nodes.literal_block(text, text, language="none")]


class Differences(SphinxDirective):
    """`{differences}`: a table of the Meta-LSTM's settings in which the recipes differ."""

    def run(self) -> list[nodes.Node]:
        """Option, what it is, `paper`, `best` on glyphs and on other data."""
        choices = (("paper", "cifar-fs"), ("best", "glyphs"), ("best", "omniglot"), ("best", "cifar-fs"))
        recipes_ = [asdict(part) for choice in choices for part in recipes.named("meta-lstm", *choice, 5)]
        columns = [settings | training for settings, training in zip(recipes_[::2], recipes_[1::2], strict=True)]
        documented = ModuleAnalyzer.for_module("metalstm.recipes").find_attr_docs()
        lines = ["| option | what it is | `paper` | `best`, glyphs | Omniglot | photos |", "|---|---|---|---|---|---|"]
        for name, value in columns[0].items():
            if any(column[name] != value for column in columns):
                group = "MetaLSTMSettings" if name in recipes_[0] else "TrainingSettings"
                told = " ".join(documented[group, name]).split(". ")[0].rstrip(". ")
                values = " | ".join(map(_shown, (column[name] for column in columns)))
                lines.append(f"| `--{name.replace('_', '-')}` | {told} | {values} |")
        return self.parse_text_to_nodes("\n".join(lines))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return _shown(value[0]) if value[0] == value[1] else f"{_shown(value[0])} to {_shown(value[1])}"
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "none"}[value]
    return value if isinstance(value, str) else f"{value:,}"


def mathml(self: Any, node: nodes.math | nodes.math_block) -> None:
    """Equations as MathML, which browsers set themselves: no script, no font, no network."""
    block = isinstance(node, nodes.math_block)
    text = tex2mathml(node.astext(), as_block=block)
    self.body.append(f'<div class="math">{text}</div>' if block else text)
    raise nodes.SkipNode


def escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with `code` in them: `|x|` is no substitution."""
    lines[:] = [line.replace("|", r"\|") for line in lines]


def link_to_source(app: Any, docname: str, content: list[str]) -> None:
    """Links of guides to source files lead to their pages in the site."""
    content[0] = re.sub(r"\]\(\.\./src/metalstm/(\w+(?:/\w+)*)\.py\)", r"](source:\1)", content[0])


def setup(app: Any) -> None:
    """Register what stands above."""
    os.environ.update(COLUMNS=str(WIDTH), NO_COLOR="1")
    app.add_directive("help", Help)
    app.add_directive("differences", Differences)
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    app.connect("autodoc-process-docstring", escape)
    app.connect("source-read", link_to_source)
