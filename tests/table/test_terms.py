"""What differs between rows, and which rows stand together."""

from typing import Any

from metalstm import recipes
from metalstm.settings import Traits
from metalstm.table import terms


def result(method: str, start: str = "", episodes: int = 0, sha256: str = "0" * 64, **changes) -> dict:
    """A result whose terms are those of a method's recipe with changes."""
    recipe = recipes.named(method, "best", Traits(), 5)
    values: dict[str, Any] = vars(recipe) | {"method": method}
    config = recipes.with_changes(recipes.RunConfig(**values), changes)
    begun = {"run": start, "sha256": sha256, "steps": 5, "seconds": 120.0} if start else None
    own = {"seconds": 60.0 if episodes else 0.0, "tuning_seconds": 30.0, "episodes": episodes}
    return {"transductive": False, "terms": {"start": begun, "config": recipes.to_dict(config), **own}}


def test_rows_stand_with_those_of_the_same_kind_of_start():
    blocks = {
        terms.PRETRAINED: result("class-means", "start"),
        terms.RANDOM: result("maml", episodes=5),
        terms.UNTRAINED: result("pixels"),
        terms.TRANSDUCTIVE: result("maml", episodes=5) | {"transductive": True},
        terms.UNKNOWN: {},
    }
    assert {title: terms.block(each) for title, each in blocks.items()} == {title: title for title in terms.BLOCKS}


def test_minutes_count_the_shared_start_only_where_it_is_asked_for():
    row = result("maml", "start", episodes=5)
    assert (terms.minutes(row, with_start=False), terms.minutes(row, with_start=True)) == (1.5, 3.5)
    assert terms.minutes({}, with_start=True) is None


def test_what_is_other_than_in_most_rows_is_found_in_the_configurations():
    column = {
        "one": result("protonet", "a", 10),
        "two": result("matching-net", "a", 10, scale=3.0, lr=0.5),  # a method's own settings, and its rates
        "other": result("protonet", "b", 10, filters=32, crop=4, precision="bf16", mirror=False),
        "untrained": result("class-means", "a", crop=4),  # of no account, as nothing was trained
        "random": result("protonet", episodes=10, filters=16),  # of another block, where it is alone
        "old": {},
    }
    assert terms.unequal(column) == {
        "one": {},
        "two": {},
        "other": {
            "start": ("b", "a"),
            "filters": (32, 64),
            "crop": (4, 0),
            "precision": ("bf16", "fp32"),
            "mirror": (False, True),
        },
        "untrained": {},
        "random": {},
    }


def test_starts_of_one_name_are_told_apart_by_their_checksums():
    column = {
        "one": result("protonet", "start", 10),
        "two": result("protonet", "start", 10),
        "again": result("protonet", "start", 10, sha256="f" * 64),
    }
    assert terms.unequal(column)["again"] == {"start": ("start (ffffff)", "start (000000)")}
