"""Rows come from the methods' own descriptions."""

import pytest

from metalstm import recipes
from metalstm.errors import UserError
from metalstm.methods import METHODS
from metalstm.settings import Traits
from metalstm.table import ROWS, Cell, Task, select
from metalstm.table.rows import rows_of


def test_every_method_has_its_rows_in_the_order_of_METHODS():
    expected = [(name, row.name) for name, method in METHODS.items() for row in method.rows()]
    assert [(row.method, row.name) for row in ROWS] == expected


def test_names_and_labels_are_unique():
    names, labels = [row.name for row in ROWS], [row.label for row in ROWS]
    assert len(set(names)) == len(names)
    assert len(set(labels)) == len(labels)


def test_no_two_cells_share_a_file():
    """`a-5w5s` of one row is not the name of another row's file."""
    tasks = (Task(5, 1), Task(5, 5), Task(20, 1))
    cells = [str(Cell(row, task, seed)) for row in ROWS for task in tasks for seed in (None, 1, 11)]
    assert len(set(cells)) == len(cells)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("traits", [Traits(), Traits(drawing=True, mirrors=False, rotations=True)])
@pytest.mark.parametrize("n_shot", [1, 5])
def test_a_row_builds_with_its_changes(row, traits, n_shot):
    recipe = recipes.named(row.method, row.recipe, traits, n_shot)
    names = {"method": row.method, "recipe": row.recipe, "traits": traits, "n_shot": n_shot}
    config = recipes.with_changes(recipes.RunConfig(**vars(recipe) | names), dict(row.changes))
    assert isinstance(recipes.build(config), METHODS[row.method])


@pytest.mark.parametrize("n_way", [5, 20])
def test_rows_of_a_task(n_way):
    assert rows_of(Task(n_way, 1)) == [row for row in ROWS if n_way in row.ways]


def test_select():
    def names(*only):
        return [row.name for row in select(*only)]

    assert select() == ROWS
    assert names("meta-lstm") == ["meta-lstm"]
    # In the table's order, each once.
    expected = ["class-means", "protonet", "meta-lstm"]
    assert names("protonet,meta-lstm, class-means") == expected
    assert names("meta-lstm", "class-means,protonet", "proto[n]et") == expected
    assert names("*-paper") == [row.name for row in ROWS if row.recipe == "paper"]
    with pytest.raises(UserError, match=r"unknown row 'maml\*x', did you mean 'maml'\? allowed: alfa, "):
        select("maml,maml*x")
    with pytest.raises(UserError, match="unknown row 'nearest-neighbour', did you mean 'nearest-neighbor'"):
        select("nearest-neighbour")


def test_words():
    assert (str(Task(20, 1)), Task(20, 1).words) == ("20w1s", "20-way 1-shot")
    assert str(Cell(ROWS[0], Task(5, 5), 3)) == f"{ROWS[0].name}-5w5s-seed3"
