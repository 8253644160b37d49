"""Benchmarks: the count of operations, and that each command measures and writes everything."""

import json
import subprocess
import sys
from math import ceil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import flops
from contenders import Task, build
from metalstm.methods import METHODS, RunConfig
from metalstm.recipes import with_changes
from metalstm.table import ROWS
from reference import meta_lstm_autograd
from reference.conv4 import Conv4

ROOT = Path(__file__).parents[1]


def counted(config: RunConfig, order: int) -> int:
    """What torch counts in a training episode of plain modules and tensor operations."""
    settings = config.settings
    method = build(config)
    weights: dict[str, torch.Tensor] = dict(method.optimizer.named_parameters())
    learner = Conv4(config.image_shape, config.n_way, config.learner_settings.filters).float()
    x, y = torch.rand(config.n_way * config.n_shot, *config.image_shape), torch.arange(config.n_way)
    batches = list(zip(x.split(settings.batch_size), y.repeat(config.n_shot).split(settings.batch_size), strict=True))
    losses = [lambda theta, x=x, y=y: F.cross_entropy(learner.logits(theta, x), y) for x, y in batches]
    query_x = torch.rand(config.n_way * config.n_query, *config.image_shape)
    with FlopCounterMode(display=False) as counter:
        theta, _ = meta_lstm_autograd.adapt(
            weights, method.theta_0(config.n_way), losses * settings.epochs, order=order
        )
        F.cross_entropy(learner.logits(theta, query_x), y.repeat(config.n_query)).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("shape", "n_shot"), [("16x20x3", 1), ("28x28x1", 2)])
def test_operations_of_an_episode_are_those_that_torch_counts(shape: str, n_shot: int, order: int):
    config = Task(shape, n_shot, n_way=3, n_query=2).config("paper")
    config = with_changes(config, {"filters": 4, "hidden_size": 3, "epochs": 2, "batch_size": 3, "order": order})
    settings = config.settings
    n_steps = settings.epochs * ceil(3 * n_shot / settings.batch_size)
    n_params = len(build(config).theta_0(config.n_way))
    # Products of a matrix and a vector, as the gates are, are none to torch. The first h is zero, without a gradient.
    hidden = config.optimizer_settings.hidden_size
    expected = flops.training_episode(config)
    expected -= n_params * (n_steps * 3 * 2 * 2 * (hidden + 2) + 2 * 4 * hidden * hidden)
    if order == 1:  # nobody needs the gradient of what enters the LSTM
        expected -= n_params * n_steps * 2 * 4 * hidden * 4
    else:  # torch makes vW' gy for the images too
        expected += (
            settings.epochs * 3 * n_shot * flops.layers(config.image_shape, 3, config.learner_settings.filters)[0]
        )
    assert expected == counted(config, order)


@pytest.mark.parametrize("n_shot", [1, 5])
def test_the_whole_support_set_at_once_is_a_step_an_epoch(n_shot: int):
    whole = Task("16x20x3", n_shot).config("best")
    assert whole.settings.batch_size is None
    as_many = with_changes(whole, {"batch_size": 5 * n_shot})
    assert flops.training_episode(whole) == flops.training_episode(as_many)


def test_support_moments_cost_the_convolutions_once_more():
    config = Task("28x28x1", 1).config("paper")
    with_moments = with_changes(config, {"train_query_norm": "support"})
    convolutions = flops.layers((1, 28, 28), 5)[:-1]
    more = flops.training_episode(with_moments) - flops.training_episode(config)
    assert more == 5 * (3 * sum(convolutions) - convolutions[0])


@pytest.mark.slow
def test_speed_measures_and_writes_it_all(tmp_path: Path):
    words = [
        "--quick",
        "--threads",
        "1",
        "--shapes",
        "16x16x1",
        "--shots",
        "1",
        "--recipes",
        "paper",
        "--out",
        str(tmp_path),
    ]
    command = [sys.executable, str(ROOT / "benchmarks" / "speed.py"), *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "cpu.json").read_text()
    measured = json.loads(text)
    assert str(tmp_path) not in text
    assert str(ROOT) not in text
    assert measured.keys() == {
        *("command", "date", "machine", "versions", "rounds", "seconds", "quick"),
        *("startup_seconds", "matmul_gflops", "tasks"),
    }
    assert measured["machine"].keys() == {
        *("cpu", "architecture", "system", "cores", "threads", "memory_gib", "governor", "load_average")
    }
    assert measured["versions"].keys() == {"python", "torch", "metalstm", "commit", "changed_files"}
    assert measured["startup_seconds"].keys() == {"metalstm --help", "import metalstm", "first training step"}
    (task,) = measured["tasks"].values()
    assert task["training"].keys() >= {"paper fp32", "reference"}
    assert task["training"]["paper fp32"].keys() == {"seconds", "episodes_per_second", "rounds"}
    assert task["times_as_slow_as_paper"].keys() == task["training"].keys() - {"paper fp32"}
    assert task["times_as_slow_as_paper"]["reference"].keys() == {"ratio", "min", "max"}
    parts = {"sampling", "forward", "backward", "update", "adapt", "adapt_and_classify", "evaluation"}
    assert task["gflop"]["paper"] > 0
    assert task["percent_of_roofline"]["paper"] > 0
    assert task["memory"]["paper"].keys() == {"imported_mib", "peak_mib"}
    measurements = task["parts"]["paper"]
    assert measurements.keys() == {"median", "p90", "evaluation_episodes_per_second", "raw"}
    assert measurements["median"].keys() == measurements["p90"].keys() == measurements["raw"].keys() == parts
    page = (tmp_path / "README.md").read_text()
    assert "| 16x16x1 1-shot | reference |" in page
    assert "nan" not in page


def test_table_hours_measures_every_part_of_every_row(tmp_path: Path):
    words = ["--size", "16", "--rounds", "1", "--threads", "1", "--out", str(tmp_path)]
    command = [sys.executable, str(ROOT / "benchmarks" / "table_hours.py"), *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    measured = json.loads((tmp_path / "table_hours.json").read_text())
    assert measured["pretraining"].keys() == {"64 filters"}
    assert measured["columns"].keys() == {"5w1s", "5w5s"}
    for column in measured["columns"].values():
        assert column.keys() == {row.name for row in ROWS}
        for row in ROWS:
            parts, expected = column[row.name], {"test"}
            if row.method != "pretrained":  # whose training is counted once, as pre-training
                expected |= {"train", "validate"} if METHODS[row.method].meta_trained else {"validate"}
            if row.method == "finetune":
                expected |= {"tune"}
            assert parts.keys() == expected
            assert all(seconds > 0 for seconds in parts.values())
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == 2 + 1 + 2 * len(ROWS) + 1


def test_pretraining_compares_two_versions(tmp_path: Path):
    out = tmp_path / "pretraining.json"
    words = ["--old", str(ROOT), "--rounds", "1", "--batches", "1", "--out", str(out)]
    command = [sys.executable, str(ROOT / "benchmarks" / "pretraining.py"), *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    measured = json.loads(out.read_text())
    assert measured["seconds"].keys() == {"old fp32", "new fp32", "old bf16", "new bf16"}
    assert all(len(times) == 1 and times[0] > 0 for times in measured["seconds"].values())
    assert str(ROOT) not in out.read_text()
    assert "times as fast" in result.stdout
