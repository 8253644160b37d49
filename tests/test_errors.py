"""Messages: one line each, of bounded length."""

import pytest

from metalstm.errors import Problems, UserError


@pytest.mark.parametrize("name", ["a" * 10_000, "a b" * 5_000, "a\n" * 5_000])
def test_a_message_keeps_its_start_and_its_end_whatever_is_between(name):
    for error in (UserError(f"cannot read {name}: mend it"), Problems("", [f"cannot read {name}: mend it"], "leave")):
        said = str(error)
        assert said.startswith("cannot read a")
        assert ": mend it" in said
        assert len(said.splitlines()) == 1
        assert len(said) < 2100


def test_a_message_of_usual_length_is_whole():
    text = "x" * 2000
    assert str(UserError(text)) == text
    assert len(str(UserError(text + "x"))) == 2000
