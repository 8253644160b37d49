import json
import math
import os
import re
import shutil
import statistics
from pathlib import Path

import pytest
import torch

import helpers
from helpers import SIZE, TINY, flags, metalstm, metrics
from metalstm import checkpoint

# Learns at once, on images so noisy that it errs.
FAST = ["--input-bias", "-1", "-1", "--no-divide-gradient", "--lr", "0.01"]
# Learns fast enough that twenty episodes lift it above one answer for everything.
TRAIN = ["train", *TINY, *FAST, *flags(lr=0.02, episodes=20, val_every=10, val_episodes=2, threads=1)]
EVALUATE_KEYS = {
    "method", "data", "split", "n_way", "n_shot", "n_query", "episodes", "accuracy", "ci95", "seed", "query_norm",
    "precision", "transductive", "recipe", "changes", "checkpoint_sha256", "seconds", "per_episode",
}  # fmt: skip
FEW = flags(n_query=3, episodes=6)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return helpers.make_folder(tmp_path_factory.mktemp("images") / "patterns", noise=170)


@pytest.fixture(scope="module")
def commands(cache):
    """Runs many commands in one process."""
    commands = helpers.Commands(cache)
    yield commands
    commands.close()


@pytest.fixture(scope="module")
def run(folder, cache, tmp_path_factory) -> Path:
    """A run folder that a real process has left behind."""
    out = tmp_path_factory.mktemp("runs") / "run [1]"  # brackets are markup to some
    done = metalstm(*TRAIN, "--recipe", "paper", "--data", f"folder:{folder}", "--out", out, cache=cache)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    if "compiler" in lines[0]:  # that there is none
        del lines[0]
    assert [line.split()[:2] for line in lines[:2]] == [["episode", "10:"], ["episode", "20:"]]
    _, meta = checkpoint.load(out / "best.safetensors")
    assert lines[-1].startswith(
        f"{out}: best meta-val {meta['meta_val']:.2f} % after {meta['episode']} episodes; now: metalstm evaluate "
    )
    return out


# What a run leaves behind.


def test_a_run_folder_holds_configuration_metrics_checkpoints_and_pictures(run, folder):
    names = {"config.json", "metrics.jsonl", "best.safetensors", "last.safetensors", "curve.png", "gates.png"}
    names |= {"report.html"}
    assert set(os.listdir(run)) == names
    for picture in ("curve.png", "gates.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    for line in metrics(run, timing=True):
        assert line.keys() >= {"episode", "seconds", "loss", "accuracy", "episodes_per_second", "meta_val"}
    record = json.loads((run / "config.json").read_text())
    config = record
    assert config == checkpoint.load(run / "best.safetensors")[1]["config"]
    assert (config["method"], config["recipe"], config["data"]) == ("meta-lstm", "paper", f"folder:{folder}")
    assert config["image_shape"] == [3, SIZE, SIZE]
    assert (config["settings"]["filters"], config["training"]["episodes"]) == (4, 20)
    assert config["settings"]["batch_size"] == 5, "the paper's for one shot"


# evaluate.


def test_evaluate_gives_its_json_on_stdout_and_all_else_on_stderr(run, folder, cache, commands):
    done = metalstm("evaluate", run, *FEW, *flags(json="-", threads=1), cache=cache)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result.keys() == EVALUATE_KEYS
    values = result["per_episode"]
    assert len(values) == result["episodes"] == 6
    assert len(set(values)) > 1
    assert all(any(math.isclose(value, 100 * right / 6) for right in range(7)) for value in values), "percent"
    assert result["accuracy"] == pytest.approx(statistics.mean(values))
    assert result["ci95"] == pytest.approx(1.96 * statistics.stdev(values) / math.sqrt(6))
    changes = result["changes"]
    assert (changes["filters"], changes["lr"]) == (4, 0.02), "what is no longer the recipe's"
    assert "episodes" not in changes
    assert {key: result[key] for key in EVALUATE_KEYS - {"accuracy", "ci95", "seconds", "per_episode", "changes"}} == {
        "method": "meta-lstm",
        "data": f"folder:{folder}",
        "split": "meta-test",
        "n_way": 2,
        "n_shot": 1,
        "n_query": 3,
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


def test_numbers_of_the_query_batch_are_labelled_transductive(run, tmp_path, commands):
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


@pytest.mark.data
@pytest.mark.parametrize("name", sorted(checkpoint.shipped()))
def test_shipped_checkpoints_give_the_accuracy_that_is_reported(name, commands, data_root):
    status, out, err = commands("evaluate", name, "--episodes", 20, "--json", "-", "--data-root", data_root)
    assert status == 0, err
    now = json.loads(out)
    task = f"{now['n_way']}w{now['n_shot']}s"
    table = Path(__file__).parents[1] / "results" / now["data"]
    helpers.assert_same_tensors(checkpoint.find(name), table / "checkpoints" / f"meta-lstm-64-{task}.safetensors")
    then = json.loads((table / "rows" / f"meta-lstm-64-{task}.json").read_text())
    # Another machine rounds differently, which can turn a query.
    assert now["accuracy"] == pytest.approx(statistics.mean(then["per_episode"][:20]), abs=0.5)


# Wrong input: one line that tells what is wrong, what is allowed, and what to do.


REFUSED_BY_TRAIN = {
    "method": (
        flags(method="meta-lstn"),
        "unknown method 'meta-lstn', did you mean 'meta-lstm'? allowed: ",
    ),
    "recipe": (flags(recipe="papers"), "unknown recipe 'papers', did you mean 'paper'? allowed: best, paper"),
    "data set": (
        flags(data="cifarfs"),
        "unknown data set 'cifarfs', did you mean 'cifar-fs'? allowed: cifar-fs, fc100, folder:DIR, glyphs, "
        "mini-imagenet, omniglot",
    ),
    "threads": (flags(threads=-1), "--threads -1: must be at least 0"),
    "device": (flags(device="abacus"), "--device abacus: not usable here ("),
    "seed": (flags(seed=-1), "--seed -1: must be at least 0"),
    "large seed": (flags(seed=2**70), f"--seed {2**70}: must be "),
    "zero episodes": (flags(episodes=0), "--episodes 0: must be at least 1"),
    "less than no episodes": (flags(episodes=-5), "--episodes -5: must be at least 1"),
    "all faults at once": (
        flags(episodes=0, filters=0, lr=-0.1, norm_momentum=2),
        "--filters 0: must be at least 1; --episodes 0: must be at least 1; --lr -0.1: must be above 0; "
        "--norm-momentum 2.0: must be above 0 and at most 1",
    ),
    "not a number": (flags(lr="nan"), "--lr nan: must be above 0"),
    "classes": (
        flags(n_way=7),
        "7-way episodes need 7 classes, but meta-train has 6: add 1, or pass a smaller --n-way",
    ),
    "one class": (flags(n_way=1), "--n-way 1: must be at least 2"),
    "no shot": (flags(n_shot=0), "--n-shot 0: must be at least 1"),
    "no query": (flags(n_query=0), "--n-query 0: must be at least 1"),
    "less than no query": (flags(n_query=-1), "--n-query -1: must be at least "),
    "queries": (
        flags(n_query=15),
        "class 'class 00' has 8 images, but 1-shot with 15 queries needs 16: add 8, or pass --n-query 7",
    ),
    "shots": (
        flags(n_shot=9),
        "class 'class 00' has 8 images, but 9-shot with 3 queries needs 12: add 4, or pass a smaller --n-shot",
    ),
    "small images": (flags(image_size=8), "images of 8x8 pixels are too small for Conv4: it needs at least 16x16"),
    "no pixels": (flags(image_size=0), "image size 0 is too small: pass 1 or more pixels"),
}


@pytest.mark.parametrize("case", REFUSED_BY_TRAIN)
def test_train_refuses(case, folder, tmp_path, commands):
    words, message = REFUSED_BY_TRAIN[case]
    out = tmp_path / "run"
    said = commands.refusal(*TRAIN, *flags(data=f"folder:{folder}", out=out), *words)
    assert said.startswith(message)
    assert not out.exists(), "a run that never began leaves no folder, so that the command can be mended and repeated"


REFUSED_BY_EVALUATE = {
    "split": (
        flags(split="meta_test"),
        "unknown split 'meta_test', did you mean 'meta-test'? allowed: meta-test, meta-train, meta-val",
    ),
    "number of classes": (
        flags(n_way=3),
        "this method was meta-trained for 2 classes and serves no other number: got 3",
    ),
    "more classes than there are": (
        flags(n_way=4),
        "4-way episodes need 4 classes, but meta-test has 3: add 1, or pass",
    ),
    "no class": (flags(n_way=0), "--n-way 0: must be at least 2"),
    "no shot": (flags(n_shot=0), "--n-shot 0: must be at least 1"),
    "no query": (flags(n_query=0), "--n-query 0: must be at least 1"),
    "queries": (
        flags(n_query=9),
        "class 'class 09' has 8 images, but 1-shot with 9 queries needs 10: add 2, or pass --n-query 7",
    ),
    "one episode": (flags(episodes=1), "--episodes 1: an interval needs at least 2"),
    "less than no episodes": (flags(episodes=-1), "--episodes -1: an interval needs at least 2"),
    "threads": (flags(threads=-1), "--threads -1: must be at least 0"),
    "seed": (flags(seed=-1), "--seed -1: must be at least 0"),
}


@pytest.mark.parametrize("case", REFUSED_BY_EVALUATE)
def test_evaluate_refuses(case, run, commands):
    words, message = REFUSED_BY_EVALUATE[case]
    assert commands.refusal("evaluate", run, *FEW, *words).startswith(message)


def test_a_class_with_too_few_images_is_named_with_what_to_do(tmp_path, commands):
    images = helpers.make_folder(tmp_path / "images")
    (images / "class 04").rename(images / "cat")
    names = (images / "meta-train.txt").read_text()
    (images / "meta-train.txt").write_text(names.replace("class 04", "cat"))
    for k in range(3, 8):
        (images / "cat" / f"{k}.png").unlink()
    words = [*TRAIN, *flags(data=f"folder:{images}", out=tmp_path / "run")]
    assert commands.refusal(*words, *flags(n_shot=2, n_query=6)) == (
        "class 'cat' has 3 images, but 2-shot with 6 queries needs 8: add 5, or pass --n-query 1"
    )


def test_a_folder_that_holds_no_classes_or_is_not_there(tmp_path, commands):
    (tmp_path / "empty").mkdir()
    words = [*TRAIN, *flags(out=tmp_path / "run")]
    for name, said in (
        ("empty", f"{tmp_path / 'empty'} has no class folders: put the images of each class into "),
        ("nowhere", f"{tmp_path / 'nowhere'} is not a folder: name one with images in <class>/"),
    ):
        assert commands.refusal(*words, *flags(data=f"folder:{tmp_path / name}")).startswith(said)


def test_a_missing_data_set_is_told_with_file_and_command(tmp_path, commands):
    root = tmp_path / "root"
    said = commands.refusal("train", *flags(data="cifar-fs", data_root=root, out=tmp_path / "run"))
    assert said == (
        f"cifar-fs needs cifar-100-python.tar.gz, which is not in {root / 'cifar100'}: "
        "run 'metalstm data fetch cifar-fs', or pass --data-root DIR"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is usable here")
def test_a_device_that_is_not_there_is_told(folder, tmp_path, commands):
    said = commands.refusal(*TRAIN, *flags(data=f"folder:{folder}", out=tmp_path / "run", device="cuda"))
    assert re.fullmatch(r"--device cuda: not usable here \(.+\): pass --device cpu", said)


def test_a_run_folder_that_is_there_is_not_overwritten(run, folder, commands):
    words = [*TRAIN, *flags(recipe="paper", data=f"folder:{folder}", out=run)]
    before = {path: path.read_bytes() for path in run.iterdir()}
    assert commands.refusal(*words) == f"{run} already holds a run: pass --resume to go on with it, or another --out"
    assert commands.refusal(*words, "--resume", "--n-shot", 2, "--lr", 0.5) == (
        f"{run} holds another run (n_shot 1 there, 2 now; lr 0.02 there, 0.5 now): use its settings, or another --out"
    )
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_a_finished_run_is_gone_on_with_without_a_change(run, folder, commands):
    weights = {name: (run / name).read_bytes() for name in ("best.safetensors", "last.safetensors", "metrics.jsonl")}
    status, out, err = commands(*TRAIN, *flags(recipe="paper", data=f"folder:{folder}", out=run, resume=True))
    assert (status, out) == (0, ""), err
    assert err.startswith(f"{run}: going on after episode 20\n")
    assert {name: (run / name).read_bytes() for name in weights} == weights


def test_other_data_than_a_run_was_made_from_is_refused(run, folder, tmp_path, commands):
    other = helpers.make_folder(tmp_path / "other", seed=1)
    said = commands.refusal("evaluate", run, *FEW, *flags(data=f"folder:{other}"))
    digest = checkpoint.load(run / "best.safetensors")[1]["config"]["data_digest"]
    assert said.startswith(
        f"{run} was trained on folder:{folder} (digest {digest[:12]}), but folder:{other} is other data (digest "
    )
    said = commands.refusal(*TRAIN, *flags(recipe="paper", data=f"folder:{other}", out=run, resume=True))
    assert said.startswith(f"{run} holds another run (data 'folder:{folder}' there, 'folder:{other}' now; data_digest ")


def test_a_moved_data_folder_is_the_same_data(run, folder, tmp_path, commands):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    status, _, err = commands("evaluate", run, *FEW, *flags(data=f"folder:{moved}"))
    assert (status, err) == (0, "")


def test_a_corrupt_checkpoint_is_refused_by_every_command(run, folder, tmp_path, commands):
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    for name in ("best.safetensors", "last.safetensors"):
        (broken / name).write_bytes((run / name).read_bytes()[:-100])
    said = commands.refusal("evaluate", broken, *FEW)
    assert said.startswith(f"{broken / 'best.safetensors'} is damaged or not a checkpoint of metalstm (")
    words = flags(recipe="paper", data=f"folder:{folder}", out=broken, resume=True)
    said = commands.refusal(*TRAIN, *words, "--episodes", 30)
    assert said.startswith(f"{broken / 'last.safetensors'} is damaged or not a checkpoint of metalstm (")


def test_an_unknown_checkpoint_is_told_by_its_name(tmp_path, commands):
    assert commands.refusal("evaluate", "nowhere", cwd=tmp_path).startswith("unknown checkpoint 'nowhere'")
    assert commands.refusal("evaluate", "runs/x", cwd=tmp_path).startswith("no checkpoint at runs/x: ")
    (tmp_path / "new").mkdir()
    assert commands.refusal("evaluate", "new", cwd=tmp_path).startswith("new holds no best.safetensors: ")


def test_places_that_cannot_be_written_to_are_told_by_their_names(run, folder, tmp_path, commands):
    (tmp_path / "file").write_text("")
    said = commands.refusal(*TRAIN, *flags(data=f"folder:{folder}", out=tmp_path / "file"))
    assert said.startswith(f"cannot write {tmp_path / 'file' / 'config.json'} (")
    status, out, said = commands("evaluate", run, *FEW, *flags(json=tmp_path))
    assert (status, said.count("\n")) == (2, 1)
    assert "2-way 1-shot, 6 episodes" in out, "minutes of work are not thrown away"
    assert said.startswith(f"metalstm: cannot write {tmp_path} (")
    assert "free some space" not in said, "a folder of that name is no matter of space"


def test_a_mistake_is_one_line_and_a_traceback_only_when_asked_for(cache, tmp_path):
    words = ["train", *flags(recipe="papers", out=tmp_path / "run")]
    done = metalstm(*words, cache=cache)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "metalstm: unknown recipe 'papers', did you mean 'paper'? allowed: best, paper\n"
    done = metalstm(*words, "--debug", cache=cache)
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "papers" in done.stderr


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train", "--out", "x", "--learning-rate", "1"], "--learning-rate"),
        (["train", "--out", "x", "--n-shot", "many"], "many"),
        (["train", "--out", "x", "--order", "3"], "3"),
        (["evaluate"], "checkpoint"),
        (["evaluate", "x", "--query-norm", "none"], "none"),
        (["trian"], "trian"),
        ([], "demo"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_parsed_is_told_with_status_2(words, part, tmp_path, commands):
    status, out, err = commands(*words, cwd=tmp_path)
    assert status == 2
    assert part in out + err
    assert "Traceback" not in out + err
    assert os.listdir(tmp_path) == []


def test_a_run_folder_has_a_name_by_default(folder, commands, tmp_path):
    words = [*TINY, "--lr", "1e-9", "--episodes", "1", "--data", f"folder:{folder}"]
    status, _, err = commands("train", *words, cwd=tmp_path)
    assert status == 0, err
    assert os.listdir(tmp_path / "runs") == [f"meta-lstm-{folder.name}-2w1s-best"]


# data.


def test_data_lists_what_there_is(commands, tmp_path):
    status, out, _ = commands("data", "list", "--data-root", tmp_path)
    assert status == 0
    for name in ("glyphs", "omniglot", "cifar-fs", "fc100", "mini-imagenet", "folder:DIR"):
        assert re.search(rf"\b{name}\b", out), name


def test_data_check_tells_the_state_of_every_file(commands, tmp_path):
    status, out, err = commands("data", "check", "omniglot", "--data-root", tmp_path)
    assert (status, err) == (2, "metalstm: 2 of 2 files are not as released: metalstm data fetch omniglot\n")
    assert out.splitlines() == [
        f"missing\t{tmp_path / 'omniglot' / name}" for name in ("images_background.zip", "images_evaluation.zip")
    ]
    status, _, err = commands("data", "check", "glyphs")  # at the default place; no files
    assert (status, err) == (0, "")


def test_data_refuses_what_it_does_not_know(commands):
    for words, said in (
        (["chek"], "unknown action 'chek', did you mean 'check'? allowed: check, fetch, list"),
        (["fetch"], "data fetch: which data set? one of "),
        (["check", "omniglto"], "unknown data set 'omniglto', did you mean 'omniglot'? allowed: "),
        (["fetch", "folder:x"], "'folder:x' is a folder of your own: there is nothing to fetch or check"),
    ):
        assert commands.refusal("data", *words).startswith(said)


# Help.


def test_help_shows_the_commands_and_costs_no_torch(cache):
    done = metalstm("--help", cache=cache)
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("demo", "data", "train", "evaluate"):
        assert re.search(rf"\b{name}\b", done.stdout)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("demo", ["--out", "--episodes"]),
        ("data", ["list", "fetch", "check"]),
        ("train", ["--out", "--data", "--method", "--recipe", "--n-way", "--n-shot", "--resume", "--episodes"]),
        ("evaluate", ["--data", "--split", "--n-way", "--n-shot", "--episodes", "--json", "--query-norm"]),
    ],
)
def test_every_command_has_its_help(command, words, commands):
    status, out, err = commands(command, "--help")
    assert (status, err) == (0, "")
    for word in (*words, "--seed", "--device", "--threads", "--data-root", "--debug"):
        assert word in out


def default_of(option: str, help_text: str) -> str:
    text = re.sub(r"[\s│]+", " ", help_text[help_text.index(f"--{option} ") :])
    found = re.search(r"\(default: (.*?)\)", text)
    assert found
    return found[1]


def test_help_shows_the_values_of_the_recipe_that_is_named(commands):
    _, one_shot, _ = commands("train", "--recipe", "paper", "--n-shot", "1", "--help")
    _, five_shot, _ = commands("train", "--recipe", "paper", "--help")
    options = ("epochs", "batch-size", "lr", "clip", "episodes", "hidden-size", "order", "query-norm")
    shown = [[default_of(option, text) for option in options] for text in (one_shot, five_shot)]
    assert shown == [
        ["12", "5", "0.001", "0.25", "75000", "20", "1", "running"],
        ["8", "25", "0.001", "0.25", "50000", "20", "1", "running"],
    ]


# demo.


QUICK = "from metalstm import demo; demo.TEST_EPISODES, demo.TUNING_EPISODES, demo.RATES = 8, 4, (0.1, 1.0)"


@pytest.mark.slow
def test_demo_compares_four_and_writes_a_page_that_needs_no_network(cache, tmp_path):
    out, commands = tmp_path / "demo", helpers.Commands(cache, QUICK)
    words = ["demo", *flags(out=out, episodes=10, threads=1)]
    status, table, err = commands(*words)
    assert status == 0, err
    for name in ("chance", "nearest neighbour", "gradient descent", "Meta-LSTM"):
        assert name in table
    assert "20.00 %" in table
    numbers = re.findall(r"\d+\.\d\d \+- \d+\.\d\d %", table)
    assert len(numbers) == 3
    page = (out / "report.html").read_text()
    assert all(number in page for number in numbers)
    loaded = re.findall(r"""(?:src|href|action|data)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)|@import\s*([^;]+)""", page)
    assert len(loaded) == page.count("<img") > 0
    assert all("".join(address).startswith("data:image/png;base64,") for address in loaded)

    weights = (out / "last.safetensors").read_bytes()
    status, again, err = commands(*words)
    assert (status, again) == (0, table), err
    assert "going on after episode 10" in err
    assert (out / "last.safetensors").read_bytes() == weights
    commands.close()


def test_demo_refuses(commands, tmp_path):
    out = tmp_path / "demo"
    assert commands.refusal("demo", *flags(out=out, threads=-1)) == "--threads -1: must be at least 0"
    assert commands.refusal("demo", *flags(out=out, episodes=0)).startswith("--episodes 0: must be at least 1")
    assert not out.exists()


# The web page.


def test_app_refuses(tmp_path, commands):
    assert commands.refusal("app", "--port", 65536) == "--port 65536: must be at least 0 and below 65536"
    said = commands.refusal("app", "--checkpoint", "meta-lstm-cifar-fs-5w5")
    assert said.startswith("unknown checkpoint 'meta-lstm-cifar-fs-5w5', did you mean 'meta-lstm-cifar-fs-5w5s'? ")
    without = helpers.Commands(tmp_path, first="import sys; sys.modules['gradio'] = None")
    said = without.refusal("app")
    without.close()
    assert said == "the web page needs gradio, which is not here: pip install 'metalstm[app]'"
