import sys

import pytest

from metalstm import report
from metalstm.errors import UserError
from report.examples import write_metrics


def test_tensorboard_has_the_numbers_of_a_run_while_it_goes_on(tmp_path):
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra tensorboard"
    )
    (tmp_path / "events.out.tfevents.1.old").write_text("of the run before it was interrupted")
    with report.tensorboard(tmp_path):
        write_metrics(tmp_path / "metrics.jsonl", 3)
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


def test_a_run_without_metrics_leaves_no_file(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    with report.tensorboard(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    message = r"^--tensorboard needs tensorboard, which is not installed: pip install 'metalstm\[tensorboard\]'$"
    with pytest.raises(UserError, match=message), report.tensorboard(tmp_path):
        pass
