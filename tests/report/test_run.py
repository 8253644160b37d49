import re
from pathlib import Path

import pytest

from helpers import load_folder, make_folder, tiny_config
from metalstm import report
from metalstm.report.run import settings_table
from metalstm.training import train


def test_settings_are_in_two_columns_and_no_two_share_a_name():
    config = {"method": "m", "traits": {"mirrors": True}, "training": {"mirrors": False, "lr": 0.1}, "minutes": None}
    head, rows = settings_table(config)
    assert head == ("setting", "value", "setting", "value")
    assert rows == [
        ("method", "m", "lr", "0.1"),
        ("traits: mirrors", "True", "minutes", "None"),
        ("training: mirrors", "False", "", ""),
    ]


@pytest.mark.slow
def test_the_page_of_a_run_shows_results_pictures_and_settings(tmp_path):
    meta_sets = load_folder(make_folder(tmp_path / "images"))
    run = tmp_path / "run"
    train(tiny_config(meta_sets, episodes=100, val_every=50), meta_sets, run)
    report.write_run(run, "A run", meta_sets.splits["meta-val"], ["The result."])
    page = (run / "report.html").read_text()
    headings = ["One task", "Meta-training", "What was learned", "Configuration", "Machine and versions"]
    assert re.findall(r"<h2>(.*)</h2>", page) == headings
    assert page.index("<p>The result.</p>") < page.index("<h2>")
    assert page.count("<img") == 3
    assert "<td>input_bias</td>" in page
    for picture in ("curve.png", "gates.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")


def test_the_page_of_a_run_without_meta_training_shows_no_curve(tmp_path):
    meta_sets = load_folder(make_folder(tmp_path / "images"))
    run = tmp_path / "run"
    train(tiny_config(meta_sets, "pixels"), meta_sets, run)
    report.write_run(run, "A run", meta_sets.splits["meta-val"])
    page = (run / "report.html").read_text()
    headings = ["One task", "Accuracy on meta-val", "Configuration", "Machine and versions"]
    assert re.findall(r"<h2>(.*)</h2>", page) == headings
    assert not list(run.glob("*.png"))


def test_what_a_killed_report_left_is_removed(tmp_path):
    meta_sets = load_folder(make_folder(tmp_path / "images"))
    run = tmp_path / "run"
    train(tiny_config(meta_sets, "pixels"), meta_sets, run)
    left = [run / f".{name}.123.tmp" for name in ("report.html", "curve.png", "gates.png")]
    for path in left:
        path.write_text("half")
    report.write_run(run, "A run", meta_sets.splits["meta-val"])
    assert not any(map(Path.exists, left))
