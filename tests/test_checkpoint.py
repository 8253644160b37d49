"""Checkpoints: what is written comes back with every bit, and no file does harm."""

import ast
import json
import os
import pickle
import struct
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as serialize
from safetensors.torch import save_file

import helpers
import metalstm
from metalstm import checkpoint, recipes
from metalstm.episodes import Episode, Query, Support
from metalstm.errors import UserError
from metalstm.learners import LEARNERS, Conv4
from metalstm.methods import METHODS, GradientMethod, InnerLoop, Method, RunConfig
from metalstm.optimizers import MetaLSTM
from metalstm.settings import TrainingSettings, Traits

SOURCE = Path(metalstm.__file__).parent
DAMAGED = "is damaged or not a checkpoint of metalstm"
UNFIT = "does not fit this version of metalstm"


def content() -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and plain values of a checkpoint, small enough to try every byte."""
    config = RunConfig(
        InnerLoop(),
        TrainingSettings(),
        learner_settings=Conv4.Settings(filters=2),
        optimizer="meta-lstm",
        optimizer_settings=MetaLSTM.Settings(hidden_size=1),
        image_shape=(1, 16, 16),
        n_way=2,
    )
    tensors = checkpoint.method_tensors(recipes.build(config))
    return tensors, {"config": recipes.to_dict(config), "meta_val": 50.0, "episode": 7}


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    commands = helpers.Commands(tmp_path_factory.mktemp("cache"))
    yield commands
    commands.close()


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "some.safetensors"
    checkpoint.save(path, *content())
    return path


# Reading what was written.


def test_tensors_come_back_with_every_bit(tmp_path):
    tensors = {
        "special": torch.tensor([3.4e38, -0.0, 1e-45]),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "labels": torch.arange(6).view(2, 3).T,  # not contiguous
        "empty": torch.zeros(0, 4),
        "weight": torch.nn.Parameter(torch.ones(2)),
    }
    meta = {"text": "naïve [b]", "number": 0.1, "list": [1, None, True], "nested": {"a": {}}}
    checkpoint.save(tmp_path / "x.safetensors", tensors, meta)
    again, meta_again = checkpoint.load(tmp_path / "x.safetensors")
    assert meta_again == meta
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (again[name].dtype, again[name].shape) == (tensor.dtype, tensor.shape), name
        assert again[name].numpy().tobytes() == tensor.detach().contiguous().numpy().tobytes(), name


def test_large_tensors_can_be_kept_in_half_of_the_bytes(tmp_path):
    tensors = {"body": torch.randn(checkpoint.LARGE), "few": torch.randn(9), "labels": torch.arange(checkpoint.LARGE)}
    for name, content in (("whole", tensors), ("half", checkpoint.halved(tensors))):
        checkpoint.save(tmp_path / name, content, {})
    assert (tmp_path / "whole").stat().st_size - (tmp_path / "half").stat().st_size > 1.9 * checkpoint.LARGE
    again, _ = checkpoint.load(tmp_path / "half")
    assert torch.equal(again["body"], tensors["body"].bfloat16().float())
    assert again["body"].dtype == torch.float32
    assert torch.equal(again["few"], tensors["few"])
    assert torch.equal(again["labels"], tensors["labels"])


def test_a_method_comes_back_with_configuration_and_weights(path):
    tensors, meta = content()
    method, config, meta_again = checkpoint.load_method(path)
    assert (recipes.to_dict(config), meta_again) == (meta["config"], meta)
    assert not method.training
    assert {f"method.{name}" for name in method.state_dict()} == tensors.keys()
    for name, tensor in method.state_dict().items():
        assert torch.equal(tensor, tensors[f"method.{name}"]), name


def test_a_checkpoint_is_found_by_path_folder_and_name(path, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    best = run / "best.safetensors"
    best.write_bytes(path.read_bytes())
    (run / "last.safetensors").write_bytes(b"")
    assert checkpoint.find(run) == checkpoint.find(str(best)) == best
    monkeypatch.setattr(checkpoint, "shipped", lambda: {"meta-lstm-omniglot-5w1s": best, "meta-lstm-fc100-5w5s": path})
    assert checkpoint.find("meta-lstm-omniglot-5w1s") == best
    with pytest.raises(UserError) as error:
        checkpoint.find("meta-lstm-omniglot-5w1")
    assert str(error.value) == (
        "unknown checkpoint 'meta-lstm-omniglot-5w1', did you mean 'meta-lstm-omniglot-5w1s'? "
        "allowed: meta-lstm-fc100-5w5s, meta-lstm-omniglot-5w1s"
    )


@pytest.mark.parametrize("name", ["runs/nowhere", "nowhere.safetensors", "nowhere"])
def test_a_missing_checkpoint_is_reported_in_whole_sentences(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=name) as error:
        checkpoint.load_method(name)
    assert not str(error.value).rstrip().endswith((":", "of", "or")), "a list of nothing ends the line"


@pytest.mark.parametrize("read", [checkpoint.find, checkpoint.load_method, lambda name: checkpoint.load(Path(name))])
def test_a_name_that_is_too_long_is_a_mistake(read):
    with pytest.raises(UserError, match=r"^cannot read x+ \(File name too long\): check its name and permissions$"):
        read("x" * 300)


def test_a_folder_without_a_best_checkpoint_is_no_run(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path} holds no best.safetensors: "):
        checkpoint.load_method(tmp_path)


@pytest.mark.parametrize("name", sorted(checkpoint.shipped()))
def test_shipped_checkpoints_load_and_are_named_for_what_they_hold(name):
    _, config, _ = checkpoint.load_method(name)
    learner = "" if config.learner == "conv4" else f"{config.learner}-"
    assert name == f"{config.method}-{config.data}-{learner}{config.n_way}w{config.n_shot}s"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_comes_back_with_the_same_logits(name, tmp_path):
    named = recipes.named(name, "best", Traits(), 5)
    config = RunConfig(
        **{field.name: getattr(named, field.name) for field in fields(named)},
        method=name,
        image_shape=(3, 16, 16),
        n_classes=4,
        n_way=3,
        seed=1,
    )
    method = recipes.build(config).eval()
    checkpoint.save(tmp_path / "x.safetensors", checkpoint.method_tensors(method), {"config": recipes.to_dict(config)})
    again, config_again, _ = checkpoint.load_method(tmp_path / "x.safetensors")
    assert config_again == config
    assert checkpoint.check_shapes(config, method.state_dict()) is not None, "it can be built on the meta device"
    generator = torch.Generator().manual_seed(0)
    support = Support(torch.rand(6, 3, 16, 16, generator=generator), torch.arange(3).repeat(2), 3)
    x = torch.rand(4, 3, 16, 16, generator=generator)
    with torch.no_grad():
        assert torch.equal(method.logits(method.adapt(support), x), again.logits(again.adapt(support), x))


# The state that a run goes on from.


def steps(numbers: range, method: Method, optimizer: torch.optim.Optimizer) -> None:
    """Outer steps on random images; each depends on its number alone."""
    for number in numbers:
        x, y = torch.rand(2, 2, 1, 16, 16, generator=torch.Generator().manual_seed(number)), torch.arange(2)
        loss, _ = method(Episode(Support(x[0], y, 2), Query(x[1], y)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_training_state_comes_back_with_every_bit_and_goes_on_alike():
    config = recipes.from_dict(content()[1]["config"])
    methods = [recipes.build(config) for _ in range(3)]
    whole, pieces, again = ((method, torch.optim.Adam(method.parameters(), lr=0.01)) for method in methods)
    steps(range(3), *whole)
    steps(range(2), *pieces)
    checkpoint.restore_training_state(*again, checkpoint.training_state(*pieces))
    assert_same(checkpoint.training_state(*pieces), checkpoint.training_state(*again))
    steps(range(2, 3), *again)
    assert_same(checkpoint.training_state(*whole), checkpoint.training_state(*again))


def test_a_number_of_steps_below_zero_is_refused():
    methods = [recipes.build(recipes.from_dict(content()[1]["config"])) for _ in range(2)]
    one, other = ((method, torch.optim.Adam(method.parameters(), lr=0.01)) for method in methods)
    steps(range(1), *one)
    state = checkpoint.training_state(*one) | {"optimizer.0.step": torch.tensor(-3e38)}
    with pytest.raises(ValueError, match=r"^optimizer\.0\.step is -3e\+38$"):
        checkpoint.restore_training_state(*other, state)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


# Damage.


def test_a_file_cut_anywhere_is_refused(path):
    whole = path.read_bytes()
    for length in (*range(70), *range(70, len(whole), 9), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=f"^{path} {DAMAGED} .*: get or train it anew$"):
            checkpoint.load_method(path)
    path.write_bytes(whole)
    checkpoint.load_method(path)


FLIP = """
import pathlib, struct, sys
from metalstm import checkpoint
from metalstm.errors import UserError

path = pathlib.Path(sys.argv[1])
whole = path.read_bytes()
end = 8 + struct.unpack("<Q", whole[:8])[0]
refused = loaded = 0
for flip in (0x01, 0x12):
    for place in range(end):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        try:
            checkpoint.load_method(path)
            loaded += 1  # a digit of the seed may become another digit
        except UserError as error:
            assert str(error).startswith(f"{path} "), error
            refused += 1
        except Exception as error:
            start = max(0, place - 30)
            sys.exit(f"byte {place}, {whole[start:place + 30]}, flipped by {flip:#x}: {type(error).__name__}: {error}")
print(refused, loaded)
"""


def test_a_flipped_bit_of_the_header_is_never_more_than_a_user_error(path):
    # Not in this process, where arguments of a wrong type are caught before they do harm.
    done = subprocess.run([sys.executable, "-c", FLIP, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused, loaded = map(int, done.stdout.split())
    assert refused > loaded


def other(tmp_path: Path, kind: str) -> bytes:
    """Files that are no checkpoint of metalstm."""
    target = tmp_path / "other"
    tensor = {"method.body_0": torch.zeros(3)}
    match kind:
        case "empty":
            return b""
        case "text":
            return b"# a run\n" * 20
        case "endless header":
            return struct.pack("<Q", 2**63) + b"{}"
        case "torch":
            torch.save(tensor, target)
        case "no metadata":
            save_file(tensor, target)
        case "foreign metadata":
            save_file(tensor, target, metadata={"format": "pt"})
        case "no JSON":
            save_file(tensor, target, metadata={"metalstm": "{'config': 1}"})
        case "deep JSON":
            save_file(tensor, target, metadata={"metalstm": "[" * 100_000})
    return target.read_bytes()


@pytest.mark.parametrize(
    "kind",
    ["empty", "text", "endless header", "torch", "no metadata", "foreign metadata", "no JSON", "deep JSON"],
)
def test_a_foreign_file_is_refused_in_one_line(commands, tmp_path, kind):
    path = tmp_path / "best.safetensors"
    path.write_bytes(other(tmp_path, kind))
    message = commands.refusal("evaluate", tmp_path)
    assert message.startswith(f"{path} {DAMAGED} (")
    assert message.endswith("): get or train it anew")
    assert " ()" not in message
    assert "('metalstm')" not in message, "the bare key says nothing to a user"


@pytest.mark.parametrize("meta", [5, None, "config", ["config"]], ids=json.dumps)
def test_metadata_that_are_no_object_are_refused_in_one_line(commands, path, meta):
    path.write_bytes(serialize(content()[0], metadata={"metalstm": json.dumps(meta)}))
    expected = f"{path} {DAMAGED} (its metadata are no object): get or train it anew"
    assert commands.refusal("evaluate", path) == expected


def refused_values(commands, path: Path, meta: dict) -> str:
    """What is said of a checkpoint with these plain values, in brackets."""
    path.write_bytes(serialize(content()[0], metadata={"metalstm": json.dumps(meta)}))
    message = commands.refusal("evaluate", path)
    assert message.startswith(f"{path} {UNFIT} (")
    assert message.endswith("): train it anew")
    return message.removeprefix(f"{path} {UNFIT} (").removesuffix("): train it anew")


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({}, "'config' is missing"),
        ({"config": None}, "a configuration is None: must be an object"),
        ({"config": []}, "a configuration is []: must be an object"),
        ({"config": {"settings": {}}}, "RunConfig lacks data, data_digest, "),
    ],
    ids=str,
)
def test_a_configuration_that_is_none_is_refused_in_one_line(commands, path, meta, said):
    assert refused_values(commands, path, meta).startswith(said)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("image_shape", 16, "--image-shape 16: must be 3 values, each a whole number, at least 1"),
        ("image_shape", [16], "--image-shape [16]: must be 3 values, each a whole number, at least 1"),
        ("image_shape", ["1", "16", "16"], "--image-shape [1, 16, 16]: must be 3 values, each a whole number"),
        ("image_shape", [1, 8, 8], "images of 8x8 pixels are too small for Conv4: it needs at least 16x16"),
        ("learner_settings.filters", "many", "--filters many: must be a whole number, at least 1 and at most 4096"),
        ("learner_settings.filters", -1, "--filters -1: must be at least 1 and at most 4096"),
        ("learner_settings", [], "Conv4.Settings is []: must be an object"),
        ("settings.epochs", 0, "--epochs 0: must be at least 1 and at most 500"),
        ("settings.epochs", 10_000, "--epochs 10000: must be at least 1 and at most 500"),
        ("optimizer_settings.hidden_size", 10_000, "--hidden-size 10000: must be at least 1 and at most 1024"),
        ("image_shape", [1, 10_000, 16], "--image-shape [1, 10000, 16]: must be 3 values, each a whole number"),
        ("n_shot", 10**400, "--n-shot 1000"),
        ("n_classes", 10**9, "--n-classes 1000000000: must be at least 0 and at most 1e+06"),
        ("settings.order", 7, "--order 7: must be one of 1, 2"),
        ("settings.query_norm", "foo", "--query-norm foo: must be one of running, support, batch"),
        ("settings.norm_momentum", "x", "--norm-momentum x: must be a number, above 0 and at most 1"),
        ("settings.of the future", 1, "InnerLoop does not know of the future"),
        ("optimizer_settings.forget_bias", [1], "--forget-bias [1]: must be 2 values, each a number"),
        ("training.lr", -1, "--lr -1: must be at least 0"),
        ("traits.mirrors", "yes", "--mirrors yes: must be True or False"),
        ("n_way", 0, "--n-way 0: must be at least 2"),
        ("method", "of the future", "unknown method 'of the future': allowed: alfa, "),
        ("learner", "of the future", "unknown learner 'of the future': allowed: conv4, linear"),
        ("optimizer", "of the future", "unknown optimizer 'of the future': allowed: adadelta, "),
        ("of the future", 1, "RunConfig does not know of the future"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_values_that_do_not_fit_are_refused_in_one_line(commands, path, place, value, said):
    _, meta = content()
    *outer, name = place.split(".")
    part = meta["config"]
    for each in outer:
        part = part[each]
    part[name] = value
    assert refused_values(commands, path, meta).startswith(said)


@pytest.mark.parametrize("name", [field.name for field in fields(RunConfig)])
def test_a_configuration_that_lacks_a_value_is_refused(path, name):
    tensors, meta = content()
    del meta["config"][name]
    checkpoint.save(path, tensors, meta)
    with pytest.raises(UserError) as error:
        checkpoint.load_method(path)
    assert str(error.value) == f"{path} {UNFIT} (RunConfig lacks {name}): train it anew"


def test_a_setting_that_came_later_has_its_default_in_an_older_checkpoint(path):
    tensors, meta = content()
    del meta["config"]["training"]["clip"]
    del meta["config"]["settings"]["recompute"]
    checkpoint.save(path, tensors, meta)
    _, config, _ = checkpoint.load_method(path)
    assert (config.training, config.settings) == (TrainingSettings(), InnerLoop())


# Settings other than the checkpoint's.


def test_a_method_can_be_loaded_with_other_settings(path):
    method, config, meta = checkpoint.load_method(path, {"query_norm": "support", "precision": "bf16"})
    assert isinstance(method, GradientMethod)
    assert (config.settings.query_norm, config.learner_settings.precision) == ("support", "bf16")
    assert (method.settings.query_norm, method.learner.bf16) == ("support", True)
    assert meta["config"]["settings"]["query_norm"] == "running"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"query_nrm": "batch"}, "unknown setting 'query_nrm', did you mean 'query_norm'? allowed: "),
        ({"query_norm": "bach"}, "--query-norm bach: must be one of running, support, batch"),
    ],
    ids=str,
)
def test_other_settings_are_checked(path, changes, said):
    with pytest.raises(UserError) as error:
        checkpoint.load_method(path, changes)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("fault", ["shape", "missing", "surplus", "none"])
def test_tensors_that_do_not_fit_are_refused_in_one_line(commands, path, fault):
    tensors, meta = content()
    match fault:
        case "shape":
            tensors["method.body_0"] = tensors["method.body_0"][:-1].clone()
        case "missing":
            del tensors["method.optimizer.bias"]
        case "surplus":
            tensors["method.optimizer.bias_x"] = torch.zeros(1)
        case "none":
            tensors = {}
    checkpoint.save(path, tensors, meta)
    message = commands.refusal("evaluate", path)
    assert message.startswith(f"{path} {UNFIT} (")
    assert message.endswith("): train it anew")


ASK = """
import resource, sys
from pathlib import Path
from metalstm import checkpoint, learners, methods, optimizers, recipes
from metalstm.errors import UserError

resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for place, value in (("filters", 4096), ("hidden_size", 1024), ("image_shape", (1, 512, 512)), ("n_way", 10**6)):
    try:
        checkpoint.load_method(Path(sys.argv[1]) / f"{place}.safetensors")
        sys.exit(f"{place} {value} was loaded")
    except UserError as error:
        print(error)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) // 1024
assert grown < 100, f"{grown} MiB"
"""


def test_what_a_configuration_asks_for_is_compared_with_the_file_before_it_is_made(tmp_path):
    """All of these are within their bounds, and 4,096 filters take 1.8 GB."""
    tensors, meta = content()
    for place, value in (("filters", 4096), ("hidden_size", 1024), ("image_shape", (1, 512, 512)), ("n_way", 10**6)):
        config = recipes.from_dict(meta["config"])
        config = recipes.with_changes(config, {place: value}) if place[0] in "fh" else replace(config, **{place: value})
        checkpoint.save(tmp_path / f"{place}.safetensors", tensors, {"config": recipes.to_dict(config)})
    done = subprocess.run([sys.executable, "-c", ASK, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, *_ = done.stdout.splitlines()
    assert "(body_0 is float32 (150,), and float32 (453070848,) here): train it anew" in first
    assert "(optimizer.bias is float32 (4,), and float32 (4096,) here): train it anew" in second


def test_tensors_of_another_type_are_refused(path):
    tensors, meta = content()
    checkpoint.save(path, tensors | {"method.body_0": tensors["method.body_0"].double()}, meta)
    with pytest.raises(UserError, match=r"\(body_0 is float64 .*, and float32 .* here\): train it anew$"):
        checkpoint.load_method(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"meta_val": "high"}, "Expected `float | null`, got `str` - at `$.meta_val`"),
        ({"episode": -1}, "Expected `int` >= 0 - at `$.episode`"),
        ({"calibration": [5]}, "Expected `object`, got `int` - at `$.calibration[0]`"),
        ({"calibration": [{"n_way": 2}]}, "Object missing required field `n_shot` - at `$.calibration[0]`"),
        (
            {"calibration": [{"n_way": 2, "n_shot": 1, "temperature": 0.0, "threshold": 0.5}]},
            "Expected `float` > 0.0 - at `$.calibration[0].temperature`",
        ),
    ],
    ids=str,
)
def test_other_values_of_a_checkpoint_are_checked_too(path, changes, said):
    tensors, meta = content()
    checkpoint.save(path, tensors, meta | changes)
    with pytest.raises(UserError) as error:
        checkpoint.load_method(path)
    assert str(error.value) == f"{path} {UNFIT} ({said}): train it anew"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_neither_written_nor_read(tmp_path, path, value):
    tensors, meta = content()
    name = "method.optimizer.bias"
    odd = tensors | {name: torch.full_like(tensors[name], value)}
    with pytest.raises(UserError) as error:
        checkpoint.save(tmp_path / "new.safetensors", odd, meta)
    assert str(error.value) == (
        f"{tmp_path / 'new.safetensors'} is not written ({name} has numbers that are not finite): "
        "what was learned has diverged, so lower --lr"
    )
    assert not (tmp_path / "new.safetensors").exists()
    with pytest.raises(UserError, match=r"is not written \(Out of range float values .*\): what was learned"):
        checkpoint.save(tmp_path / "new.safetensors", tensors, meta | {"meta_val": value})
    path.write_bytes(serialize(odd, metadata={"metalstm": json.dumps(meta)}))
    with pytest.raises(UserError) as error:
        checkpoint.load(path)
    assert str(error.value) == f"{path} {DAMAGED} ({name} has numbers that are not finite): get or train it anew"
    for text in (json.dumps(meta | {"meta_val": value}), json.dumps(meta | {"meta_val": 1.5}).replace("1.5", "1e999")):
        path.write_bytes(serialize(tensors, metadata={"metalstm": text}))
        with pytest.raises(UserError, match=rf"^{path} {DAMAGED} \(Out of range float values"):
            checkpoint.load_method(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=rf"^{tmp_path / 'pipe'} {DAMAGED} \(it is not a file\)"):
        checkpoint.load_method(tmp_path / "pipe")


def test_a_learner_that_needs_its_numbers_to_be_built_is_compared_afterwards(tmp_path, monkeypatch):
    """The meta device has none."""

    class Own(Conv4):
        def __init__(self, *args: Any):
            super().__init__(*args)
            torch.linspace(0, 1, 3).tolist()

    monkeypatch.setitem(LEARNERS, "conv4", Own)
    tensors, meta = content()
    checkpoint.save(tmp_path / "own", tensors, meta)
    assert isinstance(checkpoint.load_method(tmp_path / "own")[0].get_submodule("learner"), Own)
    checkpoint.save(tmp_path / "own", {name: each for name, each in tensors.items() if "body_0" not in name}, meta)
    with pytest.raises(UserError, match=UNFIT):
        checkpoint.load_method(tmp_path / "own")


# Nothing is executed.


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_pickle_in_disguise_is_not_opened(tmp_path):
    sprung = tmp_path / "sprung"
    for name, write in (
        ("plain", lambda path: path.write_bytes(pickle.dumps(Trap(sprung)))),
        ("torch", lambda path: torch.save({"method.body_0": Trap(sprung)}, path)),
    ):
        path = tmp_path / f"{name}.safetensors"
        write(path)
        with pytest.raises(UserError, match=DAMAGED):
            checkpoint.load_method(path)
        assert not sprung.exists()
    pickle.loads((tmp_path / "plain.safetensors").read_bytes())
    assert sprung.exists()  # so the trap does work


EXECUTING = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "copyreg", "yaml"}
# (file, name) of what may stay: a find_class that allows NumPy arrays only, and shapes that are written in the package.
ALLOWED = {
    *(("cifar.py", f"pickle{name}") for name in ("", "._Unpickler", ".BYTEARRAY8", ".UnpicklingError")),
    ("reading.py", "pickle"),
    ("reading.py", "pickle.UnpicklingError"),
    ("calls.py", "eval"),
}


def executing(path: Path) -> set[tuple[str, str]]:
    """Imports, calls and arguments in a source file by which data could run code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import(names=names):
                found |= {name.name for name in names if name.name.split(".")[0] in EXECUTING}
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in EXECUTING:
                found.add(module)
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in EXECUTING:
                found.add(f"{name}.{attribute}")
            case ast.Attribute(value=ast.Name(id="torch"), attr="load"):
                found.add("torch.load")
            case ast.Call(func=ast.Name(id="eval" | "exec" | "compile" | "__import__" as name)):
                found.add(name)
            case ast.keyword(arg="allow_pickle", value=value) if not (
                isinstance(value, ast.Constant) and value.value is False
            ):
                found.add("allow_pickle")
            case ast.keyword(arg="weights_only"):
                found.add("weights_only")
    return {(path.name, name) for name in found}


def test_no_source_file_reads_what_could_run_code():
    files = sorted(SOURCE.rglob("*.py"))
    assert SOURCE / "checkpoint.py" in files
    assert set().union(*map(executing, files)) <= ALLOWED


def test_the_search_for_such_reading_finds_it(tmp_path):
    (tmp_path / "bad.py").write_text(
        "import pickle, torch, numpy as np\nfrom joblib import load\n"
        "pickle.load(f)\ntorch.load(f)\nnp.load(f, allow_pickle=True)\neval('1')\n"
    )
    assert {name for _, name in executing(tmp_path / "bad.py")} == {
        "pickle", "joblib", "pickle.load", "torch.load", "allow_pickle", "eval",
    }  # fmt: skip
