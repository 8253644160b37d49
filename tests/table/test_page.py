"""Markdown, JSON and page of a table, from results that were not trained for."""

import json
import re
from dataclasses import replace

import pytest

from metalstm.evaluation import gap
from metalstm.table import ROWS, Cell, Table, Task, page, select
from table.conftest import BUDGET
from table.filled import TRANSDUCTIVE, fill, put_checkpoint, result


@pytest.fixture(scope="module")
def written(small_sets, tmp_path_factory):
    table = Table(small_sets, tmp_path_factory.mktemp("page"), BUDGET)
    fill(table)
    put_checkpoint(table)
    page.write(table)
    return table


def read(table, name):
    return (table.out / name).read_text()


def accuracies(table) -> str:
    """The first table of `table.md`."""
    return read(table, "table.md").partition("## Accuracy")[2].partition("Made by")[0]


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
    assert "| method | 5-way 1-shot | minus the best | 5-way 5-shot | minus the best |" in text
    assert "| Meta-LSTM | mini-imagenet | 43.44 ± 0.77 | 60.60 ± 0.71 | Ravi & Larochelle 2017 |" in text
    assert "**" in text
    assert "<b>" in html


def test_differences_are_from_the_best_inductive_row(written):
    column = {row.name: result(written, Cell(row, Task(5, 5))) for row in ROWS}
    top = max((name for name in column if name != TRANSDUCTIVE), key=lambda name: column[name]["accuracy"])
    lines = {line.split(" | ")[0].strip("| "): line for line in accuracies(written).splitlines()}
    for row in ROWS:
        mean, ci95 = gap(column[row.name], column[top])
        minus = "" if row.name == top else f"{mean:+.2f} ± {ci95:.2f}"
        assert lines[row.label].split(" | ")[4].strip("| ") == minus


def test_rows_stand_in_blocks_of_equal_start(written):
    text = accuracies(written)
    titles = [line.split(" | ")[0].strip("| *") for line in text.splitlines() if line.startswith("| *")]
    assert titles == ["From one pre-trained network", "From random weights", "Nothing is trained", "Transductive"]
    before, after = text.split("| *From random weights*")
    assert "| Meta-LSTM, best |" in before
    assert "| Meta-LSTM, paper |" in after


def start_of(table) -> str:
    """The folder of the pre-training that most rows share."""
    (row,) = select("matching-net")
    return table.trainings(Cell(row, Task(5, 5)))[0].folder.name


def test_what_each_row_trains(written):
    text, start = read(written, "table.md"), start_of(written)
    assert f"Shared pre-training {start} (c0ffee): 3 of 4 mini-batches, 13.0 minutes; " in text
    for line in (
        f"| Fine-tuning, head only | {start} | head, 5 steps | none | 67,890 | 0.5 |",
        f"| Matching Network | {start} | nothing | 4 | 67,890 | 2.5 |",
        "| Meta-LSTM, paper | random weights | all layers | 4 | 67,890 | 2.5 |",
        "| Nearest neighbor, pixels | none | nothing | none | 67,890 | 0.0 |",
    ):
        assert line in text


def test_what_stays_unequal(written):
    text = read(written, "table.md")
    assert "| Fine-tuning, SGD | settings: 2 to 3 episodes each |  |" in text
    assert "| Matching Network, paper | checkpoint: 2 times 2 episodes | dropout: 0.1 (0.0) |" in text


def test_published_figures_stand_beside_ours(small_sets, tmp_path):
    table = Table(replace(small_sets, name="cifar-fs"), tmp_path, BUDGET)
    fill(table)
    page.write(table)
    text = read(table, "table.md")
    assert "| method | 5-way 1-shot | minus the best | published | 5-way 5-shot | minus the best | published |" in text
    lines = {line.split(" | ")[0].strip("| "): line for line in accuracies(table).splitlines()}
    assert lines["Logistic regression"].endswith(" | 78.7, 79.5 |")
    assert lines["ALFA, paper"].endswith(" | 76.8† |")
    assert lines["BOIL"].endswith(" |  |")
    (source,) = (line for line in text.splitlines() if line.startswith("| R2D2 | cifar-fs |"))  # once for two rows
    assert source == "| R2D2 | cifar-fs | 62.3 | 77.4 | Bertinetto et al. 2019 (arXiv 1805.08136) |"


def test_what_was_chosen(written):
    assert "| Fine-tuning, Adam | 5-way 5-shot | rule sgd, rate 0.01235, steps 3 |" in read(written, "table.md")


def test_sections(written):
    text = read(written, "table.md")
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Accuracy",
        "What each row trains",
        "What stays unequal",
        "Published figures",
        "Between trainings: Meta-LSTM, best",
        "How fast does each optimizer learn? 5-way 5-shot",
        "What each part is worth, 5-way 5-shot",
        "What was chosen on meta-val",
    ]
    assert "| optimizer | from random weights | from pre-trained weights | from the learned theta_0 |" in text
    assert "| SGD of the head alone | 60.00 ± 1.00 (2) |" in text
    assert "| no step, nearest class mean | 60.00 ± 1.00 (0) |" in text
    assert "| f = 1 | 60.00 ± 1.00 | +0.00 ± 0.80 |" in text


def test_the_page_has_pictures_and_asks_nobody_for_anything(written):
    html = read(written, "report.html")
    # Dots, minutes, and pairs of two columns; inner steps; ablation; learning curves of two columns; gates; confusions.
    assert html.count("<img") == 10
    headings = re.findall("<h2>(.*)</h2>", html)
    assert headings[:4] == ["All rows", "Accuracy against minutes", "Paired differences", "Accuracy"]
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
    del values["terms"], values["transductive"]
    path.write_text(json.dumps(values | {"chosen": {"rule": "adam", "lr": 0.01, "steps": 3}}))
    page.write(small_table)
    text = read(small_table, "table.md")
    assert "rule adam, lr 0.01, steps 3" in text
    assert f"| Fine-tuning, Adam | {start_of(small_table)} / none |" in text
