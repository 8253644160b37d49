import numpy as np
import pytest
import torch

from metalstm import report
from metalstm.methods.pixels import PixelNearestNeighbor
from report.examples import episode, pixels, write_metrics


@pytest.mark.parametrize("n", [1, 2, 100])
def test_learning_curve(tmp_path, n):
    figure = report.learning_curve(write_metrics(tmp_path / "metrics.jsonl", n))
    assert pixels(figure).std() > 5
    left, right = figure.axes
    assert left.get_ylabel() == "query loss (nats)"
    legend = right.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert (f"chosen: {30 + n:.1f} % at {50 * n:,}" in labels) == (n > 1)


def test_meta_val_curves_show_runs_side_by_side(tmp_path):
    for name, n in (("one", 4), ("two", 10)):
        (tmp_path / name).mkdir()
        write_metrics(tmp_path / name / "metrics.jsonl", n)
    figure = report.meta_val_curves({"A": tmp_path / "one", "B": tmp_path / "two"})
    by_time, by_episode = figure.axes
    assert [np.size(line.get_xdata()) for line in by_time.lines] == [2, 5]
    assert np.asarray(by_time.lines[0].get_xdata()).tolist() == [2.0, 4.0]  # minutes
    assert np.asarray(by_episode.lines[0].get_xdata()).tolist() == [100, 200]
    assert pixels(figure).std() > 5


def gates(support) -> dict[str, torch.Tensor]:
    """Known values for each task, layer and step."""
    assert support.y.ndim == 1  # a task at a time
    mean, steps = support.x.mean(), torch.arange(4.0)
    return {"conv1": torch.stack([mean + steps, mean - steps]), "head": torch.stack([steps, -steps])}


def test_gates_show_each_layer_over_the_steps(monkeypatch):
    method, tasks = PixelNearestNeighbor(), episode(3)
    monkeypatch.setattr(method, "gates", gates)
    figure = report.gates(method, tasks)
    assert figure is not None
    top, bottom = figure.axes[:2], figure.axes[2:]
    assert [axes.get_title() for axes in top] == ["conv1", "head"]
    assert [axes.get_ylabel() for axes in (top[0], bottom[0])] == ["forget gate f", "input gate i"]
    for axes, sign in ((top[0], 1), (bottom[0], -1)):
        *lines, mean = (np.asarray(line.get_ydata()) for line in axes.lines)
        expected = tasks.support.x.flatten(1).mean(1).numpy()[:, None] + sign * np.arange(4)
        np.testing.assert_allclose(np.stack(lines), expected, rtol=1e-6)
        np.testing.assert_allclose(mean, expected.mean(0), rtol=1e-6)
        assert np.asarray(axes.lines[0].get_xdata()).tolist() == [1, 2, 3, 4]
    assert pixels(figure).std() > 5


def test_a_method_without_gates_has_no_figure_of_them():
    assert report.gates(PixelNearestNeighbor(), episode(3)) is None


@pytest.mark.parametrize(("drawing", "channels"), [(True, 1), (False, 1), (False, 3)])
def test_only_drawings_are_shown_with_light_paper(drawing, channels):
    figure = report.episode_picture(episode(1, channels), drawing)
    assert pixels(figure).std() > 5
    image = next(axes.images[0] for axes in figure.axes if axes.images)
    expected = episode(1, channels).support.x[0, 0].movedim(0, -1).numpy()
    expected = 1 - expected if drawing else expected
    np.testing.assert_allclose(np.squeeze(np.asarray(image.get_array())), np.squeeze(expected))


def test_confusion_leaves_out_right_answers():
    matrix = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    figure = report.confusion(matrix, ["cat", "dog"])
    shares = np.asarray(figure.axes[0].images[0].get_array(), dtype=float)
    np.testing.assert_array_equal(shares, [[np.nan, 50], [25, np.nan]])
    assert matrix[0, 0] == 0.5  # unchanged
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["cat", "dog"]
    assert pixels(figure).std() > 5


def test_confusion_of_many_classes_is_between_and_within_their_groups():
    classes = [f"{group}/{k}" for group in ("Greek", "Latin") for k in range(30)]
    group = torch.arange(60) // 30
    matrix = torch.where(group[:, None] == group, 0.25, 0.125).fill_diagonal_(0.5)
    matrix[0, 1] = torch.nan  # two classes that were in no episode together
    figure = report.confusion(matrix, classes)
    shares = np.asarray(figure.axes[0].images[0].get_array(), dtype=float)
    np.testing.assert_allclose(shares, [[25, 12.5], [12.5, 25]])
