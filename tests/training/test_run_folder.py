"""The run folder: what `--resume` refuses, what is made again, and damage."""

import contextlib
import json
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import helpers
from helpers import assert_same_tensors, metrics, tiny_config
from metalstm import checkpoint, recipes
from metalstm.data import MetaSets
from metalstm.errors import UserError
from metalstm.methods import RunConfig
from metalstm.settings import Traits
from metalstm.training import train
from metalstm.training.run_folder import Progress, RunFolder, last_line, tuning_seconds


def bytes_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


def refusal(config: RunConfig, meta_sets: MetaSets, out: Path, resume: bool = True) -> str:
    """What `train` says, which leaves the folder as it was."""
    before = bytes_of(out)
    with pytest.raises(UserError) as error:
        train(config, meta_sets, out, resume)
    assert bytes_of(out) == before
    assert "\n" not in str(error.value)
    return str(error.value)


# What was written and is not in the last state is made again.


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


def test_a_full_disk_at_a_line_of_metrics_is_reported_by_its_name(meta_sets, tmp_path):
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
    train(tiny_config(meta_sets, episodes=10, val_every=5), meta_sets, tmp_path / "whole")
    assert metrics(out) == metrics(tmp_path / "whole")


def test_only_its_own_leftovers_are_removed(meta_sets, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    own = "config.json", "metrics.jsonl", "run.json", "best.safetensors", "last.safetensors", "tuned-sgd.json"
    for name in (".mine.tmp", *(f".{name}.123.tmp" for name in own)):
        (out / name).write_text("")
    train(tiny_config(meta_sets, episodes=5, val_every=5), meta_sets, out)
    assert [path.name for path in out.glob(".*")] == [".mine.tmp"]


def test_the_configuration_is_that_of_the_run_and_can_be_read_back(meta_sets, tmp_path):
    config = tiny_config(meta_sets, episodes=2)
    train(config, meta_sets, tmp_path / "run")
    values = json.loads((tmp_path / "run" / "config.json").read_text())
    assert values == recipes.to_dict(config)
    assert recipes.from_dict(values) == config


# What --resume refuses.


def test_a_folder_that_holds_a_run_is_not_written_to(meta_sets, tmp_path):
    config, out = tiny_config(meta_sets, episodes=2), tmp_path / "run"
    train(config, meta_sets, out)
    expected = f"{out} already holds a run: pass --resume to go on with it, or another --out"
    assert refusal(config, meta_sets, out, resume=False) == expected
    (out / "config.json").unlink()  # a state and a checkpoint are left
    assert refusal(config, meta_sets, out, resume=False) == expected
    (out / "last.safetensors").unlink()  # a checkpoint is left
    assert refusal(config, meta_sets, out, resume=False) == expected


def test_resume_names_every_setting_that_is_another(meta_sets, tmp_path):
    out = tmp_path / "run"
    train(tiny_config(meta_sets, episodes=2), meta_sets, out)
    assert refusal(tiny_config(meta_sets, filters=5, episodes=9, lr=0.5), meta_sets, out) == (
        f"{out} holds another run (filters 4 there, 5 now; lr 0.001 there, 0.5 now): use its settings, or another --out"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"mirrors": True},
        {"rotations": True},
        {"precision": "bf16"},
        {"meta_batch": 2},
        {"clip": None},
        {"pretrain": 3},
        {"patience": 5},
        {"val_episodes": 3},
        {"val_every": 7},
        {"epochs": 3},
        {"order": 2},
        {"hidden_size": 2},
        {"input_bias": (-4.0, -3.0)},
        {"dropout": 0.1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_resume_with_another_setting_is_refused(meta_sets, tmp_path, changes):
    train(tiny_config(meta_sets, episodes=2), meta_sets, tmp_path / "run")
    said = refusal(tiny_config(meta_sets, episodes=4, **changes), meta_sets, tmp_path / "run")
    assert said.startswith(f"{tmp_path / 'run'} holds another run ({next(iter(changes))} ")
    assert said.count(" there, ") == 1


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"n_way": 3}, ["n_way"]),
        ({"n_shot": 2}, ["n_shot"]),
        ({"n_query": 2}, ["n_query"]),
        ({"seed": 1}, ["seed"]),
        ({"traits": Traits(drawing=True)}, ["traits"]),
        ({"recipe": "best"}, ["recipe"]),
        ({"learner": "linear"}, ["learner", "filters"]),
        ({"optimizer": "sgd"}, ["optimizer", "hidden_size", "rate"]),
        ({"method": "matching-net"}, ["method", "optimizer", "class_score"]),
    ],
    ids=lambda value: next(iter(value)),
)
def test_resume_of_another_run_is_refused(meta_sets, tmp_path, changes, names):
    train(tiny_config(meta_sets, episodes=2), meta_sets, tmp_path / "run")
    config = tiny_config(meta_sets, changes.get("method", "meta-lstm"), episodes=4)
    if parts := changes.keys() & {"learner", "optimizer"}:
        named = recipes.named("meta-lstm", "paper", meta_sets.traits, 1, **{part: changes[part] for part in parts})
        other = recipes.run_config(meta_sets, named, "meta-lstm", "paper")
        changes = {part: getattr(other, part) for name in parts for part in (name, f"{name}_settings")}
    said = refusal(replace(config, **changes), meta_sets, tmp_path / "run")
    assert said.startswith(f"{tmp_path / 'run'} holds another run (")
    for name in names:
        assert f"({name} " in said or f"; {name} " in said


def test_resume_refuses_other_data_under_the_same_name(meta_sets, folder, tmp_path):
    out, images = tmp_path / "run", tmp_path / "images"
    shutil.copytree(folder, images)
    first = helpers.load_folder(images)
    train(tiny_config(first, episodes=2), first, out)
    (images / "class 00" / "0.png").unlink()
    second = helpers.load_folder(images)
    said = refusal(tiny_config(second, episodes=2), second, out)
    assert said.startswith(f"{out} holds another run (data_digest {first.digest!r} there")


def test_a_state_whose_configuration_is_lost_is_neither_overwritten_nor_gone_on_with_otherwise(meta_sets, tmp_path):
    out = tmp_path / "run"
    config = tiny_config(meta_sets, episodes=10, val_every=5)
    train(config, meta_sets, out)
    (out / "config.json").unlink()
    assert "already holds a run" in refusal(config, meta_sets, out, resume=False)
    other = tiny_config(meta_sets, episodes=10, val_every=5, lr=0.5)
    assert "holds another run (lr " in refusal(other, meta_sets, out)
    train(config, meta_sets, out, resume=True)
    assert json.loads((out / "config.json").read_text()) == recipes.to_dict(config)


def test_a_checkpoint_alone_is_neither_overwritten_nor_taken_for_that_of_another_run(meta_sets, tmp_path):
    """A method without meta-training has no state: its checkpoint is all that there is."""
    out = tmp_path / "run"
    config = tiny_config(meta_sets, "pixels")
    train(config, meta_sets, out)
    (out / "config.json").unlink()
    assert "already holds a run" in refusal(config, meta_sets, out, resume=False)
    assert "holds another run (seed 0 there, 1 now)" in refusal(replace(config, seed=1), meta_sets, out)
    train(config, meta_sets, out, resume=True)
    assert json.loads((out / "config.json").read_text()) == recipes.to_dict(config)


# Damage.


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": 1}', '{"config": {}}', '{"config": {"training": 1}}'])
def test_a_damaged_config_is_reported_in_one_line(meta_sets, tmp_path, text):
    out = tmp_path / "run"
    train(tiny_config(meta_sets, episodes=2), meta_sets, out)
    (out / "config.json").write_text(text)
    said = refusal(tiny_config(meta_sets, episodes=2), meta_sets, out)
    assert said.startswith(f"{out / 'config.json'} is damaged (")
    assert said.endswith("): restore it, or train anew with another --out")


def faulty(path: Path, fault: str) -> None:
    """Damage a resume state."""
    tensors, meta = checkpoint.load(path)
    lacking: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if name != "optimizer.0.exp_avg"}
    match fault:
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(path.read_bytes()[:-1])
        case "no state":
            checkpoint.save(path, tensors, {key: value for key, value in meta.items() if key != "at"})
        case "half a state":
            checkpoint.save(path, tensors, meta | {"at": {"episode": 2}})
        case "words for numbers":
            checkpoint.save(path, tensors, meta | {"at": meta["at"] | {"episode": "two"}})
        case "shape":
            checkpoint.save(path, tensors | {"method.body_0": torch.zeros(3)}, meta)
        case "optimizer's shape":
            checkpoint.save(path, tensors | {"optimizer.0.exp_avg": torch.zeros(3)}, meta)
        case "best in its place":
            shutil.copy(path.with_name("best.safetensors"), path)
        case "foreign tensor":
            checkpoint.save(path, tensors | {"optimizer.x": torch.zeros(3)}, meta)
        case "optimizer lacks a tensor":
            checkpoint.save(path, lacking, meta)
        case "method lacks a tensor":
            checkpoint.save(path, {n: t for n, t in tensors.items() if n != "method.optimizer.bias_f"}, meta)


FAULTS = [
    "empty",
    "cut",
    "no state",
    "half a state",
    "words for numbers",
    "shape",
    "optimizer's shape",
    "best in its place",
    "foreign tensor",
    "optimizer lacks a tensor",
    "method lacks a tensor",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_resume_state_is_reported_in_one_line(meta_sets, tmp_path, fault):
    out = tmp_path / "run"
    train(tiny_config(meta_sets, episodes=2), meta_sets, out)
    faulty(out / "last.safetensors", fault)
    said = refusal(tiny_config(meta_sets, episodes=4), meta_sets, out)
    assert said.startswith(f"{out / 'last.safetensors'} ")


@pytest.mark.parametrize("name", sorted(vars(Progress())))
def test_a_state_that_lacks_a_value_is_refused(meta_sets, tmp_path, name):
    out = tmp_path / "run"
    train(tiny_config(meta_sets, episodes=2), meta_sets, out)
    tensors, meta = checkpoint.load(out / "last.safetensors")
    del meta["at"][name]
    checkpoint.save(out / "last.safetensors", tensors, meta)
    assert refusal(tiny_config(meta_sets, episodes=4), meta_sets, out) == (
        f"{out / 'last.safetensors'} is not a state of this run (Progress lacks {name}): train anew with another --out"
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda good: b"{}\n" + good, "dropped line 1, which cannot be read"),
        (lambda good: b"\0\0\0\n" + good, "dropped line 1, which cannot be read"),
        (lambda good: b"\xff\xfe{}\n" + good + b"[1]\n", "dropped lines 1, 3, which cannot be read"),
        (lambda good: good + b'{"episode": NaN, "seconds": 1}\n' * 9, "dropped lines 2, 3, 4, 5, 6 and 4 more, which"),
        (lambda good: good + b"[" * 100_000 + b"\n", "dropped line 2, which cannot be read"),
    ],
    ids=["another object", "zeros", "no UTF-8", "no numbers", "deep"],
)
def test_of_damaged_metrics_what_can_be_read_is_kept(meta_sets, tmp_path, capsys, damage, said):
    out, whole = tmp_path / "run", tmp_path / "whole"
    train(tiny_config(meta_sets, episodes=2, val_every=2), meta_sets, out)
    (out / "metrics.jsonl").write_bytes(damage((out / "metrics.jsonl").read_bytes()))
    train(tiny_config(meta_sets, episodes=4, val_every=2), meta_sets, out, resume=True)
    assert f"{out / 'metrics.jsonl'}: {said}" in capsys.readouterr().err
    train(tiny_config(meta_sets, episodes=4, val_every=2), meta_sets, whole)
    assert metrics(out) == metrics(whole)


@pytest.mark.parametrize("text", [b"", b"\xff\n", b'{"episode": 4'], ids=["empty", "no UTF-8", "cut"])
def test_the_last_line_of_damaged_metrics_is_that_of_no_episode(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_bytes(text)
    assert last_line(tmp_path) == {"episode": 0, "seconds": 0.0}


@pytest.mark.parametrize("damage", [lambda best: best[:-1], lambda best: b"", lambda best: best[:-4] + b"\0\0\xc0\x7f"])
def test_a_damaged_best_checkpoint_is_noticed_before_training_and_can_be_removed(meta_sets, tmp_path, damage):
    """The last bytes of the third are a NaN."""
    out, config = tmp_path / "run", tiny_config(meta_sets, episodes=20, val_every=10)
    train(tiny_config(meta_sets, episodes=10, val_every=10), meta_sets, out)
    best = out / "best.safetensors"
    best.write_bytes(damage(best.read_bytes()))
    said = refusal(config, meta_sets, out)
    assert said.startswith(f"{best} is damaged or not a checkpoint of metalstm (")
    assert said.endswith("; or remove it: then --resume chooses the best of the validations to come, at least one")
    best.unlink()
    train(config, meta_sets, out, resume=True)
    assert checkpoint.load_method(out)[2]["episode"] == 20


def test_a_finished_run_that_lost_its_best_takes_its_last_and_goes_on_from_there(meta_sets, tmp_path):
    out, config = tmp_path / "run", tiny_config(meta_sets, episodes=10, val_every=5)
    train(config, meta_sets, out)
    (out / "best.safetensors").unlink()
    train(config, meta_sets, out, resume=True)
    best, last = (checkpoint.load(out / f"{name}.safetensors") for name in ("best", "last"))
    assert (best[1]["episode"], best[1]["at"]) == (10, last[1]["at"])
    assert all(torch.equal(tensor, last[0][name]) for name, tensor in best[0].items())
    before = bytes_of(out)
    train(config, meta_sets, out, resume=True)
    assert bytes_of(out) == before


# Two processes.


HOLD = """
import sys
from pathlib import Path
from metalstm import files
with files.lock(Path(sys.argv[1]) / ".lock"):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def another_process_in(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that trains into a folder, as far as its lock goes."""
    command = [sys.executable, "-c", HOLD, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_folder_that_another_process_trains_in_is_left_alone(meta_sets, tmp_path):
    out, config = tmp_path / "run", tiny_config(meta_sets, episodes=2)
    train(config, meta_sets, out)
    (out / ".last.safetensors.123.tmp").write_text("of the other")
    with another_process_in(out) as other:
        said = refusal(tiny_config(meta_sets, episodes=4), meta_sets, out)
        assert re.fullmatch(
            rf"{re.escape(str(out))} is in use by process {other.pid} on \S+ since [-\d]+ [:\d]+ UTC: "
            "wait until it ends, or choose another folder",
            said,
        )
        assert (out / ".last.safetensors.123.tmp").exists()
    train(tiny_config(meta_sets, episodes=4), meta_sets, out, resume=True)  # the other was killed
    assert not (out / ".last.safetensors.123.tmp").exists()
    assert not (out / ".lock").exists()


def test_a_shared_pre_training_that_another_process_makes_is_waited_for(meta_sets, tmp_path, capsys):
    config, shared = tiny_config(meta_sets, shared_head=True, episodes=1, pretrain=2), tmp_path / "shared"
    train(config, meta_sets, tmp_path / "one", pretrained=shared)
    made = shared.rename(tmp_path / "made")
    with another_process_in(shared) as other:

        def finish() -> None:
            while f"{shared}: waiting for process {other.pid} on " not in capsys.readouterr().err:
                time.sleep(0.01)
            shutil.copytree(made, shared, dirs_exist_ok=True)
            other.kill()

        thread = threading.Thread(target=finish)
        thread.start()
        train(config, meta_sets, tmp_path / "two", pretrained=shared)
        thread.join()
    assert_same_tensors(tmp_path / "one" / "last.safetensors", tmp_path / "two" / "last.safetensors")
    assert len(json.loads((shared / "run.json").read_text())["starts"]) == 1, "it was made once"


def test_a_part_of_the_tuning_is_computed_once_and_damage_to_it_reported(meta_sets, tmp_path):
    folder, computed = RunFolder(tmp_path, tiny_config(meta_sets)), []

    def compute() -> dict[str, Any]:
        computed.append(1)
        return {"rate": 0.1}

    assert [folder.keep("sgd", compute) for _ in range(2)] == [{"rate": 0.1}] * 2
    assert computed == [1]
    folder.keep("adam", compute)
    seconds = [json.loads((tmp_path / f"tuned-{name}.json").read_text())["seconds"] for name in ("sgd", "adam")]
    assert tuning_seconds(tmp_path) == sum(seconds)
    (tmp_path / "tuned-sgd.json").write_text("{")
    with pytest.raises(UserError, match=rf"^{tmp_path / 'tuned-sgd.json'} is damaged \(.*\): remove it$"):
        folder.keep("sgd", compute)
