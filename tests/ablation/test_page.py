"""The page of an ablation: its table, its pictures, in a real browser."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from ablation.filled import NAMES, RIVAL, result
from browser import check_looks, watched
from metalstm.ablation import blocks, columns_of, pictures, write
from metalstm.evaluation import gap
from metalstm.report import TableBlock


def records(made: dict) -> dict:
    return {task: column["gates"] for task, column in made["tasks"].items()}


def table(columns: dict) -> TableBlock:
    block, picture = blocks(columns)
    assert isinstance(block, tuple)
    assert isinstance(picture, Figure)
    return block


def test_a_line_for_each_variant_and_two_columns_for_each_task():
    columns = columns_of(result())
    head, lines = table(columns)
    assert head == [
        "variant", "5-way 1-shot", "minus the whole", "5-way 5-shot", "minus the whole", "20-way 1-shot within a group",
        "minus the whole",
    ]  # fmt: skip
    assert [line[0] for line in lines] == [*NAMES, RIVAL]
    column = columns["5-way 5-shot"]
    mean, ci95 = gap(column[RIVAL], column["whole"])
    assert lines[-1][4] == f"{mean:+.2f} ± {ci95:.2f}"
    assert lines[0][2::2] == ["", "", ""], "the whole is not compared with itself"
    del columns["5-way 5-shot"]["f = 1"]
    assert table(columns)[1][3][3:5] == ["", ""], "a variant of the other tasks"


def test_differences_are_drawn_where_they_are():
    figure = pictures.differences(columns_of(result(("5w5s",))))
    (axes,) = figure.axes
    column = result(("5w5s",))["tasks"]["5w5s"]["variants"]
    drawn = [float(np.ravel(line.get_xdata())[0]) for line in axes.lines if line.get_marker() == "o"]
    assert drawn == pytest.approx([gap(column[name], column["whole"])[0] for name in (*NAMES[1:], RIVAL)])
    assert [label.get_text() for label in axes.get_yticklabels()] == [*NAMES[1:], RIVAL]


def test_gates_have_a_line_for_each_task_in_each_panel():
    kinds = records(result(("5w1s", "5w5s"), n_tasks=6))
    by_kind = pictures.gates_by_name(kinds, {kind: [kind] * 6 for kind in kinds})
    for figure, n_more in ((by_kind, 2), (pictures.gates_by_loss(kinds), 0)):
        panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        assert len(panels) == 2 * 5
        assert {len(axes.lines) for axes in panels[1:]} == {12}
        assert len(panels[0].lines) == 12 + n_more, "with the legend's"
        rates = kinds["5w5s"]["layers"]["conv1"]["rate"]
        assert panels[0].lines[6].get_ydata() == pytest.approx(rates[0])
    assert [text.get_text() for text in by_kind.legends[0].get_texts()] == ["5w1s", "5w5s"]


def test_a_first_loss_that_is_the_same_for_all_tasks_colors_nothing():
    kinds = records(result(("5w1s",)))
    assert pictures.first_different_loss(kinds) == 1, "with one head row for all classes, it is log(n_way)"
    kinds["5w1s"]["loss"][0][0] = 1.7
    assert pictures.first_different_loss(kinds) == 0
    alike = {"5w1s": {"loss": [[1.0, 0.5]] * 3}}
    assert pictures.first_different_loss(alike) == 0


def test_files(tmp_path):
    made = result(("5w5s",))
    write(tmp_path, made)
    assert json.loads((tmp_path / "ablation.json").read_text()) == made
    page = (tmp_path / "ablation.html").read_text()
    for words in (
        "What each part of meta-lstm-glyphs-5w5s is worth",
        "20 episodes of meta-val",
        "Means are taken over 100 meta-train tasks",
        "momentum",
        "0.0316",
        "before step 2, because with one head row",
        made["command"],
        "fedcba987654",
        "789",
    ):
        assert words in page, words
    assert "kinds of tasks" not in page, "there is one"
    assert "Colors are the groups" not in page
    write(tmp_path, result(("5w5s", "5w5s-within")))
    page = (tmp_path / "ablation.html").read_text()
    assert "kinds of tasks" in page
    assert "Colors are the groups" in page
    made["tasks"]["5w5s"]["gates"] = None  # of an optimizer without gates
    write(tmp_path, made)
    assert "The gates of many tasks" not in (tmp_path / "ablation.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_looks(browser, tmp_path, scheme, width):
    write(tmp_path, result())
    with watched(browser, viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True) as shown:
        shown.goto((tmp_path / "ablation.html").as_uri())
        check_looks(shown)
        if folder := os.environ.get("METALSTM_SCREENSHOTS"):
            shown.screenshot(path=Path(folder) / f"ablation-{scheme}-{width}.png", full_page=True)
