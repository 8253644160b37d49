import re

import pytest

pytest.importorskip("gradio", reason="needs the extra app")
from metalstm.app.charts import charts
from metalstm.classifier import InnerStep


def step(number: int, **values) -> InnerStep:
    return InnerStep(number, 5, **{"loss": 2.0 / number, "accuracy": number / 5, "forget": {}, "rate": {}, **values})


def lines(html: str) -> list[list[tuple[float, float]]]:
    points = re.findall(r'<polyline stroke="#\w{6}" points="([^"]*)"/>', html)
    return [[(float(x), float(y)) for x, y in (point.split(",") for point in line.split())] for line in points]


def test_lines_grow_with_the_steps_towards_the_number_of_them():
    html = charts([step(1), step(2), step(3)])
    loss, accuracy = lines(html)
    assert [x for x, _ in loss] == [x for x, _ in accuracy] == [34, 84, 134]  # of 34 .. 234
    assert [y for _, y in loss] == [8, 50, 64]  # 92 is a loss of 0, 8 the first
    assert [y for _, y in accuracy] == [75.2, 58.4, 41.6]
    assert "<h3>Loss<b>0.667</b></h3>" in html
    assert "<h3>Right of these images<b>60%</b></h3>" in html
    assert "5 steps" in html
    assert "legend" not in html


def test_gates_have_a_line_and_a_color_for_each_layer():
    steps = [step(k, forget={"a": 0.9, "b": 0.9 + k / 100}, rate={"a": 0.1 * k, "b": 0.0}) for k in (1, 2)]
    html = charts(steps)
    _, _, *gates = lines(html)
    assert [[y for _, y in line] for line in gates] == [[92, 92], [83.6, 75.2], [50, 8], [92, 92]]
    assert re.findall(r'<span><i style="background: (#\w{6})"></i>(\w+)</span>', html) == [
        ("#6366f1", "a"),
        ("#0ea5e9", "b"),
    ]


def test_a_single_step_of_no_loss_can_be_drawn():
    html = charts([InnerStep(1, 1, 0.0, 1.0, {"a": 1.0}, {"a": 0.0})])
    assert lines(html) == [[(34, 92)], [(34, 8)], [(34, 8)], [(34, 92)]]


def test_a_method_without_steps_has_its_note_alone_escaped():
    assert charts([]).strip() == ""
    assert charts([], "from <b>").strip() == '<p class="note">from &lt;b&gt;</p>'
    assert charts([step(1)], "done").rstrip().endswith('<p class="note">done</p>')


def test_weights_that_are_kept_look_kept():
    _, _, forget, _ = lines(charts([step(k, forget={"a": 1 - 1e-6 / k}, rate={"a": 0.1}) for k in (1, 2)]))
    assert [y for _, y in forget] == [8, 8]
