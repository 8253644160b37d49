import json
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import helpers
from helpers import TINY, assert_same_tensors, flags, metalstm, method_config, metrics, start, stop_after, tiny_config
from metalstm import checkpoint, training
from metalstm.errors import Interrupted, UserError
from metalstm.methods import GradientMethod, Pretrained
from metalstm.training import train

LINE_KEYS = {"episode", "seconds", "loss", "accuracy", "episodes_per_second"}


@pytest.fixture(autouse=True)
def _one_thread():
    with helpers.one_thread():
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _decode_into(cache, monkeypatch):
    monkeypatch.setenv("METALSTM_CACHE", str(cache))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return helpers.make_folder(tmp_path_factory.mktemp("images") / "patterns")


@pytest.fixture
def meta_sets(folder, _decode_into):
    return helpers.load_folder(folder)


def log_of(config, meta_sets, out: Path, resume: bool = False) -> list[dict]:
    train(config, meta_sets, out, resume)
    return metrics(out)


def bytes_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


# Killed and gone on with: real processes.


def test_killed_again_and_again_a_run_ends_with_the_same_bits(folder, cache, tmp_path):
    command = ["train", *TINY, *flags(data=f"folder:{folder}", episodes=50, val_every=4, val_episodes=2, threads=1)]
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    done = metalstm(*command, "--out", whole, cache=cache)
    assert done.returncode == 0, done.stderr
    assert len(metrics(whole)) == 13  # each fourth episode, and the last

    for resume, n_lines, delay in (([], 2, 0.0), (["--resume"], 4, 0.06), (["--resume"], 8, 0.003)):
        process = start(*command, *resume, "--out", pieces, cache=cache)
        stop_after(process, pieces / "metrics.jsonl", n_lines, signal.SIGKILL, delay)
        assert process.returncode == -signal.SIGKILL
    done = metalstm(*command, "--resume", "--out", pieces, cache=cache)
    assert done.returncode == 0, done.stderr
    assert "going on after episode" in done.stderr

    assert_same_tensors(whole / "last.safetensors", pieces / "last.safetensors")
    assert_same_tensors(whole / "best.safetensors", pieces / "best.safetensors")
    assert metrics(whole) == metrics(pieces)


def test_interrupted_a_run_says_how_to_go_on_and_ends_with_the_same_bits(folder, cache, tmp_path):
    options = {"order": 2, "meta_batch": 2, "lr_decay": True, "query_norm": "support", "train_query_norm": "support"}
    episodes = 120
    options |= {"data": f"folder:{folder}", "episodes": episodes, "val_every": 4, "val_episodes": 2, "threads": 1}
    command = ["train", *TINY, *flags(**options)]
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    done = metalstm(*command, "--out", whole, cache=cache)
    assert done.returncode == 0, done.stderr

    for resume, more_lines, number in (
        ([], 1, signal.SIGINT),
        (["--resume"], 2, signal.SIGTERM),
        (["--resume"], 3, signal.SIGKILL),
    ):
        # Lines of this process: a signal that comes before it is ready for one would end it at once.
        n_lines = more_lines + (len(metrics(pieces)) if resume else 0)
        process = start(*command, *resume, "--out", pieces, cache=cache)
        said = stop_after(process, pieces / "metrics.jsonl", n_lines, number, delay=0.05)
        if number == signal.SIGKILL:
            continue
        assert process.returncode == 130
        _, meta = checkpoint.load(pieces / "last.safetensors")
        assert said.splitlines()[-1] == (
            f"metalstm: saved after episode {meta['episode']}; go on with the same command and --resume"
        )
        assert "Traceback" not in said
        assert meta["episode"] == metrics(pieces)[-1]["episode"] < episodes
    done = metalstm(*command, "--resume", "--out", pieces, cache=cache)
    assert done.returncode == 0, done.stderr

    assert_same_tensors(whole / "last.safetensors", pieces / "last.safetensors")
    assert_same_tensors(whole / "best.safetensors", pieces / "best.safetensors")
    # An interrupted run has a line more for each interruption.
    values = [{line["episode"]: line.get("meta_val") for line in metrics(run)} for run in (whole, pieces)]
    assert values[0].items() <= values[1].items()


@pytest.mark.parametrize("limit", [100, 7_000], ids=["configuration", "resume state"])
def test_a_full_disk_is_told_in_one_line_and_a_run_goes_on_from_there(folder, meta_sets, cache, tmp_path, limit):
    out = tmp_path / "run"
    command = ["train", *TINY, *flags(data=f"folder:{folder}", recipe="paper", episodes=20, val_every=10, threads=1)]
    command += flags(val_episodes=2, out=out)

    def fill_the_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    full = metalstm(*command, cache=cache, preexec_fn=fill_the_disk)
    assert (full.returncode, full.stdout) == (2, "")
    assert full.stderr.count("\n") == 1, full.stderr
    file = "config.json" if limit == 100 else "last.safetensors"
    assert full.stderr.startswith(f"metalstm: cannot write {out / file} (")
    assert full.stderr.endswith("): File too large: free some space or choose another folder\n")
    assert not [name for name in os.listdir(out) if name.endswith(".tmp")]

    train(tiny_config(meta_sets, episodes=20, val_every=10), meta_sets, out, resume=True)
    train(tiny_config(meta_sets, episodes=20, val_every=10), meta_sets, tmp_path / "whole")
    assert_same_tensors(tmp_path / "whole" / "last.safetensors", out / "last.safetensors")
    assert metrics(tmp_path / "whole") == metrics(out)


# The same, in this process.


def test_a_full_disk_at_a_line_of_metrics_is_told_by_its_name(meta_sets, tmp_path):
    out = tmp_path / "run"
    train(tiny_config(meta_sets, episodes=5, val_every=5), meta_sets, out)
    room = 20_000
    (line,) = (out / "metrics.jsonl").read_text().splitlines()
    (out / "metrics.jsonl").write_text(line.ljust(room - 1) + "\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(UserError, match=f"^cannot write {out / 'metrics.jsonl'} .*: File too large: free some"):
            train(tiny_config(meta_sets, episodes=10, val_every=5), meta_sets, out, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    train(tiny_config(meta_sets, episodes=10, val_every=5), meta_sets, out, resume=True)
    whole = log_of(tiny_config(meta_sets, episodes=10, val_every=5), meta_sets, tmp_path / "whole")
    assert metrics(out) == whole


def test_what_was_written_after_the_last_saved_state_is_made_anew(meta_sets, tmp_path):
    long, whole, out = (tiny_config(meta_sets, episodes=20, val_every=5, lr=0.01), tmp_path / "whole", tmp_path / "run")
    train(long, meta_sets, whole)
    train(tiny_config(meta_sets, episodes=10, val_every=5, lr=0.01), meta_sets, out)
    early = (out / "last.safetensors").read_bytes()
    train(long, meta_sets, out, resume=True)
    # As if killed while the 20th episode's line was being written, with the state of the 10th still there.
    (out / "last.safetensors").write_bytes(early)
    (out / "metrics.jsonl").write_bytes((whole / "metrics.jsonl").read_bytes()[:-20])
    train(long, meta_sets, out, resume=True)
    assert_same_tensors(whole / "last.safetensors", out / "last.safetensors")
    assert_same_tensors(whole / "best.safetensors", out / "best.safetensors")
    assert metrics(out) == metrics(whole)


def test_killed_before_the_first_state_a_run_starts_again(meta_sets, tmp_path):
    config, whole, out = tiny_config(meta_sets, episodes=10, val_every=5), tmp_path / "whole", tmp_path / "run"
    train(config, meta_sets, whole)
    shutil.copytree(whole, out)
    (out / "last.safetensors").unlink()
    train(config, meta_sets, out, resume=True)
    assert_same_tensors(whole / "last.safetensors", out / "last.safetensors")
    assert metrics(out) == metrics(whole)


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
    assert json.loads((out / "config.json").read_text()) == long.to_dict()


def test_a_finished_run_stays_as_it_is(meta_sets, tmp_path):
    config, out = tiny_config(meta_sets, episodes=10, val_every=5), tmp_path / "run"
    train(config, meta_sets, out)
    before = bytes_of(out)
    assert set(before) == {"config.json", "metrics.jsonl", "best.safetensors", "last.safetensors"}
    train(config, meta_sets, out, resume=True)
    assert bytes_of(out) == before


def test_a_state_whose_configuration_is_lost_is_neither_overwritten_nor_gone_on_with_otherwise(meta_sets, tmp_path):
    out = tmp_path / "run"
    config = tiny_config(meta_sets, episodes=10, val_every=5)
    train(config, meta_sets, out)
    (out / "config.json").unlink()
    with pytest.raises(UserError, match="already holds a run"):
        train(config, meta_sets, out)
    with pytest.raises(UserError, match=r"holds another run \(lr "):
        train(tiny_config(meta_sets, episodes=10, val_every=5, lr=0.5), meta_sets, out, resume=True)
    train(config, meta_sets, out, resume=True)
    assert json.loads((out / "config.json").read_text()) == config.to_dict()


def test_only_its_own_leftovers_are_removed(meta_sets, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    for name in (".mine.tmp", ".last.safetensors.123.tmp"):
        (out / name).write_text("")
    train(tiny_config(meta_sets, episodes=5, val_every=5), meta_sets, out)
    assert (out / ".mine.tmp").exists()
    assert not (out / ".last.safetensors.123.tmp").exists()


def test_fewer_episodes_than_done_do_not_change_what_is_recorded(meta_sets, tmp_path):
    out = tmp_path / "run"
    train(tiny_config(meta_sets, episodes=10, val_every=5), meta_sets, out)
    before = bytes_of(out)
    with pytest.raises(UserError, match=r"run is 10 episodes long already: pass at least as many --episodes$"):
        train(tiny_config(meta_sets, episodes=5, val_every=5), meta_sets, out, resume=True)
    assert bytes_of(out) == before


@pytest.fixture
def ctrl_c_while_validating(monkeypatch):
    """Sends a real SIGINT from within every validation."""

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*args)

    evaluate = training.evaluate
    monkeypatch.setattr(training, "evaluate", interrupted)
    yield
    monkeypatch.undo()


def test_ctrl_c_while_validating_ends_a_run_one_step_later(meta_sets, tmp_path, request):
    config, whole, out = tiny_config(meta_sets, episodes=15, val_every=5), tmp_path / "whole", tmp_path / "run"
    train(config, meta_sets, whole)
    train(tiny_config(meta_sets, episodes=5, val_every=5), meta_sets, out)
    request.getfixturevalue("ctrl_c_while_validating")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"^saved after episode 11$"):
        train(config, meta_sets, out, resume=True)
    assert signal.getsignal(signal.SIGINT) is handler
    # The run is on its way to 15 episodes, and not there.
    assert json.loads((out / "config.json").read_text()) == config.to_dict()
    # Interrupted again, at its very end: there is nothing left to go on with.
    train(config, meta_sets, out, resume=True)
    assert json.loads((out / "config.json").read_text()) == config.to_dict()
    assert_same_tensors(whole / "last.safetensors", out / "last.safetensors")
    assert_same_tensors(whole / "best.safetensors", out / "best.safetensors")
    assert [line["episode"] for line in metrics(out)] == [5, 10, 11, 15]


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


def test_a_line_tells_the_mean_since_the_line_before(meta_sets, tmp_path):
    single = log_of(tiny_config(meta_sets, episodes=4, val_every=1), meta_sets, tmp_path / "single")
    pairs = log_of(tiny_config(meta_sets, episodes=4, val_every=2), meta_sets, tmp_path / "pairs")
    assert len({line["loss"] for line in single}) == 4
    for k, pair in enumerate(pairs):
        for key in ("loss", "accuracy"):
            assert pair[key] == pytest.approx((single[2 * k][key] + single[2 * k + 1][key]) / 2, rel=1e-5)


def test_the_learning_rate_falls_along_half_a_cosine():
    factors = [training._cosine(progress) for progress in (0.0, 0.25, 0.5, 1.0)]
    assert factors == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, 0])


def test_lr_decay_rotations_and_meta_batch_change_the_weights(meta_sets, tmp_path):
    seen = []
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "lr": {"lr": 0.01},
        "optimizer_lr": {"optimizer_lr": 0.01},
        "decay": {"lr_decay": True},
        "rotations": {"rotations": True},
        "meta_batch": {"meta_batch": 2},
    }
    for name, options in variants.items():
        train(tiny_config(meta_sets, episodes=4, **options), meta_sets, tmp_path / name)
        seen.append((tmp_path / name / "last.safetensors", checkpoint.load(tmp_path / name / "last.safetensors")[0]))
    for k, (_, one) in enumerate(seen):
        for _, other in seen[k + 1 :]:
            assert not torch.equal(one["method.body_0"], other["method.body_0"])


def test_pre_training_gives_the_start(meta_sets, tmp_path):
    """theta_0 and its moments are those of the run folder within, and the shared head is 0; it is not done again."""
    config = tiny_config(meta_sets, {"shared_head": True}, episodes=1, val_every=1, pretrain=3, mirrors=True, lr=1e-9)
    train(config, meta_sets, tmp_path / "run")
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
    longer = tiny_config(meta_sets, {"shared_head": True}, episodes=2, val_every=1, pretrain=3, mirrors=True, lr=1e-9)
    train(longer, meta_sets, tmp_path / "run", resume=True)
    assert bytes_of(tmp_path / "run" / "pretrained") == before


@pytest.mark.parametrize("method", ["pretrained", "matching-net", "matching-net-fce"])
def test_other_methods_resume_to_the_same_bits(meta_sets, tmp_path, method):
    config = method_config(method, meta_sets, episodes=6)
    train(config, meta_sets, tmp_path / "whole")
    train(method_config(method, meta_sets, episodes=3), meta_sets, tmp_path / "parts")
    train(config, meta_sets, tmp_path / "parts", resume=True)
    assert_same_tensors(tmp_path / "whole" / "last.safetensors", tmp_path / "parts" / "last.safetensors")
    assert checkpoint.load_method(tmp_path / "whole")[1] == config


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_state(meta_sets, tmp_path):
    out = tmp_path / "run"
    settings = {"input_bias": (200.0, 200.0)}
    train(tiny_config(meta_sets, settings, episodes=1, lr=1e30), meta_sets, out)
    good = (out / "last.safetensors").read_bytes()
    with pytest.raises(UserError) as error:
        train(tiny_config(meta_sets, settings, episodes=3, lr=1e30), meta_sets, out, resume=True)
    assert str(error.value).startswith("the loss is no longer finite at episode 3 (loss nan, gradient nan): lower --lr")
    assert str(error.value).endswith(f"{out} keeps the last good state")
    assert (out / "last.safetensors").read_bytes() == good


# What --resume refuses.


def test_a_folder_that_holds_a_run_is_not_written_to(meta_sets, tmp_path):
    config, out = tiny_config(meta_sets, episodes=2), tmp_path / "run"
    train(config, meta_sets, out)
    before = bytes_of(out)
    with pytest.raises(UserError) as error:
        train(config, meta_sets, out)
    assert str(error.value) == f"{out} already holds a run: pass --resume to go on with it, or another --out"
    assert bytes_of(out) == before


def test_resume_names_every_setting_that_is_another(meta_sets, tmp_path):
    out = tmp_path / "run"
    train(tiny_config(meta_sets, episodes=2), meta_sets, out)
    before = bytes_of(out)
    with pytest.raises(UserError) as error:
        train(tiny_config(meta_sets, {"filters": 5}, episodes=9, lr=0.5), meta_sets, out, resume=True)
    assert str(error.value) == (
        f"{out} holds another run (filters 4 there, 5 now; lr 0.001 there, 0.5 now): use its settings, or another --out"
    )
    assert bytes_of(out) == before


def test_resume_refuses_other_data_under_the_same_name(meta_sets, folder, tmp_path):
    out, images = tmp_path / "run", tmp_path / "images"
    shutil.copytree(folder, images)
    first = helpers.load_folder(images)
    train(tiny_config(first, episodes=2), first, out)
    (images / "class 00" / "0.png").unlink()
    second = helpers.load_folder(images)
    with pytest.raises(UserError) as error:
        train(tiny_config(second, episodes=2), second, out, resume=True)
    assert str(error.value).startswith(f"{out} holds another run (data_digest {first.digest!r} there")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": 1}', '{"config": {}}', '{"config": {"training": 1}}'])
def test_a_damaged_config_is_told_in_one_line(meta_sets, tmp_path, text):
    out = tmp_path / "run"
    train(tiny_config(meta_sets, episodes=2), meta_sets, out)
    (out / "config.json").write_text(text)
    with pytest.raises(UserError) as error:
        train(tiny_config(meta_sets, episodes=2), meta_sets, out, resume=True)
    assert str(error.value).startswith(f"{out / 'config.json'} is damaged (")
    assert str(error.value).endswith("): restore it, or train anew with another --out")


def faulty(path: Path, fault: str) -> None:
    """Damage a resume state."""
    tensors, meta = checkpoint.load(path)
    match fault:
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(path.read_bytes()[:-1])
        case "no state":
            checkpoint.save(path, tensors, {key: value for key, value in meta.items() if key != "at"})
        case "half a state":
            checkpoint.save(path, tensors, meta | {"at": {"episode": 2}})
        case "shape":
            checkpoint.save(path, tensors | {"method.body_0": torch.zeros(3)}, meta)
        case "optimiser's shape":
            checkpoint.save(path, tensors | {"optimizer.0.exp_avg": torch.zeros(3)}, meta)
        case "best in its place":
            shutil.copy(path.with_name("best.safetensors"), path)
        case "foreign tensor":
            checkpoint.save(path, tensors | {"optimizer.x": torch.zeros(3)}, meta)


@pytest.mark.parametrize(
    "fault",
    [
        "empty",
        "cut",
        "no state",
        "half a state",
        "shape",
        "optimiser's shape",
        "best in its place",
        "foreign tensor",
    ],
)
def test_a_damaged_resume_state_is_told_in_one_line(meta_sets, tmp_path, fault):
    out = tmp_path / "run"
    train(tiny_config(meta_sets, episodes=2), meta_sets, out)
    faulty(out / "last.safetensors", fault)
    with pytest.raises(UserError) as error:
        train(tiny_config(meta_sets, episodes=4), meta_sets, out, resume=True)
    assert str(error.value).startswith(f"{out / 'last.safetensors'} ")


@pytest.mark.parametrize("text", ["{}\n", "\0\0\0\n"], ids=["another object", "zeros"])
def test_damaged_metrics_are_told_in_one_line(meta_sets, tmp_path, text):
    out = tmp_path / "run"
    train(tiny_config(meta_sets, episodes=2), meta_sets, out)
    (out / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError) as error:
        train(tiny_config(meta_sets, episodes=4), meta_sets, out, resume=True)
    assert str(error.value).startswith(f"{out / 'metrics.jsonl'} ")
