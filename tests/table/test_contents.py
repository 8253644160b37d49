"""Which rows stand out, differences, and what is read from the table's folder."""

import pytest

from metalstm.evaluation import Accuracy, gap
from metalstm.table import ROWS, Cell, Task, select
from metalstm.table.contents import bold, collect, differences, spread
from table.filled import fill, result


def test_bold_is_the_best_and_what_overlaps_it():
    results = {
        "low": {"accuracy": 50.0, "ci95": 1.0},
        "touching": {"accuracy": 58.0, "ci95": 1.0},
        "best": {"accuracy": 60.0, "ci95": 1.0},
        "short of it": {"accuracy": 57.9, "ci95": 1.0},
    }
    assert bold(results) == {"best", "touching"}
    assert bold({}) == set()


def test_differences_are_paired():
    one, other = {"per_episode": [60.0, 70.0, 80.0, 90.0]}, {"per_episode": [50.0, 65.0, 70.0, 85.0]}
    expected = Accuracy([10.0, 5.0, 10.0, 5.0])
    assert gap(one, other) == (pytest.approx(expected.mean), pytest.approx(expected.ci95))
    both = differences({"one": one, "other": other})
    assert both == {"one": {"other": gap(one, other)}, "other": {"one": gap(other, one)}}
    assert both["other"]["one"][0] == -both["one"]["other"][0]


def test_spread():
    assert spread({"0": {"accuracy": 70.0}, "1": {"accuracy": 72.0}}) == pytest.approx(2**0.5)


def test_an_empty_folder(small_table):
    contents = collect(small_table)
    assert contents.results == {Task(5, 1): {}, Task(5, 5): {}}
    assert (contents.seeds, contents.convergence, contents.ablation) == ({}, None, None)


def test_what_is_in_the_folder(small_table):
    fill(small_table)
    contents = collect(small_table)
    for column in contents.results.values():
        assert list(column) == [row.name for row in ROWS]
    assert list(contents.seeds) == ["meta-lstm"]
    assert list(contents.seeds["meta-lstm"]) == ["0", "2", "10"]
    (row,) = select("meta-lstm")
    assert contents.seeds["meta-lstm"]["10"] == result(small_table, Cell(row, Task(5, 5), 10))
