"""Markdown, JSON and page of a table, from results that were not trained for."""

import json

import pytest

from metalstm.table import ROWS, Cell, Table, Task, page, select
from table.conftest import BUDGET
from table.filled import fill, put_checkpoint, result


@pytest.fixture(scope="module")
def written(small_sets, tmp_path_factory):
    table = Table(small_sets, tmp_path_factory.mktemp("page"), BUDGET)
    fill(table)
    put_checkpoint(table)
    page.write(table)
    return table


def read(table, name):
    return (table.out / name).read_text()


def test_an_empty_table(small_table):
    page.write(small_table)
    assert read(small_table, "table.md").startswith(f"# Table 1 on {small_table.meta_sets.name} (quick)\n")
    assert json.loads(read(small_table, "table.json"))["tasks"] == {"5w1s": {}, "5w5s": {}}


def test_every_row_has_a_line_with_its_figures(written):
    text, html = read(written, "table.md"), read(written, "report.html")
    for row in ROWS:
        assert f"| {row.label} |" in text
        assert f"<td>{row.label}</td>" in html
        for task in written.tasks:
            value = result(written, Cell(row, task))
            assert f"{value['accuracy']:.2f} ± {value['ci95']:.2f}" in text
    assert "| method | 5-way 1-shot | 5-way 5-shot | paper, 1-shot | paper, 5-shot |" in text
    assert "| Meta-LSTM, paper | " in text
    assert "| 43.44 ± 0.77 | 60.60 ± 0.71 |" in text
    assert "**" in text
    assert "<b>" in html


def test_what_was_chosen(written):
    line = "| Fine-tuning, Adam | 5-way 5-shot | rule sgd, rate 0.01235, steps 3 | 67,890 | 12,345 | 5 (bf16) |"
    assert line in read(written, "table.md")


def test_sections(written):
    text = read(written, "table.md")
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Between trainings: Meta-LSTM, best",
        "Paired differences, 5-way 1-shot",
        "Paired differences, 5-way 5-shot",
        "How fast does each optimizer learn? 5-way 5-shot",
        "What each part is worth, 5-way 5-shot",
        "What was chosen, and what it took",
    ]
    assert "| optimizer | from random weights | from pre-trained weights | from the learned theta_0 |" in text
    assert "| SGD of the head alone | 60.00 ± 1.00 (2) |" in text
    assert "| no step, nearest class mean | 60.00 ± 1.00 (0) |" in text
    assert "| f = 1 | 60.00 ± 1.00 | +0.00 ± 0.80 |" in text


def test_the_page_has_pictures_and_asks_nobody_for_anything(written):
    html = read(written, "report.html")
    # Learning curves of two columns, inner steps, gates and confusions at one task.
    assert html.count("<img") == 5
    assert "http" not in html.replace("http-equiv", "")
    for heading in ("Learning curves, 5-way 1-shot", "What was learned, 5-way 5-shot", "Which classes are taken for"):
        assert heading in html


def test_json(written):
    values = json.loads(read(written, "table.json"))
    (row,) = select("meta-lstm")
    assert values["tasks"]["5w5s"]["meta-lstm"] == result(written, Cell(row, Task(5, 5)))
    assert set(values["differences"]["5w1s"]["meta-lstm"]) == {each.name for each in ROWS} - {"meta-lstm"}
    assert list(values["seeds"]["meta-lstm"]["runs"]) == ["0", "2", "10"]
    assert values["quick"]
    assert list(values["convergence"]) == list(values["ablation"]) == ["5w5s"]


def test_results_that_name_settings_otherwise_are_shown_as_they_are(small_table):
    """Older rows have `lr` where newer ones have `rate`."""
    (row,) = select("finetune-adam")
    fill(small_table)
    path = small_table.result(Cell(row, Task(5, 5)))
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"chosen": {"rule": "adam", "lr": 0.01, "steps": 3}}))
    page.write(small_table)
    assert "rule adam, lr 0.01, steps 3" in read(small_table, "table.md")
