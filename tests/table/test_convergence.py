"""Comparing a learned optimizer with others: same starts, tuned rules, files that are kept."""

import json
from dataclasses import replace

import pytest
import torch

from metalstm import recipes
from metalstm.ablation import HEAD_RULE, RULE
from metalstm.evaluation import evaluate
from metalstm.optimizers import RULES
from metalstm.table import Cell, Table, convergence, making
from metalstm.table.ablation import compare
from metalstm.training import record
from table.conftest import BUDGET


@pytest.fixture(scope="module")
def finished(small_sets, tmp_path_factory):
    """A table with the row that is compared, at its main task."""
    table = Table(small_sets, tmp_path_factory.mktemp("compared"), BUDGET)
    row = convergence.learned_row(table)
    assert row is not None
    making.make_cell(table, Cell(row, table.main_task))
    return table


@pytest.fixture(scope="module")
def learned(finished):
    return convergence.learned(finished)


def test_the_row_that_is_compared_has_a_learned_optimizer(finished, small_table):
    row = convergence.learned_row(finished)
    assert row is not None
    assert (row.name, row.seeds) == ("meta-lstm", True)
    assert convergence.learned(small_table) is None  # not made yet
    compare(small_table)
    assert not (small_table.out / "convergence").exists()


def test_starts(finished, learned):
    """One learner and one learned optimizer; only theta_0 and its moments differ."""
    starts = convergence.starts(finished, learned)
    assert list(starts) == ["pretrained", "theta_0"]  # a head on random features says nothing
    assert all(method.optimizer is learned.method.optimizer for method in starts.values())
    assert all(method.settings == learned.method.settings for method in starts.values())
    network = making.checkpoint.load_method(finished.out / "runs" / "start-best-64f-average-5w5s")[0].network()
    assert all(map(torch.equal, starts["pretrained"].network()[:2], network[:2]))
    assert not starts["pretrained"].head_0.any()
    assert starts["theta_0"] is learned.method


def test_where_the_body_moves_random_weights_are_a_start(finished, learned):
    config = recipes.with_changes(learned.config, {"moves": "all"})
    starts = convergence.starts(finished, replace(learned, config=config))
    assert list(starts) == list(convergence.STARTS)
    network = starts["pretrained"].network()
    assert not torch.equal(starts["random"].body_0, network.body)
    assert (starts["random"].settings.keep_moments, starts["random"].settings.query_norm) == (False, "support")
    assert starts["pretrained"].settings.keep_moments


def test_without_a_pretraining_there_is_no_such_start(finished, learned):
    training = replace(learned.config.training, pretrain=0)
    other = replace(learned, config=replace(learned.config, training=training))
    assert list(convergence.starts(finished, other)) == ["theta_0"]


@pytest.fixture(scope="module")
def compared(finished):
    compare(finished)
    return {name: json.loads(convergence.path(finished, name).read_text()) for name in ("convergence", "ablation")}


@pytest.mark.slow
def test_every_optimizer_is_followed_from_every_start(finished, learned, compared):
    curves = compared["convergence"]
    assert curves["points"] == [0, 1, 2, 5]
    for entries in curves["starts"].values():
        assert list(entries) == ["meta-lstm", *RULES, "class-means"]  # the head alone moves in all of them
        assert [name for name, entry in entries.items() if entry["choice"] is None] == ["meta-lstm", "class-means"]
        for entry in entries.values():
            assert len(entry["per_episode"]) == finished.budget.test_episodes
            at_steps = entry["curves"] and entry["curves"]["accuracy"][curves["points"].index(entry["steps"])]
            assert at_steps is None or at_steps == pytest.approx(entry["accuracy"])
        starts = [entry["curves"]["accuracy"][0] for entry in entries.values() if entry["curves"]]
        assert len(set(starts)) == 1  # before the first step all are alike


@pytest.mark.slow
def test_parts(finished, learned, compared):
    parts = compared["ablation"]
    assert next(iter(parts)) == "whole"
    sampler = finished.episodes("meta-test", finished.main_task)
    assert parts["whole"]["per_episode"] == evaluate(learned.method, sampler, 4).per_episode
    assert parts["no step"]["accuracy"] == pytest.approx(20, abs=5)  # all classes look alike, up to rounding
    tuned = compared["convergence"]["starts"]["theta_0"]
    best, choice = convergence.best_rule(tuned, list(RULES))
    assert choice.meta_val == max(tuned[rule]["choice"]["meta_val"] for rule in RULES)
    assert parts[RULE]["per_episode"] == tuned[best]["per_episode"]
    assert HEAD_RULE not in parts
    assert parts["no step, nearest class mean"]["per_episode"] == tuned["class-means"]["per_episode"]


@pytest.mark.slow
def test_each_comparison_on_meta_test_is_noted(finished, compared):
    noted = [each for each in record.read(finished.out)["meta_test"] if ": " in each["row"]]
    starts, parts = compared["convergence"]["starts"], compared["ablation"]
    names = [f"convergence: {start}-{name}" for start, rivals in starts.items() for name in rivals]
    names += [f"ablation: {name}" for name in parts]
    assert [each["row"] for each in noted] == [f"{name}-{finished.main_task}" for name in names]
    assert noted[-1]["accuracy"] == list(parts.values())[-1]["accuracy"]
    assert (noted[0]["split"], noted[0]["n_way"], noted[0]["episodes"], noted[0]["seed"]) == ("meta-test", 5, 4, 0)


@pytest.mark.slow
def test_what_exists_stays(finished, compared):
    files = {path: path.stat().st_mtime_ns for path in (finished.out / "convergence").iterdir()}
    compare(finished)
    assert files == {path: path.stat().st_mtime_ns for path in (finished.out / "convergence").iterdir()}
