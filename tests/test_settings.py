"""Settings: types and bounds, messages in words, and the way to JSON and back."""

import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from metalstm import settings
from metalstm.errors import UserError
from metalstm.settings import Count, Finite, NotNegative, Positive, Share, TrainingSettings, Traits, Weight


@dataclass(frozen=True)
class Inner:
    size: Count = 3


@dataclass(frozen=True)
class Everything:
    """One field for each kind of type."""

    count: Count = 1
    few: Annotated[int, Meta(ge=2, le=5)] = 2
    rate: Positive = 0.1
    decay: NotNegative = 0.0
    share: Share = 0.5
    weight: Weight = 1.0
    any_number: Finite = -3.0
    pair: tuple[Finite, Finite] = (1.0, 2.0)
    names: tuple[str, ...] = ("a",)
    maybe: Positive | None = None
    choice: Literal["sum", "mean"] = "sum"
    order: Literal[1, 2] = 1
    flag: bool = False
    text: str = ""
    inner: Inner = Inner()


RIGHT: dict[str, list[Any]] = {
    "count": [1, 10**9],
    "few": [2, 5],
    "rate": [1e-300, 1, 1e9],
    "decay": [0, 0.0, 1e9],
    "share": [0, 0.999],
    "weight": [1e-9, 1],
    "any_number": [-1e9, 0, 1e9],
    "pair": [(0, -5.0), (-1e9, 1e9)],
    "names": [(), ("a", "b", "c")],
    "maybe": [None, 0.5],
    "choice": ["mean"],
    "order": [2],
    "flag": [True],
    "text": ["", "anything 'quoted'"],
}
WRONG = [
    ("count", 0, "--count 0: must be at least 1 and at most 1e+09"),
    ("count", -3, "--count -3: must be at least 1 and at most 1e+09"),
    ("count", 1.5, "--count 1.5: must be a whole number, at least 1 and at most 1e+09"),
    ("count", "1", "--count 1: must be a whole number, at least 1 and at most 1e+09"),
    ("count", True, "--count True: must be a whole number, at least 1 and at most 1e+09"),
    ("count", None, "--count None: must be a whole number, at least 1 and at most 1e+09"),
    ("few", 6, "--few 6: must be at least 2 and at most 5"),
    ("rate", 0.0, "--rate 0.0: must be above 0 and at most 1e+09"),
    ("rate", -1, "--rate -1: must be above 0 and at most 1e+09"),
    ("rate", "fast", "--rate fast: must be a number, above 0 and at most 1e+09"),
    ("decay", -0.1, "--decay -0.1: must be at least 0 and at most 1e+09"),
    ("share", 1.0, "--share 1.0: must be at least 0 and below 1"),
    ("weight", 0.0, "--weight 0.0: must be above 0 and at most 1"),
    ("any_number", 1e10, "--any-number 10000000000.0: must be at least -1e+09 and at most 1e+09"),
    ("maybe", 0.0, "--maybe 0.0: must be above 0 and at most 1e+09 or None"),
    ("choice", "max", "--choice max: must be one of sum, mean"),
    ("order", 3, "--order 3: must be one of 1, 2"),
    ("flag", "yes", "--flag yes: must be True or False"),
    ("flag", 1, "--flag 1: must be True or False"),
    ("text", 5, "--text 5: must be a text"),
]
# Of the numbers that JSON can't write, and of lists: the whole message varies.
ODD = [
    *((name, value) for name in ("rate", "decay", "share", "weight", "any_number", "maybe") for value in
      (math.nan, math.inf, -math.inf)),
    ("pair", (1.0,)),
    ("pair", (1.0, 2.0, 3.0)),
    ("pair", (1.0, math.inf)),
    ("pair", 1.0),
    ("names", ("a", 1)),
    ("names", "abc"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in RIGHT.items() for value in values])
def test_what_is_allowed_passes_and_survives_json(name, value):
    each = replace(Everything(), **{name: value})
    settings.check(each)
    assert settings.from_dict(Everything, json.loads(json.dumps(settings.to_dict(each)))) == each
    assert settings.changed(Everything(), name, value) == each


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_what_is_not_allowed_is_refused_in_words(name, value, message):
    for call in (
        lambda: settings.check(replace(Everything(), **{name: value})),
        lambda: settings.from_dict(Everything, settings.to_dict(Everything()) | {name: value}),
        lambda: settings.changed(Everything(), name, value),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert str(error.value) == message


@pytest.mark.parametrize(("name", "value"), ODD)
def test_odd_values_are_refused_too(name, value):
    for call in (
        lambda: settings.check(replace(Everything(), **{name: value})),
        lambda: settings.from_dict(Everything, settings.to_dict(Everything()) | {name: value}),
    ):
        with pytest.raises(UserError, match=rf"^--{name.replace('_', '-')} .*: must be "):
            call()


def test_every_wrong_value_is_named():
    with pytest.raises(UserError) as error:
        settings.check(replace(Everything(), count=0, share=2.0), replace(TrainingSettings(), optimizer_lr=-1.0))
    assert str(error.value) == (
        "--count 0: must be at least 1 and at most 1e+09; --share 2.0: must be at least 0 and below 1; "
        "--optimizer-lr -1.0: must be above 0 and at most 1e+09"
    )


def test_fields_that_are_settings_are_read_too():
    values = settings.to_dict(replace(Everything(), inner=Inner(5)))
    assert values["inner"] == {"size": 5}
    assert settings.from_dict(Everything, values).inner == Inner(5)
    with pytest.raises(UserError, match=r"^--size 0: must be at least 1 and at most 1e\+09$"):
        settings.from_dict(Everything, values | {"inner": {"size": 0}})
    with pytest.raises(UserError, match=r"^Inner is 5: must be an object$"):
        settings.from_dict(Everything, values | {"inner": 5})


@pytest.mark.parametrize("values", [None, 3, "text", [], [["count", 1]]])
def test_what_is_no_object_is_refused(values):
    with pytest.raises(UserError, match=r"^Everything is .*: must be an object$"):
        settings.from_dict(Everything, values)


def test_names_are_checked():
    values = settings.to_dict(Everything())
    with pytest.raises(UserError, match=r"^Everything does not know cuont, other$"):
        settings.from_dict(Everything, values | {"cuont": 1, "other": 2})
    settings.check_names(Everything, values)
    with pytest.raises(UserError, match=r"^Everything lacks count and does not know cuont$"):
        settings.check_names(Everything, {"cuont": 1} | {k: v for k, v in values.items() if k != "count"})
    with pytest.raises(UserError, match=r"^Everything does not know 1$"):
        settings.check_names(Everything, {1: 2}, complete=False)


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, np.int64(3)])
def test_a_seed_is_a_whole_number_that_numpy_takes(seed):
    settings.check_seed(seed)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "1", None, True])
def test_other_seeds_are_refused(seed):
    with pytest.raises(UserError) as error:
        settings.check_seed(seed)
    assert str(error.value) == f"--seed {seed!r}: must be a whole number, at least 0 and below 2^32"


def test_a_message_shows_no_more_of_a_file_than_fits():
    long = "a" * 10_000
    for values in ({"count": long}, {long: 1}, {str(k): 1 for k in range(10_000)}, [long]):
        with pytest.raises(UserError) as error:
            settings.from_dict(Everything, values)
        assert len(str(error.value)) < 300


def test_a_setting_that_is_newer_than_a_file_has_its_default():
    assert settings.from_dict(Everything, {"count": 7}) == replace(Everything(), count=7)


def test_an_option_is_a_name_with_dashes():
    assert settings.option("val_every") == "--val-every"


def test_paths_are_values_too():
    @dataclass(frozen=True)
    class Places:
        out: Path = Path("runs")

    settings.check(Places(), Places(Path("/tmp")))
    with pytest.raises(UserError, match=r"^--out 3: must be "):
        settings.check(replace(Places(), out=3))  # pyright: ignore[reportArgumentType]


@given(st.builds(Traits, *[st.booleans()] * len(fields(Traits))))
def test_traits_survive_json(traits):
    assert settings.from_dict(Traits, json.loads(json.dumps(settings.to_dict(traits)))) == traits


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "sum", "1"])


@hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([each.name for each in fields(Everything)]), SCALARS | st.lists(SCALARS)))
def test_whatever_a_file_says_it_is_read_or_refused(values):
    """Nothing but `UserError` comes out, and what is read is allowed."""
    try:
        each = settings.from_dict(Everything, values)
    except UserError:
        return
    settings.check(each)
    assert settings.from_dict(Everything, settings.to_dict(each)) == each


def test_the_outer_loop_is_the_paper_s_by_default():
    training = TrainingSettings()
    settings.check(training)
    assert (training.episodes, training.meta_batch, training.lr, training.clip) == (50_000, 1, 1e-3, 0.25)
    assert (training.val_every, training.val_episodes, training.pretrain) == (1000, 100, 0)
    augmentations = ("rotations", "mirrors", "crop", "jitter", "affine", "elastic", "weight_decay")
    assert not any(getattr(training, name) for name in augmentations)


def test_every_setting_has_help():
    """A docstring under each field, which the command line shows."""
    source = Path(settings.__file__).read_text()
    for kind in (TrainingSettings, Traits):
        for field in fields(kind):
            after = source.split(f"\n    {field.name}: ", 1)[1].split("\n", 2)[1]
            assert after.strip().startswith('"""'), field.name
