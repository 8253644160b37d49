"""`run.json`: what made a run, and each time that meta-test was opened."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from helpers import tiny_config
from metalstm import provenance
from metalstm.errors import UserError
from metalstm.training import record, train

RESULT = {"split": "meta-test", "n_way": 2, "n_shot": 1, "episodes": 6, "accuracy": 50.0, "per_episode": [50.0] * 6}


def test_a_run_says_what_made_it_each_time_that_it_went_on(meta_sets, tmp_path):
    out, config = tmp_path / "run", tiny_config(meta_sets, episodes=2)
    train(config, meta_sets, out)
    train(config, meta_sets, out, resume=True)  # it is finished
    longer = replace(config, training=replace(config.training, episodes=4, minutes=5.0))
    train(longer, meta_sets, out, resume=True)
    values = json.loads((out / "run.json").read_text())
    assert values.keys() == {"starts", "meta_test"}
    first, second = values["starts"]
    assert first.keys() == {
        "time", "command", "data", "data_digest", "seed", "limits", "device", "processes", "versions", "machine"
    }  # fmt: skip
    assert (first["data"], first["data_digest"], first["seed"]) == (meta_sets.name, meta_sets.digest, 0)
    assert (first["device"], first["processes"], first["machine"]["threads"]) == ("cpu", 1, 1)
    assert first["limits"] == {"episodes": 2, "minutes": None, "patience": 1000}
    assert second["limits"] == {"episodes": 4, "minutes": 5.0, "patience": 1000}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first["time"])
    assert first["versions"].keys() >= {"python", "torch", "metalstm", "commit"}
    assert first["command"] == second["command"] == provenance.command()


def test_a_run_of_before_run_json_goes_on(meta_sets, tmp_path):
    out = tmp_path / "run"
    train(tiny_config(meta_sets, episodes=2), meta_sets, out)
    (out / "run.json").unlink()
    train(tiny_config(meta_sets, episodes=2), meta_sets, out, resume=True)
    assert not (out / "run.json").exists(), "a finished run was not made now"
    train(tiny_config(meta_sets, episodes=3), meta_sets, out, resume=True)
    assert len(record.read(out)["starts"]) == 1


def test_pre_training_has_its_own(meta_sets, tmp_path):
    train(tiny_config(meta_sets, shared_head=True, episodes=1, pretrain=2), meta_sets, tmp_path / "run")
    assert [each["limits"]["episodes"] for each in record.read(tmp_path / "run" / "pretrained")["starts"]] == [2]


def test_openings_are_noted_in_order_and_counted_by_row(tmp_path):
    for row in ("a", "b", "a"):
        record.opening(tmp_path, RESULT, row=row)
    record.opening(tmp_path, RESULT | {"accuracy": float("nan")})
    first, *_, last = record.read(tmp_path)["meta_test"]
    assert {name: first[name] for name in ("n_way", "accuracy", "row")} == {"n_way": 2, "accuracy": 50.0, "row": "a"}
    assert "per_episode" not in first
    assert last["accuracy"] is None
    assert [len(record.openings(tmp_path, row)) for row in ("a", "b", "c")] == [2, 1, 0]
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b'{"starts": {}}', b'{"meta_test": [1]}', b"[" * 10**5])
def test_a_damaged_file_is_noticed_before_training(meta_sets, tmp_path: Path, text):
    out = tmp_path / "run"
    train(tiny_config(meta_sets, episodes=2), meta_sets, out)
    (out / "run.json").write_bytes(text)
    with pytest.raises(UserError, match=r"run.json is damaged \(.*\): restore it, or move it away$"):
        train(tiny_config(meta_sets, episodes=4), meta_sets, out, resume=True)
    assert (out / "run.json").read_bytes() == text
