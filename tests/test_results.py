"""Every checkpoint that `results/` keeps gives the figures that are recorded for it, episode by episode."""

import functools
import json
import os
from pathlib import Path

import pytest

from metalstm import data
from metalstm.evaluation import evaluate_checkpoint

ROOT = Path(__file__).parents[1]
KEPT = sorted((ROOT / "results").glob("*/checkpoints/*.safetensors"))
EPISODES = 50 if os.environ.get("METALSTM_SOAK") else 5

load = functools.cache(data.load)  # all checkpoints of a data set share it


def test_results_are_found():
    assert KEPT


@pytest.mark.data
@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parents[1].name}/{path.stem}")
def test_checkpoint_gives_its_recorded_figures(path, data_root):
    row = json.loads((path.parents[1] / "rows" / f"{path.stem}.json").read_text("utf-8"))
    result = evaluate_checkpoint(
        path,
        load(row["data"], data_root),
        row["split"],
        row["n_way"],
        row["n_shot"],
        row["n_query"],
        EPISODES,
        row["seed"],
        {"precision": row["precision"]},
    )
    assert result["transductive"] == row["transductive"]
    query = 100 / (row["n_way"] * row["n_query"])  # percent; machines differ by rounding, which can turn one answer
    off = [
        f"episode {number}: {now:.2f} %, but recorded is {then:.2f} %"
        for number, (now, then) in enumerate(zip(result["per_episode"], row["per_episode"], strict=False))
        if abs(now - then) > 1.5 * query
    ]
    assert not off
    print("exact:", sum(a == b for a, b in zip(result["per_episode"], row["per_episode"])))
