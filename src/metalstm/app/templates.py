"""The HTML fragments of the page, as templates."""

from pathlib import Path
from typing import Any

from metalstm.templates import environment

_templates = environment(Path(__file__).parent)


def render(name: str, **values: Any) -> str:
    """The HTML that a template makes of some values.

    Args:
        name: The template's file, beside this one.
        values: The template's variables.
    """
    return _templates.get_template(name).render(values)
