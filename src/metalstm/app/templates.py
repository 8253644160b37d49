"""The HTML fragments of the page, as jinja2 templates that escape what they are given."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(name: str, **values: Any) -> str:
    """The HTML that a template makes of some values.

    Args:
        name: The template's file, beside this one.
        values: The template's variables.
    """
    return _templates.get_template(name).render(values)
