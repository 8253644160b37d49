"""The outer loop: what a run trains, validates, tunes and keeps, and that it can be resumed."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import helpers
from helpers import assert_same_tensors, metrics, tiny_config
from metalstm import checkpoint, recipes
from metalstm.errors import UserError
from metalstm.evaluation import evaluate
from metalstm.learners import LEARNERS
from metalstm.methods import METHODS, GradientMethod, MatchingNet, Search, finetune
from metalstm.methods.pretrained import Pretrained
from metalstm.training import loop, meta_train_images, step_seconds, train
from metalstm.training.run_folder import RunFolder

LINE_KEYS = {"episode", "seconds", "loss", "accuracy", "episodes_per_second"}
SEARCH = Search(few=2, many=3, read_at=(1, 3))


def log_of(config, meta_sets, out: Path, resume: bool = False) -> list[dict]:
    train(config, meta_sets, out, resume)
    return metrics(out)


def bytes_of(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


# Resume.


def test_resume_without_a_run_makes_one(meta_sets, tmp_path):
    config = tiny_config(meta_sets, episodes=5)
    train(config, meta_sets, tmp_path / "one", resume=True)
    train(config, meta_sets, tmp_path / "other")
    assert_same_tensors(tmp_path / "one" / "last.safetensors", tmp_path / "other" / "last.safetensors")


def test_a_run_can_be_made_longer(meta_sets, tmp_path):
    long, out, whole = tiny_config(meta_sets, episodes=20, val_every=5), tmp_path / "run", tmp_path / "whole"
    train(tiny_config(meta_sets, episodes=10, val_every=5), meta_sets, out)
    before = (out / "last.safetensors").read_bytes()
    train(long, meta_sets, out, resume=True)
    assert (out / "last.safetensors").read_bytes() != before
    train(long, meta_sets, whole)
    assert_same_tensors(whole / "last.safetensors", out / "last.safetensors")
    assert_same_tensors(whole / "best.safetensors", out / "best.safetensors")
    assert metrics(out) == metrics(whole)


def test_a_finished_run_stays_as_it_is(meta_sets, tmp_path):
    config, out = tiny_config(meta_sets, episodes=10, val_every=5), tmp_path / "run"
    train(config, meta_sets, out)
    before = bytes_of(out)
    assert set(before) == {"config.json", "metrics.jsonl", "best.safetensors", "last.safetensors", "run.json"}
    train(config, meta_sets, out, resume=True)
    assert bytes_of(out) == before


def test_fewer_episodes_than_done_do_not_change_what_is_recorded(meta_sets, tmp_path):
    out = tmp_path / "run"
    train(tiny_config(meta_sets, episodes=10, val_every=5), meta_sets, out)
    before = bytes_of(out)
    with pytest.raises(UserError, match=r"run is 10 episodes long already: pass at least as many --episodes$"):
        train(tiny_config(meta_sets, episodes=5, val_every=5), meta_sets, out, resume=True)
    assert bytes_of(out) == before


TRAINED = [name for name, kind in METHODS.items() if kind.meta_trained]


@pytest.mark.parametrize("method", TRAINED)
def test_every_method_resumes_to_the_same_bits(meta_sets, tmp_path, method):
    config = tiny_config(meta_sets, method, episodes=6, lr_decay=False)  # the rates depend on the length of the run
    train(config, meta_sets, tmp_path / "whole")
    train(tiny_config(meta_sets, method, episodes=3, lr_decay=False), meta_sets, tmp_path / "parts")
    train(config, meta_sets, tmp_path / "parts", resume=True)
    assert_same_tensors(tmp_path / "whole" / "last.safetensors", tmp_path / "parts" / "last.safetensors")
    assert checkpoint.load_method(tmp_path / "whole")[1] == config


# The outer loop.


def test_the_best_checkpoint_is_that_of_the_highest_meta_val_and_patience_stops(meta_sets, tmp_path):
    out, again = tmp_path / "run", tmp_path / "again"
    log = log_of(tiny_config(meta_sets, episodes=1000, val_every=5, patience=3, lr=0.02), meta_sets, out)
    values = [(line["meta_val"], -line["episode"]) for line in log if "meta_val" in line]
    highest, first = max(values)[0], -max(values)[1]

    tensors, meta = checkpoint.load(out / "best.safetensors")
    assert (meta["meta_val"], meta["episode"]) == (highest, first)
    assert not any(name.startswith("optimizer.") for name in tensors)
    assert log[-1]["episode"] == first + 3 * 5 < 1000, "stops after three validations without gain"

    train(tiny_config(meta_sets, episodes=first, val_every=5, patience=3, lr=0.02), meta_sets, again)
    last, _ = checkpoint.load(again / "last.safetensors")
    assert all(torch.equal(tensor, last[name]) for name, tensor in tensors.items())
    of_the_end, _ = checkpoint.load(out / "last.safetensors")
    assert not all(torch.equal(tensor, of_the_end[name]) for name, tensor in tensors.items())

    before = bytes_of(out)
    train(tiny_config(meta_sets, episodes=1000, val_every=5, patience=3, lr=0.02), meta_sets, out, resume=True)
    assert bytes_of(out) == before


def test_minutes_end_a_run_with_a_validation_and_more_of_them_go_on(meta_sets, tmp_path):
    short, out, whole = tiny_config(meta_sets, episodes=10, minutes=1e-9), tmp_path / "run", tmp_path / "whole"
    log = log_of(short, meta_sets, out)
    assert [(line["episode"], "meta_val" in line) for line in log] == [(1, True)]
    assert checkpoint.load(out / "best.safetensors")[1]["episode"] == 1
    assert log_of(short, meta_sets, out, resume=True) == log
    train(tiny_config(meta_sets, episodes=10, minutes=1e9), meta_sets, out, resume=True)
    train(tiny_config(meta_sets, episodes=10), meta_sets, whole)
    assert_same_tensors(whole / "last.safetensors", out / "last.safetensors")


def test_lines_of_metrics(meta_sets, tmp_path):
    train(tiny_config(meta_sets, episodes=60, meta_batch=7, val_every=21), meta_sets, tmp_path / "run")
    lines = metrics(tmp_path / "run", timing=True)
    assert [line["episode"] for line in lines] == [21, 42, 56, 63]  # 56: the first beyond 50
    assert [line["episode"] for line in lines if "meta_val" in line] == [21, 42, 63]
    for line in lines:
        assert line.keys() >= LINE_KEYS
        assert 0 <= line["accuracy"] <= 100
        assert 0 <= line.get("meta_val", 0) <= 100
        assert line["loss"] > 0
        assert line["episodes_per_second"] > 0
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


def test_a_line_holds_the_mean_since_the_line_before(meta_sets, tmp_path):
    single = log_of(tiny_config(meta_sets, episodes=4, val_every=1), meta_sets, tmp_path / "single")
    pairs = log_of(tiny_config(meta_sets, episodes=4, val_every=2), meta_sets, tmp_path / "pairs")
    assert len({line["loss"] for line in single}) == 4
    for k, pair in enumerate(pairs):
        for key in ("loss", "accuracy"):
            assert pair[key] == pytest.approx((single[2 * k][key] + single[2 * k + 1][key]) / 2, rel=1e-5)


def test_the_learning_rate_falls_along_half_a_cosine():
    factors = [loop._cosine(progress) for progress in (0.0, 0.25, 0.5, 1.0)]
    assert factors == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, 0])


def test_lr_decay_rotations_and_meta_batch_change_the_weights(meta_sets, tmp_path):
    seen = []
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "lr": {"lr": 0.01},
        "optimizer_lr": {"optimizer_lr": 0.01},
        "decay": {"lr_decay": True},
        "rotations": {"rotations": True},
        "mirrors": {"mirrors": True},
        "meta_batch": {"meta_batch": 2},
    }
    for name, options in variants.items():
        train(tiny_config(meta_sets, episodes=4, **options), meta_sets, tmp_path / name)
        seen.append((tmp_path / name / "last.safetensors", checkpoint.load(tmp_path / name / "last.safetensors")[0]))
    for k, (_, one) in enumerate(seen):
        for _, other in seen[k + 1 :]:
            assert not torch.equal(one["method.body_0"], other["method.body_0"])


@pytest.mark.parametrize("method", ["meta-lstm", "pretrained"])
def test_with_momentum_and_random_changes_of_images_a_run_resumes_to_the_same_bits(meta_sets, tmp_path, method):
    changes = {"outer": "sgd", "weight_decay": 0.01, "crop": 2, "jitter": 0.4, "affine": 0.1, "elastic": 1.0}
    whole, out, plain = tmp_path / "whole", tmp_path / "run", tmp_path / "plain"
    train(tiny_config(meta_sets, method, episodes=8, **changes), meta_sets, whole)
    train(tiny_config(meta_sets, method, episodes=5, **changes), meta_sets, out)
    train(tiny_config(meta_sets, method, episodes=8, **changes), meta_sets, out, resume=True)
    assert_same_tensors(whole / "last.safetensors", out / "last.safetensors")
    for name in changes:
        rest = {other: value for other, value in changes.items() if other != name}
        train(tiny_config(meta_sets, method, episodes=8, **rest), meta_sets, plain / name)
        one, other = (checkpoint.load(run / "best.safetensors")[0] for run in (whole, plain / name))
        assert any(not torch.equal(one[key], other[key]) for key in one), name


def test_a_run_is_trained_on_the_images_and_classes_that_its_settings_add(meta_sets):
    added: tuple[dict[str, Any], ...] = {}, {"mirrors": True}, {"mirrors": True, "rotations": True}
    plain, mirrored, rotated = (meta_train_images(tiny_config(meta_sets, **options), meta_sets) for options in added)
    assert (len(plain.classes), len(plain.images)) == (6, 12 * 8)  # of all splits, which share them
    assert (len(mirrored.classes), len(mirrored.images)) == (6, 2 * 6 * 8)
    assert (len(rotated.classes), len(rotated.images)) == (24, 4 * 2 * 6 * 8)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_state(meta_sets, tmp_path):
    out, settings = tmp_path / "run", {"input_bias": (200.0, 200.0), "lr": 1e9, "optimizer_lr": 1e9}
    train(tiny_config(meta_sets, episodes=1, **settings), meta_sets, out)
    good = (out / "last.safetensors").read_bytes()
    with pytest.raises(UserError) as error:
        train(tiny_config(meta_sets, episodes=9, **settings), meta_sets, out, resume=True)
    assert str(error.value).startswith("the loss is no longer finite at episode 9 (loss nan, gradient nan, ")
    assert str(error.value).endswith(f"{out} keeps the last good state")
    assert (out / "last.safetensors").read_bytes() == good


def test_weights_that_are_not_finite_are_noticed_at_the_step_that_makes_them_so(meta_sets, tmp_path):
    """The loss of that step is still finite: such weights were saved, and called the last good state afterwards."""
    config = tiny_config(meta_sets, "matching-net", episodes=1)
    method, line = recipes.build(config), {"episode": 1, "loss": 1.0, "grad_norm": 1.0}
    loop._check_finite(line, method, RunFolder(tmp_path, config))
    torch.nn.utils.vector_to_parameters(torch.full((method.network().body.numel(),), torch.inf), method.parameters())
    with pytest.raises(UserError) as error:
        loop._check_finite(line, method, RunFolder(tmp_path, config))
    assert str(error.value) == (
        "the loss is no longer finite at episode 1 (loss 1.0, gradient 1.0, weights not finite): lower --lr or "
        "--input-bias; nothing was saved yet"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lr": 1e38}, "--lr 1e+38: must be at least 0 and at most 1e+09"),
        ({"lr": -1.0}, "--lr -1.0: must be at least 0 and at most 1e+09"),
        ({"meta_batch": 0}, "--meta-batch 0: must be at least 1 and at most 1e+09"),
    ],
)
def test_settings_are_checked_in_python_too(meta_sets, tmp_path, changes, said):
    config = tiny_config(meta_sets, episodes=1)
    with pytest.raises(UserError) as error:
        train(replace(config, training=replace(config.training, **changes)), meta_sets, tmp_path / "run")
    assert str(error.value) == said
    assert not (tmp_path / "run").exists()


def test_seed_and_device_are_checked_in_python_too(meta_sets, tmp_path):
    config = tiny_config(meta_sets, episodes=1)
    with pytest.raises(UserError, match=r"^--seed -1: must be at least 0 and below"):
        train(replace(config, seed=-1), meta_sets, tmp_path / "run")
    with pytest.raises(UserError, match=r"^--device xx: not usable here \(.*\): pass --device cpu$"):
        train(config, meta_sets, tmp_path / "run", device="xx")
    assert not (tmp_path / "run").exists()


def test_seconds_of_a_step_are_of_a_step_and_of_nothing_where_nothing_is_trained(meta_sets):
    assert step_seconds(tiny_config(meta_sets, episodes=1), meta_sets) > 0
    assert step_seconds(tiny_config(meta_sets, "pixels"), meta_sets) == 0


# Groups of parameters.


class Grouped(MatchingNet):
    """Its groups are what a test sets."""

    groups: dict[str, list[str]]

    def parameter_groups(self):
        return {rate: [getattr(self, name) for name in names] for rate, names in self.groups.items()}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "parameter_groups of Grouped must have each trained parameter once, but misses or repeats body"),
        (
            {"lr": ["body"], "optimizer_lr": ["body"]},
            "parameter_groups of Grouped must have each trained parameter once, but misses or repeats body",
        ),
        (
            {"lrs": ["body"]},
            "unknown learning rate of parameter_groups 'lrs', did you mean 'lr'? allowed: lr, optimizer_lr",
        ),
    ],
    ids=["none", "twice", "unknown rate"],
)
def test_a_parameter_in_no_group_or_in_two_is_refused(meta_sets, tmp_path, monkeypatch, groups, message):
    monkeypatch.setitem(METHODS, "grouped", Grouped)
    monkeypatch.setattr(Grouped, "groups", groups, raising=False)
    config = replace(tiny_config(meta_sets, "matching-net", episodes=2), method="grouped")
    with pytest.raises(UserError) as error:
        train(config, meta_sets, tmp_path / "run")
    assert str(error.value) == message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lr", [1e-2, 0.0])
def test_each_group_is_trained_at_its_own_rate(meta_sets, lr):
    """The gates learn at `optimizer_lr`, everything else at `lr`, which the first step of Adam shows."""
    config = tiny_config(meta_sets, episodes=1, lr=lr, optimizer_lr=1e-4, clip=None)
    method = recipes.build(config)
    optimizer = loop.outer_optimizer(method, config.training)
    before = {name: parameter.detach().clone() for name, parameter in method.named_parameters()}
    for parameter in method.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in method.named_parameters():
        rate = 1e-4 if name.startswith("optimizer.") else lr
        torch.testing.assert_close(before[name] - parameter, torch.full_like(parameter, rate), rtol=1e-3, atol=1e-6)


# Pre-training.


def test_pre_training_gives_the_start(meta_sets, tmp_path):
    """theta_0 and its moments are those of the run folder within, and the shared head is 0; it is not done again."""
    settings = {"shared_head": True, "val_every": 1, "pretrain": 3, "mirrors": True, "lr": 1e-9}
    train(tiny_config(meta_sets, episodes=1, **settings), meta_sets, tmp_path / "run")
    method, _, _ = checkpoint.load_method(tmp_path / "run" / "last.safetensors")
    pretrained, pretraining, _ = checkpoint.load_method(tmp_path / "run" / "pretrained")
    assert isinstance(method, GradientMethod)
    assert isinstance(pretrained, Pretrained)
    assert pretraining.method == "pretrained"
    assert pretraining.training.mirrors
    torch.testing.assert_close(method.body_0, pretrained.body, rtol=0, atol=1e-6)
    assert torch.equal(method.moments_0, pretrained.moments)
    assert method.head_0.abs().max() < 1e-6
    assert [line["episode"] for line in metrics(tmp_path / "run" / "pretrained")] == [3]
    before = bytes_of(tmp_path / "run" / "pretrained")
    train(tiny_config(meta_sets, episodes=2, **settings), meta_sets, tmp_path / "run", resume=True)
    assert bytes_of(tmp_path / "run" / "pretrained") == before


def test_minutes_bound_the_pre_training_too_and_more_of_them_go_on(meta_sets, tmp_path):
    """A run whose minutes end in its pre-training is validated as it is; with more minutes it ends as any other."""
    settings = {"shared_head": True, "episodes": 4, "val_every": 2, "pretrain": 5}
    out, whole = tmp_path / "run", tmp_path / "whole"
    train(tiny_config(meta_sets, **settings, minutes=1e-9), meta_sets, out)
    assert [line["episode"] for line in metrics(out / "pretrained")] == [1]
    assert [(line["episode"], line.keys()) for line in metrics(out)] == [(0, {"episode", "meta_val"})]
    assert checkpoint.load(out / "best.safetensors")[1]["episode"] == 0
    assert not (out / "last.safetensors").exists()

    train(tiny_config(meta_sets, **settings, minutes=1e9), meta_sets, out, resume=True)
    train(tiny_config(meta_sets, **settings), meta_sets, whole)
    for file in ("last", "best", "pretrained/last"):
        assert_same_tensors(whole / f"{file}.safetensors", out / f"{file}.safetensors")
    assert [line["episode"] for line in metrics(out)] == [2, 4]


def test_the_minutes_of_a_run_and_its_pre_training_are_one_limit(meta_sets, tmp_path):
    """Neither is long enough to end by itself. Half of the time is for episodes; a resumed run adds nothing."""
    out, minutes = tmp_path / "run", 4 / 60
    config = tiny_config(meta_sets, shared_head=True, episodes=10**6, pretrain=10**6, minutes=minutes, val_every=10**6)
    train(config, meta_sets, out)
    before = [checkpoint.load(folder / "last.safetensors")[1]["at"] for folder in (out / "pretrained", out)]
    start, end = before
    assert start["seconds"] >= 2
    assert end["seconds"] >= 4
    assert end["episode"] > 0
    train(config, meta_sets, out, resume=True)
    assert before == [checkpoint.load(folder / "last.safetensors")[1]["at"] for folder in (out / "pretrained", out)]
    half, whole = (recipes.pretraining(replace(config, training=each)).training.minutes for each in (
        config.training, replace(config.training, episodes=0)
    ))  # fmt: skip
    assert (half, whole) == (minutes / 2, minutes), "all, where no episodes follow"


def test_a_log_names_phases_counts_mini_batches_and_shows_the_time_left(meta_sets, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("metalstm.console.EVERY", 0.1)
    config = tiny_config(meta_sets, shared_head=True, episodes=300, pretrain=1000, val_every=100)
    train(config, meta_sets, tmp_path / "run")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"{tmp_path / 'run' / 'pretrained'}: pre-training, 1,000 mini-batches at the most"
    shown = r"\d[\d,]* of {} {}(, about \d+ (s|min) left)?(, (validating|\S+/s loss .*))?"
    for phase, one, total, many in (
        ("pre-training", "mini-batch", "1,000", "mini-batches"), ("meta-training", "episode", "300", "episodes")
    ):  # fmt: skip
        lines = [line for line in said[1:] if line.startswith(f"{phase}: ")]
        assert lines
        assert all(re.fullmatch(f"{phase}: {shown.format(total, many)}", line) for line in lines), lines
        assert any("left" in line for line in lines)
        assert any(line.startswith(f"{phase}, {one} {total}: meta-val ") for line in said)


def test_the_seconds_of_the_pre_training_are_seconds_of_the_run(meta_sets, tmp_path):
    train(tiny_config(meta_sets, shared_head=True, episodes=1, pretrain=2), meta_sets, tmp_path / "own")
    pretraining = metrics(tmp_path / "own" / "pretrained", timing=True)[-1]["seconds"]
    assert metrics(tmp_path / "own", timing=True)[0]["seconds"] > pretraining > 0


def test_runs_can_share_a_pre_training(meta_sets, tmp_path):
    config, shared = tiny_config(meta_sets, shared_head=True, episodes=1, pretrain=2), tmp_path / "shared"
    train(config, meta_sets, tmp_path / "one", pretrained=shared)
    before = bytes_of(shared)
    other = tiny_config(meta_sets, "matching-net", episodes=1, pretrain=2)
    train(other, meta_sets, tmp_path / "other", pretrained=shared)
    assert bytes_of(shared) == before
    assert not (tmp_path / "one" / "pretrained").exists()
    method, _, _ = checkpoint.load_method(tmp_path / "other" / "last.safetensors")
    start = checkpoint.load_method(shared)[0].network().body
    assert (method.network().body - start).abs().max() < 1e-3  # a step away
    train(config, meta_sets, tmp_path / "alone")
    assert_same_tensors(tmp_path / "one" / "last.safetensors", tmp_path / "alone" / "last.safetensors")


def test_a_method_without_a_network_cannot_be_pre_trained(meta_sets, tmp_path):
    with pytest.raises(UserError) as error:
        train(tiny_config(meta_sets, "pixels", pretrain=2), meta_sets, tmp_path / "run")
    assert str(error.value) == ("Nearest neighbor, pixels has no network that could be pre-trained: pass --pretrain 0")


# Methods without meta-training.


def test_a_method_that_has_nothing_to_train_is_refused(meta_sets, tmp_path):
    config = tiny_config(meta_sets, "matching-net")
    config = replace(config, learner="linear", learner_settings=LEARNERS["linear"].Settings())
    with pytest.raises(UserError) as error:
        train(config, meta_sets, tmp_path / "run")
    assert str(error.value) == "Matching Network has nothing to train with this learner: pass another --learner"
    assert not (tmp_path / "run").exists()


def test_a_run_within_groups_trains_and_validates_within_groups(meta_sets, tmp_path):
    config = tiny_config(meta_sets, "pixels", episodes=0, within_group=True, val_episodes=5)
    with pytest.raises(UserError, match=r"^--within-group: the classes of meta-train have no groups: leave it out$"):
        train(config, meta_sets, tmp_path / "run")
    splits = {
        split: replace(images, groups=("one", *["two"] * (len(images.classes) - 1)))
        for split, images in meta_sets.splits.items()
    }
    train(config, replace(meta_sets, splits=splits), tmp_path / "run")
    task = config.n_way, config.n_shot, config.n_query
    own = loop.EpisodeSampler(splits["meta-val"], *task, config.seed, within_group=True)
    expected = evaluate(recipes.build(config), own, 5).mean
    assert checkpoint.load(tmp_path / "run" / "best.safetensors")[1]["meta_val"] == expected
    sampler: Any = METHODS["meta-lstm"].sampler(splits["meta-train"], config, "cpu")
    assert all(0 not in sampler.classes(number) for number in range(20)), "one has 1 class, and an episode 2"


def test_pixels_are_validated_and_kept(meta_sets, tmp_path):
    config, out = tiny_config(meta_sets, "pixels"), tmp_path / "run"
    train(config, meta_sets, out)
    assert set(bytes_of(out)) == {"config.json", "metrics.jsonl", "best.safetensors", "run.json"}
    (line,) = metrics(out, timing=True)
    tensors, meta = checkpoint.load(out / "best.safetensors")
    assert (tensors, meta["episode"], meta["meta_val"]) == ({}, 0, line["meta_val"])
    assert line == {"episode": 0, "seconds": 0.0, "meta_val": line["meta_val"]}
    assert checkpoint.load_method(out)[1] == config
    before = bytes_of(out)
    train(config, meta_sets, out, resume=True)
    assert bytes_of(out) == before


@pytest.mark.parametrize("method", [name for name in METHODS if name not in TRAINED])
def test_what_is_not_meta_trained_takes_no_episodes(meta_sets, tmp_path, method):
    with pytest.raises(UserError) as error:
        train(tiny_config(meta_sets, method, episodes=3), meta_sets, tmp_path / "run")
    assert str(error.value) == f"--episodes 3: {method} is not meta-trained: pass --episodes 0"
    assert not (tmp_path / "run").exists()


def finetuning(meta_sets, **changes: Any):
    return tiny_config(meta_sets, "finetune", pretrain=4, rules=("sgd", "momentum"), **changes)


def test_fine_tuning_is_pre_trained_validated_and_tuned(meta_sets, tuned_run):
    config, out = finetuning(meta_sets), tuned_run
    own = {"config.json", "metrics.jsonl", "best.safetensors", "run.json", "tuned-sgd.json", "tuned-momentum.json"}
    assert {name for name in bytes_of(out) if not name.startswith("pretrained")} == own
    method, tuned, meta = checkpoint.load_method(out)
    chosen = meta["chosen"]
    assert chosen["rule"] in ("sgd", "momentum")
    assert (tuned.optimizer, tuned.optimizer_settings.rate, tuned.settings.epochs) == (
        chosen["rule"],
        chosen["rate"],
        chosen["steps"],
    )
    assert meta["meta_val"] == chosen["meta_val"] >= metrics(out)[-1]["meta_val"] - 20
    assert replace(tuned, settings=config.settings, optimizer="sgd", optimizer_settings=config.optimizer_settings) == (
        config
    )
    pretrained = checkpoint.load_method(out / "pretrained" / "last.safetensors")[0]
    assert torch.equal(method.network().body, pretrained.network().body)
    before = bytes_of(out)
    train(config, meta_sets, out, resume=True, search=SEARCH)
    assert bytes_of(out) == before


@pytest.fixture(scope="module")
def tuned_run(folder, cache, tmp_path_factory) -> Path:
    """A run of fine-tuning that nothing came in the way of."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch, helpers.one_thread():
        patch.setenv("METALSTM_CACHE", str(cache))
        meta_sets = helpers.load_folder(folder)
        train(finetuning(meta_sets), meta_sets, out, search=SEARCH)
    return out


def assert_same_choice(run: Path, other: Path) -> None:
    assert_same_tensors(run / "best.safetensors", other / "best.safetensors")
    one, two = (checkpoint.load(each / "best.safetensors")[1] for each in (run, other))
    assert (one["config"]["settings"], one["chosen"]) == (two["config"]["settings"], two["chosen"])
    assert metrics(run) == metrics(other)


class Killed(BaseException):
    """As a process that ends at once: no handler of the package takes it."""


@pytest.mark.parametrize("at", ["pre-training", "validation", "best", "first rule", "second rule", "choice"])
def test_killed_on_its_way_to_a_choice_a_run_makes_the_same(meta_sets, tuned_run, tmp_path, monkeypatch, at):
    config, out = finetuning(meta_sets), tmp_path / "run"

    def kill_in(target: Any, name: str, call: int = 1) -> None:
        original, calls = getattr(target, name), []

        def killed(*args: Any, **more: Any) -> Any:
            calls.append(args)
            if len(calls) == call:
                raise Killed
            return original(*args, **more)

        monkeypatch.setattr(target, name, killed)

    match at:
        case "pre-training":
            kill_in(Pretrained, "forward", 3)
        case "validation":
            kill_in(loop, "evaluate", 2)  # the first is of the pre-training
        case "best":
            kill_in(RunFolder, "save_best", 2)
        case "first rule":
            kill_in(finetune, "tune_rule", 1)
        case "second rule":
            kill_in(finetune, "tune_rule", 2)
        case "choice":
            kill_in(RunFolder, "save_best", 3)
    with pytest.raises(Killed):
        train(config, meta_sets, out, search=SEARCH)
    monkeypatch.undo()
    train(config, meta_sets, out, resume=True, search=SEARCH)
    assert_same_choice(tuned_run, out)


def test_a_longer_pre_training_is_tuned_anew(meta_sets, tuned_run, tmp_path):
    """Choices that were made on a network which is trained further are not kept."""
    out = tmp_path / "run"
    train(finetuning(meta_sets, minutes=1e-9), meta_sets, out, search=SEARCH)
    assert [line["episode"] for line in metrics(out / "pretrained")] == [1]
    train(finetuning(meta_sets, minutes=1e9), meta_sets, out, resume=True, search=SEARCH)
    assert_same_choice(tuned_run, out)


class Tuned(MatchingNet):
    """Meta-trained and then tuned: the scale that is chosen says which weights it was chosen for."""

    def tune(self, tuning):
        kept = tuning.keep("scale", lambda: {"scale": 1 + self.body.abs().sum().item()})
        chosen = {**kept, "meta_val": 50.0}
        return {"settings": replace(self.settings, scale=kept["scale"]), "chosen": chosen}


def test_a_run_made_longer_is_tuned_anew(meta_sets, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "tuned", Tuned)

    def config(episodes: int):
        return replace(tiny_config(meta_sets, "matching-net", episodes=episodes, val_every=1, lr=0.1), method="tuned")

    out, whole = tmp_path / "run", tmp_path / "whole"
    for episodes in (1, 8):
        train(config(episodes), meta_sets, out, resume=True)
        method, tuned, meta = checkpoint.load_method(out)
        assert isinstance(method, Tuned)
        assert tuned.settings.scale == meta["chosen"]["scale"] == 1 + method.body.abs().sum().item()
        assert meta["meta_val"] == 50.0
    train(config(8), meta_sets, whole)
    assert_same_tensors(whole / "best.safetensors", out / "best.safetensors")
    assert_same_tensors(whole / "last.safetensors", out / "last.safetensors")


class Looking(MatchingNet):
    """Counts how often it is shown meta-train images, and keeps the network that it had then."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("looks", torch.zeros(()))
        self.register_buffer("body_then", torch.zeros_like(self.body))

    def look_at(self, images):
        self.get_buffer("looks").add_(len(images.classes))
        self.get_buffer("body_then").copy_(self.body.detach())


def test_a_method_looks_at_meta_train_once_with_the_network_that_it_starts_from(meta_sets, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "looking", Looking)

    def config(episodes: int):
        return replace(tiny_config(meta_sets, "matching-net", episodes=episodes, pretrain=2), method="looking")

    train(config(2), meta_sets, tmp_path / "run")
    train(config(4), meta_sets, tmp_path / "run", resume=True)
    tensors, _ = checkpoint.load(tmp_path / "run" / "last.safetensors")
    assert tensors["method.looks"] == len(meta_sets.splits["meta-train"].classes)
    start = checkpoint.load_method(tmp_path / "run" / "pretrained")[0].network()
    assert torch.equal(tensors["method.body_then"], start.body)
    assert not torch.equal(tensors["method.body"], start.body)


def test_a_rule_on_fixed_features_keeps_its_center(meta_sets, tmp_path):
    config = tiny_config(meta_sets, "class-means", episodes=0, pretrain=2, normalize="centered")
    train(config, meta_sets, tmp_path / "run")
    method, kept, _ = checkpoint.load_method(tmp_path / "run")
    assert kept == config
    center = method.get_buffer("center").clone()
    assert center.any()
    method.look_at(meta_sets.splits["meta-train"])
    assert torch.equal(method.get_buffer("center"), center)
