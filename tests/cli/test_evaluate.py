import json
import math
import re
import shutil
import statistics
from pathlib import Path

import pytest
from safetensors.torch import save as serialize

import helpers
from cli.examples import FEW
from helpers import flags, metalstm
from metalstm import checkpoint

KEYS = {
    "method", "data", "split", "n_way", "n_shot", "n_query", "within_group", "episodes", "accuracy", "ci95", "seed",
    "data_digest", "query_norm", "precision", "transductive", "recipe", "changes", "checkpoint_sha256", "seconds",
    "per_episode", "trained_on", "other_data",
}  # fmt: skip


def test_evaluate_gives_its_json_on_stdout_and_all_else_on_stderr(run, folder, cache, commands):
    done = metalstm("evaluate", run, *FEW, *flags(json="-", threads=1), cache=cache)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result.keys() == KEYS
    values = result["per_episode"]
    assert len(values) == result["episodes"] == 6
    assert len(set(values)) > 1
    assert all(any(math.isclose(value, 100 * right / 6) for right in range(7)) for value in values), "percent"
    assert result["accuracy"] == pytest.approx(statistics.mean(values))
    assert result["ci95"] == pytest.approx(1.96 * statistics.stdev(values) / math.sqrt(6))
    changes = result["changes"]
    assert (changes["filters"], changes["lr"]) == (4, 0.02), "what is no longer the recipe's"
    assert "episodes" not in changes
    assert {key: result[key] for key in KEYS - {"accuracy", "ci95", "seconds", "per_episode", "changes"}} == {
        "method": "meta-lstm",
        "data": f"folder:{folder}",
        "trained_on": f"folder:{folder}",
        "other_data": False,
        "split": "meta-test",
        "n_way": 2,
        "n_shot": 1,
        "n_query": 3,
        "within_group": False,
        "data_digest": checkpoint.load(run / "best.safetensors")[1]["config"]["data_digest"],
        "episodes": 6,
        "seed": 0,
        "precision": "fp32",
        "query_norm": "running",
        "transductive": False,
        "recipe": "paper",
        "checkpoint_sha256": checkpoint.sha256(run / "best.safetensors"),
    }
    assert result["seconds"] > 0

    # Another process, and the file's own path: the same numbers.
    _, out, _ = commands("evaluate", run / "best.safetensors", *FEW, *flags(json="-", threads=1))
    again = json.loads(out)
    assert again | {"seconds": 0} == result | {"seconds": 0}


def test_another_seed_split_or_task_gives_other_episodes(run, commands):
    def result(**options: object) -> dict:
        status, out, err = commands("evaluate", run, *FEW, *flags(json="-", **options))
        assert status == 0, err
        return json.loads(out)

    base = result()
    seen = [base["per_episode"]]
    for options in ({"seed": 1}, {"split": "meta-val"}, {"split": "meta-train"}, {"n_shot": 3}, {"n_query": 5}):
        other = result(**options)
        assert {name: other[name] for name in options} == options
        assert other["per_episode"] not in seen
        seen.append(other["per_episode"])
    assert result(episodes=3)["per_episode"] == base["per_episode"][:3]


def test_numbers_of_the_query_batch_are_labeled_transductive(run, tmp_path, commands):
    file = tmp_path / "new" / "result.json"
    status, out, _ = commands("evaluate", run, *FEW, *flags(query_norm="batch", json=file))
    result = json.loads(file.read_text())
    assert status == 0
    assert (result["query_norm"], result["transductive"]) == ("batch", True)
    assert out.endswith(f"{result['accuracy']:.2f} +- {result['ci95']:.2f} % (transductive)\n")
    status, out, _ = commands("evaluate", run, *FEW)
    assert re.fullmatch(r"folder:.* meta-test 2-way 1-shot, 6 episodes: \d+\.\d\d \+- \d+\.\d\d %\n", out), (
        "no label without a cause"
    )


def test_evaluate_takes_the_image_size_of_the_checkpoint(run, commands):
    status, out, err = commands("evaluate", run, "--n-query", 3, "--episodes", 2)
    assert (status, err) == (0, ""), "what `train` says to do now has to work"
    assert "meta-test" in out


def test_each_opening_of_meta_test_is_noted_in_the_run_folder(run, tmp_path, commands):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    before = len(json.loads((copy / "run.json").read_text())["meta_test"])
    for words in ([copy], [copy / "best.safetensors", "--n-shot", "3"], [copy, "--split", "meta-val"]):
        status, _, err = commands("evaluate", *words, *flags(n_query=3, episodes=6, seed=4))
        assert (status, err) == (0, "")
    first, second = json.loads((copy / "run.json").read_text())["meta_test"][before:]
    assert first.keys() >= {"time", "command", "accuracy", "ci95", "checkpoint_sha256"}
    facts = {"split": "meta-test", "n_way": 2, "n_query": 3, "episodes": 6, "seed": 4}
    for opening, n_shot in ((first, 1), (second, 3)):
        assert {name: opening[name] for name in (*facts, "n_shot")} == facts | {"n_shot": n_shot}
    (copy / "run.json").write_text("{")
    assert commands.refusal("evaluate", copy, *FEW).startswith(f"{copy / 'run.json'} is damaged (")
    (copy / "config.json").unlink()  # a folder of checkpoints
    status, _, err = commands("evaluate", copy, *FEW)
    assert (status, err) == (0, "")


def test_weights_that_are_not_finite_have_no_accuracy(run, tmp_path, commands):
    """It was that of the first class for every image."""
    tensors, meta = checkpoint.load(run / "best.safetensors")
    tensors["method.body_0"][3] = math.nan
    path = tmp_path / "odd.safetensors"
    path.write_bytes(serialize(tensors, metadata={"metalstm": json.dumps(meta)}))
    said = commands.refusal("evaluate", path, *FEW)
    assert said.endswith("(method.body_0 has numbers that are not finite): get or train it anew")


@pytest.mark.data
@pytest.mark.parametrize("name", sorted(checkpoint.shipped()))
def test_shipped_checkpoints_give_the_accuracy_that_is_reported(name, commands, data_root):
    status, out, err = commands("evaluate", name, "--episodes", 20, "--json", "-", "--data-root", data_root)
    assert status == 0, err
    now = json.loads(out)
    task = f"{now['n_way']}w{now['n_shot']}s"
    table = Path(__file__).parents[2] / "results" / (now["data"] + ("-resnet12" if "resnet12" in name else ""))
    row = "meta-lstm-64" if now["data"] == "omniglot" else "meta-lstm"  # Omniglot's table is of an earlier version
    then = json.loads((table / "rows" / f"{row}-{task}.json").read_text())
    # Another machine rounds differently, which can turn a query.
    assert now["accuracy"] == pytest.approx(statistics.mean(then["per_episode"][:20]), abs=0.5)


# Wrong input: one line that says what is wrong, what is allowed, and what to do.


REFUSED = {
    "split": (
        flags(split="meta_test"),
        "unknown split 'meta_test', did you mean 'meta-test'? allowed: all, meta-test, meta-train, meta-val",
    ),
    "number of classes": (
        flags(n_way=3),
        "this method was meta-trained for 2 classes and serves no other number: got 3",
    ),
    "more classes than there are": (
        flags(n_way=4),
        "4-way episodes need 4 classes, but meta-test has 3: add 1, or pass",
    ),
    "groups": (flags(within_group=True), "--within-group: the classes of meta-test have no groups: leave it out"),
    "no class": (flags(n_way=0), "--n-way 0: must be at least 2"),
    "no shot": (flags(n_shot=0), "--n-shot 0: must be at least 1"),
    "no query": (flags(n_query=0), "--n-query 0: must be at least 1"),
    "queries": (
        flags(n_query=9),
        "1-shot with 9 queries needs 10 images of each of 2 classes, but 0 of meta-test have as many ('class 09' has "
        "8, 'class 10' has 8, 'class 11' has 8): add images, or pass --n-query 7",
    ),
    "one episode": (flags(episodes=1), "--episodes 1: must be at least 2"),
    "less than no episodes": (flags(episodes=-1), "--episodes -1: must be at least 2"),
    "threads": (flags(threads=-1), "--threads -1: must be at least 0"),
    "seed": (flags(seed=-1), "--seed -1: must be at least 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_evaluate_refuses(case, run, commands):
    words, message = REFUSED[case]
    assert commands.refusal("evaluate", run, *FEW, *words).startswith(message)


def test_a_checkpoint_is_tested_on_other_data_and_the_result_says_so(run, folder, tmp_path, commands):
    other = helpers.make_folder(tmp_path / "other", seed=1)
    noted = (run / "run.json").read_text()
    words = ["evaluate", run, *FEW, *flags(data=f"folder:{other}")]
    status, out, err = commands(*words, "--json", tmp_path / "result.json")
    assert status == 0, err
    assert re.fullmatch(
        rf"folder:{other} meta-test 2-way 1-shot, 6 episodes: \d+\.\d\d \+- \d+\.\d\d % "
        rf"\(other data: trained on folder:{folder}\)\n",
        out,
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["data"], result["trained_on"], result["other_data"]) == (f"folder:{other}", f"folder:{folder}", True)
    assert (run / "run.json").read_text() == noted, "it is not the run's own meta-test"
    status, out, err = commands(*words, *flags(split="all"))
    assert status == 0, err
    assert f"folder:{other} all 2-way 1-shot, 6 episodes: " in out
    said = commands.refusal("evaluate", run, *FEW, *flags(split="all"))
    assert said == f"--split all: {run} was trained on classes of folder:{folder}: pass --split meta-test"


def test_a_shipped_checkpoint_is_tested_on_a_folder(folder, commands):
    words = flags(data=f"folder:{folder}", split="all", n_query=3, episodes=2)
    status, out, err = commands("evaluate", "meta-lstm-cifar-fs-5w5s", *words)
    assert status == 0, err
    assert out.endswith("(other data: trained on cifar-fs)\n")


def test_a_corrupt_checkpoint_is_refused(run, tmp_path, commands):
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    (broken / "best.safetensors").write_bytes((run / "best.safetensors").read_bytes()[:-100])
    said = commands.refusal("evaluate", broken, *FEW)
    assert said.startswith(f"{broken / 'best.safetensors'} is damaged or not a checkpoint of metalstm (")


def test_a_setting_that_a_method_does_not_have_is_refused(folder, tmp_path, commands):
    words = flags(method="pixels", data=f"folder:{folder}", out=tmp_path / "run", n_way=2, n_query=3)
    status, _, err = commands("train", *words)
    assert status == 0, err
    said = commands.refusal("evaluate", tmp_path / "run", *FEW, *flags(query_norm="support"))
    assert said == "--query-norm support: pixels has no such setting: leave it out"
    status, out, err = commands("evaluate", tmp_path / "run", *FEW, *flags(precision="bf16", json="-"))
    assert status == 0, err
    assert json.loads(out)["precision"] == "bf16"


def test_a_moved_data_folder_is_the_same_data(run, folder, tmp_path, commands):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    status, _, err = commands("evaluate", run, *FEW, *flags(data=f"folder:{moved}"))
    assert (status, err) == (0, "")


def test_an_unknown_checkpoint_is_named(tmp_path, commands):
    assert commands.refusal("evaluate", "nowhere", cwd=tmp_path).startswith("unknown checkpoint 'nowhere'")
    assert commands.refusal("evaluate", "runs/x", cwd=tmp_path).startswith("no checkpoint at runs/x: ")
    (tmp_path / "new").mkdir()
    assert commands.refusal("evaluate", "new", cwd=tmp_path).startswith("new holds no best.safetensors: ")


def test_a_place_that_cannot_be_written_to_is_named(run, tmp_path, commands):
    status, out, said = commands("evaluate", run, *FEW, *flags(json=tmp_path))
    assert (status, said.count("\n")) == (2, 1)
    assert "2-way 1-shot, 6 episodes" in out, "minutes of work are not thrown away"
    assert said.startswith(f"metalstm: cannot write {tmp_path} (")
    assert "free some space" not in said, "a folder of that name is no matter of space"
