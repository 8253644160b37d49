"""The protocol: the mean, its interval, the same episodes for every method, and what a result says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import helpers
from helpers import numbered
from metalstm import checkpoint, evaluation, recipes
from metalstm.episodes import EpisodeSampler
from metalstm.errors import UserError
from metalstm.evaluation import Accuracy, confusion, evaluate, evaluate_checkpoint
from metalstm.methods.pixels import PixelNearestNeighbor


def test_mean_and_interval_are_those_of_the_protocol():
    values = np.random.default_rng(0).uniform(20, 100, 600)
    accuracy = Accuracy(values.tolist())
    assert accuracy.mean == pytest.approx(values.mean())
    assert accuracy.ci95 == pytest.approx(1.96 * values.std(ddof=1) / np.sqrt(600))
    assert str(accuracy) == f"{values.mean():.2f} +- {1.96 * values.std(ddof=1) / np.sqrt(600):.2f} %"


def test_one_episode_has_no_interval():
    assert Accuracy([50.0]).ci95 == float("inf")


class Oracle(PixelNearestNeighbor):
    """Right on classes 0 and 1, wrong on class 2: query labels lie class by class."""

    def adapt(self, support):
        return {}

    def logits(self, adapted, query_x):
        right = torch.eye(3).repeat_interleave(query_x.shape[1] // 3, 0)
        right[-query_x.shape[1] // 3 :] = torch.tensor([1.0, 0.0, 0.0])
        return right[None]


def test_accuracy_is_the_share_of_right_queries():
    sampler = EpisodeSampler(numbered([8] * 4), 3, 1, 5)
    assert evaluate(Oracle(), sampler, 4).per_episode == pytest.approx([200 / 3] * 4)


def test_every_method_sees_the_same_episodes():
    sampler = EpisodeSampler(numbered([8] * 4), 3, 1, 5)
    method = PixelNearestNeighbor()
    assert evaluate(method, sampler, 5).per_episode == evaluate(method, sampler, 5).per_episode


def test_evaluation_keeps_no_graph():
    class Spy(PixelNearestNeighbor):
        def adapt(self, support):
            assert not torch.is_grad_enabled()
            return super().adapt(support)

    evaluate(Spy(), EpisodeSampler(numbered([8] * 4), 3, 1, 5), 1)


def test_confusion_counts_queries_of_classes_that_met():
    """Labels 0 and 1 are right and 2 is taken for 0, whatever classes these are."""
    sampler = EpisodeSampler(numbered([8] * 5), 3, 1, 5)
    taken, met = np.zeros((5, 5)), np.zeros((5, 5))
    for number in range(6):
        first, second, third = classes = sampler.classes(number)
        taken[first, first] += 5
        taken[second, second] += 5
        taken[third, first] += 5
        met[np.ix_(classes, classes)] += 5
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(confusion(Oracle(), sampler, 6).numpy(), taken / met, rtol=1e-6)
    assert confusion(Oracle(), sampler, 1).isnan().sum() == 25 - 9


@pytest.mark.parametrize("training", [True, False])
def test_the_method_comes_back_in_the_mode_that_it_was_in(training):
    class Fails(PixelNearestNeighbor):
        def logits(self, adapted, query_x):
            assert not self.training
            raise ZeroDivisionError

    sampler = EpisodeSampler(numbered([8] * 4), 3, 1, 5)
    for method in (PixelNearestNeighbor(), Fails()):
        method.train(training)
        try:
            evaluate(method, sampler, 2)
        except ZeroDivisionError:
            assert isinstance(method, Fails)
        assert method.training == training


# A checkpoint by the protocol.


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return helpers.make_folder(tmp_path_factory.mktemp("images") / "patterns")


@pytest.fixture
def meta_sets(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("METALSTM_CACHE", str(tmp_path / "cache"))
    return helpers.load_folder(folder)


@pytest.fixture
def path(meta_sets, tmp_path) -> Path:
    """An untrained Meta-LSTM."""
    config = helpers.tiny_config(meta_sets)
    file = tmp_path / "some.safetensors"
    meta = {"config": recipes.to_dict(config), "meta_val": 50.0, "episode": 0}
    checkpoint.save(file, checkpoint.method_tensors(recipes.build(config)), meta)
    return file


def test_a_result_says_what_was_tested_and_how(meta_sets, path):
    result = evaluate_checkpoint(path, meta_sets, "meta-test", n_query=3, episodes=4, seed=5)
    accuracy = evaluate(
        checkpoint.load_method(path)[0], EpisodeSampler(meta_sets.splits["meta-test"], 2, 1, 3, seed=5), 4
    )
    assert result.pop("seconds") > 0
    assert result == {
        "method": "meta-lstm",
        "data": meta_sets.name,
        "trained_on": meta_sets.name,
        "other_data": False,
        "split": "meta-test",
        "n_way": 2,
        "n_shot": 1,
        "n_query": 3,
        "within_group": False,
        "data_digest": meta_sets.digest,
        "episodes": 4,
        "accuracy": accuracy.mean,
        "ci95": accuracy.ci95,
        "seed": 5,
        "query_norm": "running",
        "precision": "fp32",
        "transductive": False,
        "recipe": "paper",
        "changes": {"epochs": 2, "filters": 4, "hidden_size": 3, "val_episodes": 2, "patience": 1000},
        "checkpoint_sha256": checkpoint.sha256(path),
        "per_episode": accuracy.per_episode,
    }
    assert json.loads(json.dumps(result)) == result


def test_within_a_group(meta_sets, path):
    whole = meta_sets.splits["meta-test"]  # 3 classes
    grouped = replace(meta_sets, splits={"meta-test": replace(whole, groups=("one", "two", "two"))})
    result = evaluate_checkpoint(path, grouped, "meta-test", n_query=3, episodes=4, within_group=True)
    sampler = EpisodeSampler(grouped.splits["meta-test"], 2, 1, 3, within_group=True)
    expected = evaluate(checkpoint.load_method(path)[0], sampler, 4)
    assert (result["within_group"], result["per_episode"]) == (True, expected.per_episode)


def test_queries_normalized_by_their_own_batch_are_called_transductive(meta_sets, path):
    changes = {"query_norm": "batch"}
    result = evaluate_checkpoint(path, meta_sets, "meta-val", n_query=3, episodes=2, changes=changes)
    assert (result["query_norm"], result["transductive"]) == ("batch", True)
    assert result["changes"]["query_norm"] == "batch"


def test_a_method_without_that_setting_is_inductive(meta_sets, tmp_path):
    config = helpers.tiny_config(meta_sets, "pixels")
    meta = {"config": recipes.to_dict(config)}
    checkpoint.save(tmp_path / "pixels.safetensors", checkpoint.method_tensors(recipes.build(config)), meta)
    result = evaluate_checkpoint(tmp_path / "pixels.safetensors", meta_sets, "meta-test", n_query=3, episodes=2)
    assert (result["query_norm"], result["transductive"]) == (None, False)


def test_other_data_must_have_images_of_the_same_shape(meta_sets, path):
    splits = {name: replace(part, images=part.images[..., :1]) for name, part in meta_sets.splits.items()}
    with pytest.raises(UserError) as error:
        evaluate_checkpoint(path, replace(meta_sets, name="gray", digest="f" * 64, splits=splits), "meta-test")
    assert str(error.value) == (
        f"{path} takes images of 3 channels, 16x16, but those of gray are 1 channel, 16x16: take another checkpoint"
    )


def test_data_that_have_changed_are_refused(meta_sets, path):
    with pytest.raises(UserError) as error:
        evaluate_checkpoint(path, replace(meta_sets, digest="f" * 64), "meta-test")
    assert str(error.value) == (
        f"{path} was trained on {meta_sets.name} (digest {meta_sets.digest[:12]}), but its images have changed (digest "
        "ffffffffffff): the files, or the version of Pillow that resized them, differ: see metalstm data check"
    )
    with pytest.raises(
        UserError, match=r"^--split all: .* was trained on classes of folder:.*: pass --split meta-test$"
    ):
        evaluate_checkpoint(path, meta_sets, "all")


def test_a_number_of_classes_that_is_not_served_is_refused(meta_sets, path):
    with pytest.raises(UserError) as error:
        evaluate_checkpoint(path, meta_sets, "meta-test", n_way=3, n_query=3)
    assert str(error.value) == "this method was meta-trained for 2 classes and serves no other number: got 3"


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_tf32_is_used_where_it_is_asked_for_and_nowhere_else(precision):
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        evaluation.allow_tf32(precision)
        allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        assert allowed == (precision == "tf32",) * 2
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
