from metalstm.report.metrics import read_metrics


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"episode": 50, "loss": 1.5}\n{"episode": 100, "lo')
    assert read_metrics(path) == [{"episode": 50, "loss": 1.5}]
    path.write_text("")
    assert read_metrics(path) == []
