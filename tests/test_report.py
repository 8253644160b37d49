import io
import json
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from metalstm import report
from metalstm.errors import UserError
from metalstm.methods import build
from test_contract import config, episode


def picture(figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(report.png(figure))).convert("RGB"))


def metrics(path, n: int):
    lines = [
        {
            "episode": 50 * k,
            "seconds": 60.0 * k,
            "loss": 1.5 / k,
            "accuracy": 20.0 + k,
            **({"meta_val": 30.0 + k} if k % 2 == 0 else {}),
        }
        for k in range(1, n + 1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("n", [1, 2, 100])
def test_learning_curve(tmp_path, n):
    figure = report.learning_curve(metrics(tmp_path / "metrics.jsonl", n))
    assert picture(figure).std() > 5
    left, right = figure.axes
    assert left.get_ylabel() == "query loss (nats)"
    legend = right.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert (f"chosen: {30 + n:.1f} % at {50 * n:,}" in labels) == (n > 1)


def test_meta_val_curves_hold_runs_beside_each_other(tmp_path):
    for name, n in (("one", 4), ("two", 10)):
        (tmp_path / name).mkdir()
        metrics(tmp_path / name / "metrics.jsonl", n)
    figure = report.meta_val_curves({"A": tmp_path / "one", "B": tmp_path / "two"})
    by_time, by_episode = figure.axes
    assert [np.size(line.get_xdata()) for line in by_time.lines] == [2, 5]
    assert np.asarray(by_time.lines[0].get_xdata()).tolist() == [2.0, 4.0]  # minutes
    assert np.asarray(by_episode.lines[0].get_xdata()).tolist() == [100, 200]
    assert picture(figure).std() > 5


def test_gates_show_each_layer_over_the_steps():
    method = build(config("best"))
    support = episode(3)
    support = type(support)(type(support.support)(support.support.x.float(), support.support.y, 3), support.query)
    figure = report.gates(method, support)
    assert [axes.get_title() for axes in figure.axes[:5]] == ["conv1", "conv2", "conv3", "conv4", "head"]
    assert len(figure.axes) == 10
    for axes in figure.axes:
        assert len(axes.lines) == 3 + 1  # tasks and their mean
        assert np.size(axes.lines[0].get_xdata()) == 4  # 2 epochs of 2 mini-batches
        values = np.concatenate([np.asarray(line.get_ydata()) for line in axes.lines])
        assert ((values > 0) & (values < 1)).all()
    forget = np.asarray(figure.axes[0].lines[0].get_ydata())
    with torch.no_grad():
        step = next(iter(method.trajectory(support.support)))
    assert forget[0] == pytest.approx(step.state.f[0, : 4 * 9 + 2 * 4].sigmoid().mean().item(), rel=1e-6)


def test_episode_picture():
    both = episode(1)
    assert picture(report.episode_picture(both)).std() > 5


def test_page_is_self_contained_and_escapes_what_it_is_given(tmp_path):
    figure = report.learning_curve(metrics(tmp_path / "metrics.jsonl", 3))
    page = report.page("A <title>", ["some & text", figure, (("a", "b"), [("1 < 2", "x")])])
    assert "<h1>A &lt;title&gt;</h1>" in page
    assert "<td>1 &lt; 2</td>" in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)


def test_plots_turn_dark_and_images_stay_as_they_are(tmp_path):
    plot, images = report.learning_curve(metrics(tmp_path / "metrics.jsonl", 3)), report.episode_picture(episode(1))
    page = report.page("", [plot, images])
    kinds = re.findall(r'<div class="figure (\w+)"><img alt="([^"]*)"', page)
    assert kinds == [("plot", "query loss (nats), query accuracy (%)"), ("images", "")]


def test_tensorboard_has_the_numbers_of_a_run_while_it_goes_on(tmp_path):
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra tensorboard"
    )
    (tmp_path / "events.out.tfevents.1.old").write_text("of the run before it was interrupted")
    with report.tensorboard(tmp_path):
        metrics(tmp_path / "metrics.jsonl", 3)
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"episode": 200, "sec')  # cut short
    (event_file,) = tmp_path.glob("events.out.tfevents.*")
    events = accumulators.EventAccumulator(str(event_file))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["accuracy", "loss", "meta_val"]
    losses, meta_val = events.Scalars("loss"), events.Scalars("meta_val")
    assert [event.step for event in losses] == [50, 100, 150]
    assert [event.value for event in losses] == pytest.approx([1.5, 0.75, 0.5])
    assert losses[2].wall_time - losses[0].wall_time == pytest.approx(120)
    assert [(event.step, event.value) for event in meta_val] == [(100, 32.0)]


def test_tensorboard_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    message = r"^--tensorboard needs tensorboard, which is not here: pip install 'metalstm\[tensorboard\]'$"
    with pytest.raises(UserError, match=message), report.tensorboard(tmp_path):
        pass
