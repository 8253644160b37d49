from dataclasses import dataclass, field

import pytest

from metalstm.cli.options import KINDS, field_docstrings, kind_of, option_names, traits_of
from metalstm.errors import UserError
from metalstm.methods import METHODS
from metalstm.settings import Traits


@dataclass(frozen=True)
class Inner:
    """A part."""

    one: int = 1
    """First."""
    two_words: int = 2


@dataclass(frozen=True)
class Outer(Inner):
    """The whole."""

    three: str = ""
    """Third, over
    two lines."""
    inner: Inner = field(default_factory=Inner)


def test_options_are_those_of_all_parts():
    assert option_names(Outer) == ["--one", "--two-words", "--three", "--one", "--two-words"]


def test_docstrings_of_fields_are_one_line_and_inherited():
    assert field_docstrings(Outer) == {"one": "First.", "three": "Third, over two lines."}


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_of_a_method_has_a_docstring(method):
    settings = METHODS[method].Settings
    assert [f"--{name.replace('_', '-')}" for name in field_docstrings(settings)] == option_names(settings)


def test_a_kind_says_what_the_images_of_a_folder_show():
    assert traits_of("folder:nowhere", "auto") is None
    assert traits_of("folder:nowhere", "drawing") == Traits(drawing=True, mirrors=False, centered=True)
    assert traits_of("folder:nowhere", "photo") == Traits(drawing=False, mirrors=True)
    assert [kind_of(traits) for traits in KINDS.values()] == list(KINDS)
    assert kind_of(Traits(mirrors=False)) == "auto"


def test_a_named_data_set_refuses_another_kind():
    assert traits_of("omniglot", "drawing") is None
    assert traits_of("cifar-fs", "photo") is None
    with pytest.raises(UserError) as error:
        traits_of("omniglot", "photo")
    assert str(error.value) == "--kind photo: omniglot holds drawings: leave it out; it is for folder:DIR"
    with pytest.raises(UserError, match="--kind drawing: cifar-fs holds photos: "):
        traits_of("cifar-fs", "drawing")
