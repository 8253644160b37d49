import itertools
import json
import os
import re
import shutil
from collections import Counter

import pytest
import torch

import helpers
from cli.examples import TRAIN
from helpers import SIZE, TINY, flags, metrics
from metalstm import checkpoint, cli, data, recipes
from metalstm.cli.options import option_names
from metalstm.cli.train import InnerOptimizer, Train
from metalstm.errors import UserError
from metalstm.learners import LEARNERS
from metalstm.methods import METHODS
from metalstm.optimizers import OPTIMIZERS
from metalstm.settings import TrainingSettings, Traits

HAVE_INNER_LOOP = [name for name in METHODS if METHODS[name].recipe("best", Traits(), 5).optimizer]

# The options are those of the tables.


@pytest.mark.parametrize("method", METHODS)
def test_help_shows_the_settings_of_every_method(method, commands):
    status, out, err = commands("train", "--method", method, "--help")
    assert (status, err) == (0, "")
    recipe = METHODS[method].recipe("best", Traits(), 5)
    kinds = [METHODS[method].Settings, type(recipe.learner_settings), type(recipe.optimizer_settings), TrainingSettings]
    for option in itertools.chain.from_iterable(map(option_names, kinds)):
        assert re.search(rf"{option}\b", out), option
    assert ("--optimizer " in out) == bool(recipe.optimizer)


def test_help_lists_the_tables_with_their_labels(commands):
    out = " ".join(commands("train", "--help")[1].replace("│", " ").split())
    for table in (METHODS, OPTIMIZERS):
        for name, entry in table.items():
            assert f"{name}: {entry.label}" in out
    for name in (*data.DATASETS, *LEARNERS):
        assert name in out


def test_names_of_options_never_collide():
    own = [option for option in option_names(Train) if option not in ("--method-settings", "--learner-settings")]
    own = [option for option in own if option not in ("--inner-optimizer", "--optimizer-settings")]
    own += option_names(InnerOptimizer)
    for method, learner, optimizer in itertools.product(METHODS, LEARNERS, OPTIMIZERS):
        parts = (METHODS[method].Settings, LEARNERS[learner].Settings, OPTIMIZERS[optimizer].Settings)
        counts = Counter(itertools.chain(own, *map(option_names, parts)))
        assert counts.most_common(1)[0][1] == 1, (method, learner, optimizer, counts.most_common(3))


@pytest.mark.parametrize("recipe", recipes.RECIPES)
@pytest.mark.parametrize("learner", [None, *LEARNERS])
@pytest.mark.parametrize("method", METHODS)
def test_without_further_options_the_run_is_that_of_the_recipe(method, learner, recipe, folder):
    meta_sets = helpers.load_folder(folder)
    for optimizer in [None, *OPTIMIZERS] if method in HAVE_INNER_LOOP else [None]:
        chosen = {"learner": learner, "optimizer": optimizer}
        words = flags(method=method, recipe=recipe, data=meta_sets.name, n_shot=1, seed=3)
        words += flags(**{name: value for name, value in chosen.items() if value})
        command = cli.parse(["train", *words])
        assert isinstance(command, Train)
        named = recipes.named(method, recipe, meta_sets.traits, 1, **chosen)
        assert command.config(meta_sets) == recipes.run_config(meta_sets, named, method, recipe, n_shot=1, seed=3)


def default_of(option: str, help_text: str) -> str:
    text = re.sub(r"[\s│]+", " ", help_text[help_text.index(f"--{option} ") :])
    found = re.search(r"\(default: (.*?)\)", text)
    assert found
    return found[1]


def test_help_shows_the_values_of_the_recipe_that_is_chosen(commands):
    _, one_shot, _ = commands("train", "--recipe", "paper", "--n-shot", "1", "--help")
    _, five_shot, _ = commands("train", "--recipe", "paper", "--help")
    options = ("epochs", "batch-size", "lr", "clip", "episodes", "hidden-size", "order", "query-norm")
    shown = [[default_of(option, text) for option in options] for text in (one_shot, five_shot)]
    assert shown == [
        ["12", "5", "0.001", "0.25", "75000", "20", "1", "running"],
        ["8", "25", "0.001", "0.25", "50000", "20", "1", "running"],
    ]


def test_help_does_not_need_the_folder_of_the_images(commands, tmp_path):
    status, out, err = commands("train", "--data", f"folder:{tmp_path / 'nowhere'}", "--help")
    assert (status, err) == (0, "")
    assert "--episodes" in out


# What a run leaves behind.


def test_train_reports_validations_and_the_best(trained):
    out, done = trained
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    if "compiler" in lines[0]:  # that there is none
        del lines[0]
    assert [line.split(":")[0] for line in lines[:2]] == [f"meta-training, episode {number}" for number in (10, 20)]
    _, meta = checkpoint.load(out / "best.safetensors")
    assert lines[-1].startswith(
        f"{out}: best meta-val {meta['meta_val']:.2f} % after {meta['episode']} episodes; now: metalstm evaluate "
    )


def test_a_run_folder_holds_configuration_metrics_checkpoints_and_pictures(run, folder):
    names = {"config.json", "metrics.jsonl", "best.safetensors", "last.safetensors", "curve.png", "gates.png"}
    names |= {"report.html", "run.json"}
    assert set(os.listdir(run)) == names
    for picture in ("curve.png", "gates.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    for line in metrics(run, timing=True):
        assert line.keys() >= {"episode", "seconds", "loss", "accuracy", "episodes_per_second", "meta_val"}
    config = json.loads((run / "config.json").read_text())
    assert config == checkpoint.load(run / "best.safetensors")[1]["config"]
    assert (config["method"], config["recipe"], config["data"]) == ("meta-lstm", "paper", f"folder:{folder}")
    assert config["image_shape"] == [3, SIZE, SIZE]
    assert (config["learner_settings"]["filters"], config["training"]["episodes"]) == (4, 20)
    assert config["settings"]["batch_size"] == 5, "the paper's for one shot"


@pytest.fixture(scope="module")
def hasty(cache):
    """Runs commands in a process in which a search for settings is short."""
    short = "from metalstm.methods import Search; Search.__init__.__defaults__ = (2, 2, (1, 2))"
    commands = helpers.Commands(cache, first=short)
    yield commands
    commands.close()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_trained_and_evaluated(method, folder, hasty, tmp_path):
    recipe = METHODS[method].recipe("best", Traits(), 1)
    known = {
        name for part in (recipe.settings, recipe.learner_settings, recipe.optimizer_settings) for name in vars(part)
    }
    small = {name: value for name, value in helpers.SETTINGS.items() if name in known}
    words = flags(
        method=method, data=f"folder:{folder}", out=tmp_path / "run", image_size=SIZE, **helpers.TASK, **small
    )
    words += flags(val_episodes=2, **({"pretrain": 2} if recipe.training.pretrain else {}))
    words += flags(episodes=2) if METHODS[method].meta_trained else []
    status, out, err = hasty("train", *words)
    assert (status, out) == (0, ""), err
    assert re.search(r"run: best meta-val \d+\.\d\d %( after \d episodes)?; now: metalstm evaluate ", err)
    status, out, err = hasty("evaluate", tmp_path / "run", *flags(n_query=3, episodes=2))
    assert (status, err) == (0, "")
    assert " meta-test 2-way 1-shot, 2 episodes: " in out


def test_a_run_folder_has_a_name_by_default(folder, commands, tmp_path):
    words = [*TINY, "--lr", "1e-9", "--episodes", "1", "--data", f"folder:{folder}"]
    status, _, err = commands("train", *words, cwd=tmp_path)
    assert status == 0, err
    assert os.listdir(tmp_path / "runs") == [f"meta-lstm-{folder.name}-2w1s-best"]


@pytest.mark.parametrize("kind", ["auto", "drawing", "photo"])
def test_a_kind_decides_how_the_images_of_a_folder_are_read(kind, folder, commands, tmp_path):
    words = flags(method="pixels", data=f"folder:{folder}", kind=kind, out=tmp_path / "run", n_way=2, n_query=3)
    status, _, err = commands("train", *words)
    assert status == 0, err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["image_shape"] == [1 if kind == "drawing" else 3, 32, 32]
    assert (config["traits"]["drawing"], config["traits"]["mirrors"]) == (kind == "drawing", kind != "drawing")
    status, _, err = commands("evaluate", tmp_path / "run", *flags(n_query=3, episodes=2))
    assert (status, err) == (0, ""), "the images are read as in training"
    status, _, err = commands("train", *flags(resume=True, out=tmp_path / "run"))
    assert status == 0, err


# Resuming.


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def test_a_finished_run_is_resumed_without_a_change(run, folder, commands):
    weights = {name: (run / name).read_bytes() for name in ("best.safetensors", "last.safetensors", "metrics.jsonl")}
    for words in ([*TRAIN, *flags(recipe="paper", data=f"folder:{folder}")], ["train"]):
        status, out, err = commands(*words, *flags(out=run, resume=True, threads=1))
        assert (status, out) == (0, ""), err
        assert err.startswith(f"{run}: going on after episode 20\n")
        assert {name: (run / name).read_bytes() for name in weights} == weights


def test_a_run_is_resumed_by_its_folder_alone_and_made_longer(copy, commands):
    before = json.loads((copy / "config.json").read_text())
    status, out, err = commands("train", *flags(resume=True, out=copy, episodes=25))
    assert (status, out) == (0, ""), err
    assert metrics(copy)[-1]["episode"] == 25
    after = json.loads((copy / "config.json").read_text())
    before["training"]["episodes"] = 25
    assert after == before
    text = commands("train", *flags(resume=True, out=copy), "--help")[1]
    assert [default_of(option, text) for option in ("filters", "episodes", "kind", "n-way")] == [
        "4", "25", "photo", "2"
    ]  # fmt: skip


def test_a_run_whose_pretraining_was_stopped_is_resumed_by_its_folder_alone(folder, commands, tmp_path):
    out = tmp_path / "run"
    words = [*TINY, *flags(method="matching-net", data=f"folder:{folder}", out=out, episodes=2, pretrain=2)]
    words = [word for word in words if word not in ("--hidden-size", "--epochs", "--order")]
    words = ["train", *flags(method="matching-net", data=f"folder:{folder}", out=out, episodes=2, val_episodes=2)]
    words += flags(n_way=2, n_shot=1, n_query=3, filters=4, image_size=SIZE, threads=1)
    # Pre-training ends by itself after its one mini-batch; the state of a run that was stopped in it is left.
    status, _, err = commands(*words, *flags(pretrain=1))
    assert status == 0, err
    for path in out.iterdir():
        if path.name not in ("config.json", "pretrained"):
            path.unlink()
    status, _, err = commands("train", *flags(resume=True, out=out))
    assert status == 0, err
    assert json.loads((out / "config.json").read_text())["method"] == "matching-net"
    assert metrics(out)[-1]["episode"] == 2


def test_a_folder_without_a_run_cannot_be_resumed_alone(commands, tmp_path):
    said = commands.refusal("train", *flags(resume=True, out=tmp_path / "typo"))
    assert said == (
        f"{tmp_path / 'typo'} holds no run to resume: correct --out, or leave out --resume and choose the data"
    )
    assert not (tmp_path / "typo").exists()


def test_a_run_folder_that_is_there_is_not_overwritten(run, folder, commands):
    words = [*TRAIN, *flags(recipe="paper", data=f"folder:{folder}", out=run)]
    before = {path: path.read_bytes() for path in run.iterdir()}
    assert commands.refusal(*words) == f"{run} already holds a run: pass --resume to go on with it, or another --out"
    for others, said in (
        (flags(n_shot=2), "n_shot 1 there, 2 now"),
        (flags(recipe="best"), "recipe 'paper' there, 'best' now"),
        (flags(method="pretrained"), "method 'meta-lstm' there, 'pretrained' now"),
        (flags(lr=0.5, seed=4), "seed 0 there, 4 now; lr 0.02 there, 0.5 now"),
    ):
        for start in (words, ["train", *flags(out=run)]):
            said_now = commands.refusal(*start, "--resume", *others)
            assert said_now == f"{run} holds another run ({said}): use its settings, or another --out"
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_other_data_than_a_run_was_made_from_is_refused(run, folder, tmp_path, commands):
    other = helpers.make_folder(tmp_path / "other", seed=1)
    said = commands.refusal(*TRAIN, *flags(recipe="paper", data=f"folder:{other}", out=run, resume=True))
    assert said.startswith(f"{run} holds another run (data 'folder:{folder}' there, 'folder:{other}' now)")


def test_a_damaged_run_is_refused(run, folder, tmp_path, commands):
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    (broken / "last.safetensors").write_bytes((run / "last.safetensors").read_bytes()[:-100])
    words = flags(recipe="paper", data=f"folder:{folder}", out=broken, resume=True)
    said = commands.refusal(*TRAIN, *words, "--episodes", 30)
    assert said.startswith(f"{broken / 'last.safetensors'} is damaged or not a checkpoint of metalstm (")
    (broken / "config.json").write_text("{")
    assert commands.refusal(*TRAIN, *words).startswith(f"{broken / 'config.json'} is damaged (")


# Wrong input: one line that says what is wrong, what is allowed, and what to do.


REFUSED = {
    "method": (
        flags(method="meta-lstn"),
        "unknown method 'meta-lstn', did you mean 'meta-lstm'? allowed: ",
    ),
    "recipe": (flags(recipe="papers"), "unknown recipe 'papers', did you mean 'paper'? allowed: best, paper"),
    "learner": (flags(learner="conv5"), "unknown learner 'conv5', did you mean 'conv4'? allowed: conv4, linear"),
    "optimizer": (flags(optimizer="adams"), "unknown optimizer 'adams', did you mean 'adam'? allowed: "),
    "data set": (
        flags(data="cifarfs"),
        "unknown data set 'cifarfs', did you mean 'cifar-fs'? allowed: cifar-fs, fc100, folder:DIR, glyphs, "
        "mini-imagenet, omniglot",
    ),
    "kind": (flags(data="glyphs", kind="photo"), "--kind photo: glyphs holds drawings: leave it out; it is for "),
    "option of another method": (
        flags(class_score="sum"),
        "--class-score is not an option of these choices, but of --method matching-net or --method matching-net-fce",
    ),
    "option of another optimizer": (
        flags(rate=0.1),
        "--rate is not an option of these choices, but of --optimizer sgd or --optimizer momentum or ",
    ),
    "threads": (flags(threads=-1), "--threads -1: must be at least 0"),
    "device": (flags(device="abacus"), "--device abacus: not usable here ("),
    "seed": (flags(seed=-1), "--seed -1: must be at least 0"),
    "less than no episodes": (flags(episodes=-5), "--episodes -5: must be at least 0"),
    "all faults at once": (
        flags(episodes=-1, filters=0, lr=-0.1, norm_momentum=2, n_query=0, threads=-1),
        "--n-query 0: must be at least 1 and at most 1e+09; --norm-momentum 2.0: must be above 0 and at most 1; "
        "--filters 0: must be at least 1 and at most 4096; --episodes -1: must be at least 0 and at most 1e+09; "
        "--lr -0.1: must be at least 0 and at most 1e+09; --threads -1: must be at least 0",
    ),
    "not a number": (flags(lr="nan"), "--lr nan: must be at least 0"),
    "classes": (
        flags(n_way=7),
        "7-way episodes need 7 classes, but meta-train has 6: add 1, or pass a smaller --n-way",
    ),
    "one class": (flags(n_way=1), "--n-way 1: must be at least 2"),
    "no shot": (flags(n_shot=0), "--n-shot 0: must be at least 1"),
    "no query": (flags(n_query=0), "--n-query 0: must be at least 1"),
    "queries": (
        flags(n_query=15),
        "1-shot with 15 queries needs 16 images of each of 2 classes, but 0 of meta-train have as many ('class 00' has "
        "8, 'class 01' has 8, 'class 02' has 8 and 3 more have too few): add images, or pass --n-query 7",
    ),
    "shots": (
        flags(n_shot=9),
        "9-shot with 3 queries needs 12 images of each of 2 classes, but 0 of meta-train have as many ('class 00' has "
        "8, 'class 01' has 8, 'class 02' has 8 and 3 more have too few): add images, or pass --n-shot 4 --n-query 4",
    ),
    "small images": (flags(image_size=8), "images of 8x8 pixels are too small for Conv4: it needs at least 16x16"),
    "no pixels": (flags(image_size=0), "image size 0 is too small: pass 1 or more pixels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_train_refuses(case, folder, tmp_path, commands):
    words, message = REFUSED[case]
    out = tmp_path / "run"
    if case in ("optimizer", "option of another optimizer"):  # TRAIN has options of the Meta-LSTM
        said = commands.refusal("train", *flags(data=f"folder:{folder}", out=out), *words)
    else:
        said = commands.refusal(*TRAIN, *flags(data=f"folder:{folder}", out=out), *words)
    assert said.startswith(message)
    assert not out.exists(), "a run that never began leaves no folder, so that the command can be mended and repeated"


def test_a_method_without_an_inner_loop_takes_no_inner_optimizer():
    with pytest.raises(UserError) as error:
        cli.parse(["train", "--method", "matching-net", "--optimizer", "sgd"])
    assert str(error.value) == "--optimizer sgd: matching-net has no inner loop and takes no inner optimizer"


def test_a_class_with_too_few_images_is_left_out_by_name(tmp_path, commands):
    images = helpers.make_folder(tmp_path / "images")
    (images / "class 04").rename(images / "cat")
    names = (images / "meta-train.txt").read_text()
    (images / "meta-train.txt").write_text(names.replace("class 04", "cat"))
    for k in range(3, 8):
        (images / "cat" / f"{k}.png").unlink()
    words = [*TRAIN, *flags(data=f"folder:{images}", out=tmp_path / "run")]
    status, _, err = commands(*words, *flags(n_shot=2, n_query=6))
    assert status == 0, err
    assert err.count("left out of episodes of meta-train, where a class needs 8 images: 'cat' has 3\n") == 1
    status, _, err = commands("evaluate", tmp_path / "run", *flags(split="meta-train", n_query=4, episodes=2))
    assert status == 0, err
    assert "where a class needs 6 images: 'cat' has 3\n" in err


def test_a_folder_that_holds_no_classes_or_is_not_there(tmp_path, commands):
    (tmp_path / "empty").mkdir()
    words = [*TRAIN, *flags(out=tmp_path / "run")]
    for name, said in (
        ("empty", f"{tmp_path / 'empty'} has no class folders: put the images of each class into "),
        ("nowhere", f"{tmp_path / 'nowhere'} is not a folder: name one with images in <class>/"),
    ):
        assert commands.refusal(*words, *flags(data=f"folder:{tmp_path / name}")).startswith(said)


def test_a_missing_data_set_is_reported_with_file_and_command(tmp_path, commands):
    root = tmp_path / "root"
    said = commands.refusal("train", *flags(data="cifar-fs", data_root=root, out=tmp_path / "run"))
    assert said == (
        f"cifar-fs needs cifar-100-python.tar.gz, which is not in {root / 'cifar100'}: "
        "run 'metalstm data fetch cifar-fs', or pass --data-root DIR"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is usable here")
def test_a_device_that_is_not_there_is_reported(folder, tmp_path, commands):
    said = commands.refusal(*TRAIN, *flags(data=f"folder:{folder}", out=tmp_path / "run", device="cuda"))
    assert re.fullmatch(r"--device cuda: not usable here \(.+\): pass --device cpu", said)


def test_a_place_that_cannot_be_written_to_is_named(folder, tmp_path, commands):
    (tmp_path / "file").write_text("")
    said = commands.refusal(*TRAIN, *flags(data=f"folder:{folder}", out=tmp_path / "file"))
    assert said.startswith(f"cannot write {tmp_path / 'file'} (")
