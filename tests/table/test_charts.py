"""The pictures that a table's page opens with."""

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from metalstm.evaluation import gap
from metalstm.table import Cell, Task, charts, select
from report.examples import pixels
from table.filled import result

ONE, FIVE = Task(5, 1), Task(5, 5)
NAMES = ("logistic", "protonet", "maml", "maml-paper", "nearest-neighbor-pixels")


@pytest.fixture
def columns(small_table):
    return {task: {row.name: result(small_table, Cell(row, task)) for row in select(*NAMES)} for task in (ONE, FIVE)}


def at(result, accuracy):
    """The same result with another mean."""
    change = accuracy - result["accuracy"]
    return result | {"accuracy": accuracy, "per_episode": [each + change for each in result["per_episode"]]}


def x_of(line) -> float:
    return float(np.asarray(line.get_xdata())[0])


def test_dots(columns):
    figure = charts.dots(columns, "cifar-fs")
    assert [axes.get_title() for axes in figure.axes] == ["5-way 1-shot", "5-way 5-shot"]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == "From one pre-trained network"
    assert labels[-2:] == ["Transductive", "MAML, paper"]
    for axes, (task, results) in zip(figure.axes, columns.items(), strict=True):
        means = {round(x_of(bars.lines[0]), 6) for bars in axes.containers if isinstance(bars, ErrorbarContainer)}
        assert means == {round(each["accuracy"], 6) for each in results.values()}
        crosses = [x_of(line) for line in axes.lines if line.get_marker() == "x"]
        expected = {ONE: [55.5, 62.7, 63.8, *[57.6, 58.9] * 2], FIVE: [72.0, 78.7, 79.5, *[74.0, 71.5] * 2]}
        assert sorted(crosses) == sorted(expected[task])
    assert pixels(figure).std() > 5


def test_a_row_far_behind_becomes_an_arrow(columns):
    results = {name: at(each, 80.0 + number) for number, (name, each) in enumerate(columns[FIVE].items())}
    results["nearest-neighbor-pixels"] = at(results["nearest-neighbor-pixels"], 20.0)
    (axes,) = charts.dots({FIVE: results}, "glyphs").axes
    assert [text.get_text() for text in axes.texts] == ["◂ 20.0"]
    assert axes.get_xlim()[0] > 60
    assert len(axes.containers) == len(results) - 1


def test_rows_that_no_other_row_beats_are_named(columns):
    results = {name: at(each, 60.0) for name, each in columns[FIVE].items()}
    results["maml"] = at(results["maml"], 62.0)  # slower and better than the first
    results["protonet"] = at(results["protonet"], 59.0)  # slower and worse
    results["maml-paper"] = at(results["maml-paper"], 90.0)  # transductive
    figure = charts.against_minutes({FIVE: results})
    (axes,) = figure.axes
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["1  Logistic regression", "2  MAML"]
    points = {tuple(np.ravel(line.get_xydata())) for line in axes.lines if line.get_marker() == "o"}
    assert points == {(13.0, 60.0), (15.5, 62.0), (15.5, 59.0)}
    assert pixels(figure).std() > 5


def test_nothing_to_place_in_time(columns):
    """Old results have no terms."""
    results = {
        name: {key: value for key, value in each.items() if key != "terms"} for name, each in columns[ONE].items()
    }
    (axes,) = charts.against_minutes({ONE: results}).axes
    assert axes.get_legend() is None


def test_heat(columns):
    results = columns[ONE]
    axes, _ = charts.heat(ONE, results).axes
    names = sorted(results, key=lambda name: -results[name]["accuracy"])
    means = np.asarray(axes.collections[0].get_array(), dtype=float).reshape(len(names), -1)
    expected = [[gap(results[one], results[other])[0] if one != other else np.nan for other in names] for one in names]
    np.testing.assert_allclose(means, expected)
    places = np.asarray(axes.collections[1].get_offsets()) - 0.5
    unsure = {
        (x, y)
        for y, one in enumerate(names)
        for x, other in enumerate(names)
        if one != other and abs(gap(results[one], results[other])[0]) <= gap(results[one], results[other])[1]
    }
    assert {tuple(map(int, place)) for place in places} == unsure
