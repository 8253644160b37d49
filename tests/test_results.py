"""Every checkpoint that `results/` keeps gives the figures that are recorded for it, episode by episode."""

import functools
import json
import os
from pathlib import Path

import pytest

from metalstm import checkpoint, data
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
    _, config, _ = checkpoint.load_method(path)
    result = evaluate_checkpoint(
        path,
        load(config.data, data_root, config.image_shape[1], config.traits),
        row["split"],
        row["n_way"],
        row["n_shot"],
        row["n_query"],
        EPISODES,
        row["seed"],
        {"precision": row["precision"]},
        within_group=row.get("within_group", False),
    )
    assert [result[name] for name in ("method", "data", "transductive")] == [
        row[name] for name in ("method", "data", "transductive")
    ]
    # Percent. Machines differ by rounding, which turns an answer now and then.
    tolerance = 2.5 * 100 / (row["n_way"] * row["n_query"])
    off = [
        f"episode {number}: {now:.2f} %, but recorded is {then:.2f} %"
        for number, (now, then) in enumerate(zip(result["per_episode"], row["per_episode"], strict=False))
        if abs(now - then) > tolerance
    ]
    assert not off
