"""`metalstm ablate`, the real command."""

import json
import shutil

import pytest

from helpers import flags, metalstm
from metalstm import checkpoint, data, recipes
from metalstm.ablation import WHOLE
from metalstm.evaluation import gap

FEW = flags(n_query=3, episodes=4, mean_tasks=2, quick=True, threads=1)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Checkpoints on the glyphs as training draws them: a Meta-LSTM, learned rates with a learned f, a rival."""
    folder, glyphs = tmp_path_factory.mktemp("fresh"), data.load("glyphs")
    small = {"filters": 4, "hidden_size": 3, "epochs": 2, "forget_gate": True, "start_rate": 0.3}
    for name, method in (("meta-lstm", "meta-lstm"), ("lslr", "lslr"), ("protonet", "protonet")):
        config = recipes.run_config(glyphs, recipes.named(method, "best", glyphs.traits, 5), method, "best", 3, 2, 3)
        changes = {key: value for key, value in small.items() if recipes.has_setting(config, key)}
        config = recipes.with_changes(config, changes)
        values = {"config": recipes.to_dict(config), "meta_val": 0.0, "episode": 1}
        checkpoint.save(folder / f"{name}.safetensors", checkpoint.method_tensors(recipes.build(config)), values)
    return folder


def test_all_parts_of_a_meta_lstm_on_two_kinds_of_tasks_beside_rivals(fresh, tmp_path, cache):
    path, rival = fresh / "meta-lstm.safetensors", fresh / "lslr.safetensors"
    words = (path, "--tasks", "3w2s", "4w1s", "--rivals", rival, fresh / "protonet.safetensors", "--out", tmp_path)
    done = metalstm("ablate", *words, *FEW, cache=cache)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "ablation.json").read_text())
    assert list(result["tasks"]) == ["3w2s", "4w1s"]
    assert (result["split"], result["episodes"], result["mean_tasks"], result["data"]) == ("meta-val", 4, 2, "glyphs")
    assert result["checkpoint_sha256"] == checkpoint.sha256(path)
    assert result["rivals"][str(rival)]["config"]["optimizer_settings"]["forget_gate"]
    for column in result["tasks"].values():
        found = column["variants"]
        assert next(iter(found)) == WHOLE
        assert found.keys() >= {"mean gates of each layer", "gates blind to gradient", "f = 1", str(rival)}
        for each in found.values():
            assert len(each["per_episode"]) == 4
            assert tuple(each["minus_whole"].values()) == pytest.approx(gap(each, found[WHOLE]))
        assert column["inner_steps"] == 2
        assert column["gates"]["layers"].keys() == {"conv1", "conv2", "conv3", "conv4", "head"}
        assert [len(task) for task in column["gates"]["layers"]["head"]["rate"]] == [2] * 4
        assert column["chosen"]["the best fixed rule, tuned"]["rule"] in ("sgd", "momentum")
    lines = done.stdout.splitlines()
    assert lines[0] == f"# {path}, meta-val of glyphs, 4 episodes"
    assert lines[2].startswith("| variant | 3-way 2-shot | minus the whole | 4-way 1-shot | minus the whole |")
    assert (tmp_path / "ablation.html").read_text().startswith("<!doctype html>")
    for name, task, n_way in ((path, "3w2s", 3), (rival, "4w1s", 4)):
        words = (name, *flags(split="meta-val", n_way=n_way, n_shot=task[2], n_query=3, episodes=4, json="-"))
        alone = json.loads(metalstm("evaluate", *words, cache=cache).stdout)
        variant = result["tasks"][task]["variants"][WHOLE if name == path else str(name)]
        assert variant["per_episode"] == alone["per_episode"], "the same episodes as `evaluate`"


def test_what_an_optimizer_does_not_have_is_left_out(fresh, tmp_path, commands):
    status, out, err = commands("ablate", fresh / "lslr.safetensors", *FEW, "--out", "here", cwd=tmp_path)
    assert status == 0, err
    (column,) = json.loads((tmp_path / "here" / "ablation.json").read_text())["tasks"].values()
    assert "mean gates of each layer" in column["variants"]
    assert not any("blind" in name or "remember" in name or name == "f = 1" for name in column["variants"])
    assert "| only the head moves |" in out


def test_within_groups_the_page_knows_the_group_of_each_task(fresh, tmp_path, commands):
    words = ("--tasks", "3w1s-within", "--out", tmp_path)
    status, out, err = commands("ablate", fresh / "lslr.safetensors", *words, *FEW)
    assert status == 0, err
    assert "3-way 1-shot within a group" in out
    column = json.loads((tmp_path / "ablation.json").read_text())["tasks"]["3w1s-within"]
    assert set(column["gates"]["groups"]) <= set(data.load("glyphs").splits["meta-val"].groups)
    assert len(column["gates"]["groups"]) == 4


def test_each_opening_of_meta_test_is_noted_in_the_run_folders(run, tmp_path, commands):
    for name in ("run", "rival"):
        shutil.copytree(run, tmp_path / name)
    before = {name: json.loads((tmp_path / name / "run.json").read_text())["meta_test"] for name in ("run", "rival")}
    words = ("ablate", tmp_path / "run", "--rivals", tmp_path / "rival", *FEW)
    status, _, err = commands(*words, cwd=tmp_path)
    assert status == 0, err
    status, _, err = commands(*words, "--split", "meta-test", cwd=tmp_path)
    assert status == 0, err
    (column,) = json.loads((tmp_path / "ablation" / "run" / "ablation.json").read_text())["tasks"].values()
    for name, variant in (("run", WHOLE), ("rival", str(tmp_path / "rival"))):
        openings = json.loads((tmp_path / name / "run.json").read_text())["meta_test"]
        (opening,) = openings[len(before[name]) :]
        facts = {"split": "meta-test", "n_way": 2, "n_shot": 1, "n_query": 3, "episodes": 4, "within_group": False}
        assert {key: opening[key] for key in facts} == facts
        assert opening["accuracy"] == column["variants"][variant]["accuracy"]
        assert opening["reason"] == f"ablation of {tmp_path / 'run'}"
        assert opening["checkpoint_sha256"] == checkpoint.sha256(tmp_path / name / "best.safetensors")
    (tmp_path / "rival" / "run.json").write_text("{")
    said = commands.refusal(*words, "--split", "meta-test", cwd=tmp_path)
    assert said.startswith(f"{tmp_path / 'rival' / 'run.json'} is damaged (")


REFUSED = {
    "split": (["--split", "test"], "unknown split 'test', did you mean 'meta-test'?"),
    "task": (["--tasks", "5x1"], "no task '5x1': write 5w1s for 5-way 1-shot, 5w1s-within to stay within a group"),
    "both": (["--tasks", "3w1s", "--n-way", "3"], "--tasks names classes and shots: leave out --n-way and --n-shot"),
    "ways": (["--tasks", "1w1s"], "--n-way 1: must be at least 2"),
    "classes": (["--tasks", "9999w1s"], "9999-way episodes need 9999 classes, but"),
    "no such rival": (["--rivals", "runs/gone"], "no checkpoint at runs/gone"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_input_is_refused_before_anything_is_tested(case, fresh, tmp_path, commands):
    words, said = REFUSED[case]
    assert commands.refusal("ablate", fresh / "meta-lstm.safetensors", *words, *FEW, cwd=tmp_path).startswith(said)
    assert not any(tmp_path.iterdir())


def test_a_method_without_an_inner_loop_is_refused(fresh, tmp_path, commands):
    said = commands.refusal("ablate", fresh / "protonet.safetensors", *FEW, cwd=tmp_path)
    assert "is of the method protonet, which takes no inner steps: give a checkpoint of one that does (" in said
    assert said.endswith("and this one to --rivals")


def test_a_rival_of_other_data_is_refused(fresh, run, tmp_path, commands):
    said = commands.refusal("ablate", fresh / "meta-lstm.safetensors", "--rivals", run, *FEW, cwd=tmp_path)
    assert "was trained on folder:" in said
