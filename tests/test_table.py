"""The table: every row on tiny real runs, the choice of a rule, intervals, pages."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import SIZE, load_folder
from metalstm import checkpoint, convergence, table, table_page
from metalstm.datasets import SPLITS
from metalstm.errors import UserError
from metalstm.evaluation import Accuracy, evaluate_checkpoint
from metalstm.table import Budget, Task


def test_bold_is_the_best_and_what_overlaps_it():
    results = {
        "low": {"accuracy": 50.0, "ci95": 1.0},
        "touching": {"accuracy": 58.0, "ci95": 1.0},
        "best": {"accuracy": 60.0, "ci95": 1.0},
        "short of it": {"accuracy": 57.9, "ci95": 1.0},
    }
    assert table_page.bold(results) == {"best", "touching"}
    assert table_page.bold({}) == set()


def test_paired_difference():
    one, other = [60.0, 70.0, 80.0, 90.0], [50.0, 65.0, 70.0, 85.0]
    mean, ci95 = table_page.difference(one, other)
    gaps = Accuracy([10.0, 5.0, 10.0, 5.0])
    assert (mean, ci95) == (pytest.approx(gaps.mean), pytest.approx(gaps.ci95))


def test_a_row_that_is_not_there():
    with pytest.raises(UserError, match="unknown row 'nearest-neighbour', did you mean 'nearest-neighbor'"):
        table.select("nearest-neighbour")
    assert table.select(None) == table.ROWS
    assert [row.name for row in table.select("meta-lstm")] == ["meta-lstm"]


# The whole table, on small images -------------------------------------------------------------------------------------

BUDGET = Budget(train_episodes=4, val_every=2, val_episodes=2, few=2, many=3, read_at=(1, 2), test_episodes=4)


@pytest.fixture(scope="module")
def making(tmp_path_factory) -> table.Table:
    """A table of fifteen classes in three splits."""
    root = tmp_path_factory.mktemp("table")
    for k in range(15):
        (root / "data" / f"class {k:02}").mkdir(parents=True)
        pattern = np.random.RandomState(k).randint(0, 200, (4, 4, 3))
        for image in range(20):
            grain = np.random.RandomState([k, image]).randint(0, 50, (SIZE, SIZE, 3))
            pixels = np.kron(pattern, np.ones((SIZE // 4, SIZE // 4, 1), int)) + grain
            Image.fromarray(pixels.astype(np.uint8)).save(root / "data" / f"class {k:02}" / f"{image}.png")
    for number, split in enumerate(SPLITS):
        names = (f"class {k:02}\n" for k in range(5 * number, 5 * number + 5))
        (root / "data" / f"{split}.txt").write_text("".join(names))
    return table.Table(load_folder(root / "data"), root / "out", BUDGET)


def test_trained_in_bf16_tested_in_fp32(making, tmp_path):
    other = replace(making, out=tmp_path, precision="bf16")
    (row,) = table.select("nearest-neighbor")
    result = other.make(row, Task(5, 1))
    assert (result["precision"], result["train_precision"]) == ("fp32", "bf16")
    assert (
        checkpoint.load_method(tmp_path / "checkpoints" / "nearest-neighbor-5w1s.safetensors")[1].settings.precision
        == "fp32"
    )
    assert checkpoint.load_method(tmp_path / "runs" / "start-best-64f-5w5s")[1].settings.precision == "bf16"


def test_a_result_of_other_episodes_is_not_taken_for_one_of_these(making, tmp_path):
    (row,) = table.select("nearest-neighbor-pixels")
    replace(making, out=tmp_path).make(row, Task(5, 1))
    other = replace(making, out=tmp_path, seed=3, budget=replace(BUDGET, test_episodes=5))
    with pytest.raises(UserError, match="was made with episodes 4, seed 0, but this table is of episodes 5, seed 3"):
        table.make(other, [row], [])
    with pytest.raises(UserError, match="pass another --out"):
        table_page.write(other)


@pytest.mark.slow
def test_a_whole_table(making):
    """In one test, as it takes long to make; each part is a claim of its own."""
    table.make(making, table.ROWS, seeds=[1])
    every_row_has_a_result_at_both_tasks(making)
    checkpoints_give_the_figures_of_the_table(making)
    the_choice_of_a_rule_is_what_it_says(making)
    runs_of_one_seed_share_a_pretraining(making)
    what_is_there_is_not_made_again(making)
    the_page_shows_all(making)


def every_row_has_a_result_at_both_tasks(made):
    results = table_page.collect(made)
    assert [str(task) for task in results] == ["5w1s", "5w5s"]
    for there in results.values():
        assert list(there) == [row.name for row in table.ROWS]
        for result in there.values():
            assert len(result["per_episode"]) == BUDGET.test_episodes
            assert result["split"] == "meta-test"
            assert not result["transductive"]


def checkpoints_give_the_figures_of_the_table(made):
    for name in ("finetune-adam-5w5s", "finetune-head-5w1s", "nearest-neighbor-5w1s", "matching-net-fce-5w5s"):
        result = json.loads((made.out / "rows" / f"{name}.json").read_text())
        path = made.out / "checkpoints" / f"{name}.safetensors"
        again = evaluate_checkpoint(path, made.meta_sets, "meta-test", episodes=BUDGET.test_episodes)
        assert again["per_episode"] == result["per_episode"]
        assert again["checkpoint_sha256"] == result["checkpoint_sha256"]


def runs_of_one_seed_share_a_pretraining(made):
    starts = {path.parent.name for path in made.out.glob("runs/start-*/best.safetensors")}
    names = ("32f-5w5s", "32f-5w5s-seed1", "64f-5w5s")
    assert starts == {f"start-best-{name}" for name in names}
    assert not list(made.out.glob("runs/*/pretrained"))


def what_is_there_is_not_made_again(made):
    before = {path: path.stat().st_mtime_ns for path in made.out.rglob("*") if path.is_file()}
    table.make(made, table.ROWS, seeds=[1])
    assert {path: path.stat().st_mtime_ns for path in made.out.rglob("*") if path.is_file()} == before


def the_page_shows_all(made):
    table_page.write(made)
    assert "How fast" not in (made.out / "table.md").read_text()
    convergence.compare(made)
    table_page.write(made)
    values = json.loads((made.out / "table.json").read_text())
    assert values["versions"]["torch"] == torch.__version__
    assert set(values["convergence"]["5w5s"]["starts"]) == {"random", "pretrained", "theta_0"}
    assert len(values["ablation"]["5w5s"]) == 4
    (row,) = table.select("meta-lstm")
    whole = made.read(made.result(row, Task(5, 5)))
    assert whole is not None
    assert values["ablation"]["5w5s"]["whole"]["per_episode"] == whole["per_episode"]
    assert len(values["seeds"]["runs"]) == 2
    text = (made.out / "table.md").read_text()
    page = (made.out / "report.html").read_text()
    for row in table.ROWS:
        assert f"| {row.label} |" in text
        assert f"<td>{row.label}</td>" in page
    assert "**" in text
    assert "<b>" in page
    assert page.count("<img") >= 6
    assert "http" not in page.replace("http-equiv", "")


def the_choice_of_a_rule_is_what_it_says(made):
    """Followed anew with the chosen settings, the method reaches on meta-val what the choice says."""
    choice = json.loads((made.out / "choices" / "finetune-sgd-sgd-5w5s.json").read_text())
    file = made.out / "checkpoints" / "finetune-sgd-5w5s.safetensors"
    again = evaluate_checkpoint(file, made.meta_sets, "meta-val", episodes=BUDGET.many)
    assert again["accuracy"] == pytest.approx(choice["meta_val"])
    assert choice["episodes"] == BUDGET.many
