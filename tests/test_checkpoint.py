import ast
import errno
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as serialize
from safetensors.torch import save_file

import helpers
import metalstm
from metalstm import checkpoint
from metalstm.errors import UserError
from metalstm.methods import build
from metalstm.recipes import MetaLSTMSettings, RunConfig, TrainingSettings

SOURCE = Path(metalstm.__file__).parent
DAMAGED = "is damaged or not a checkpoint of metalstm"
UNFIT = "does not fit this version of metalstm"


def content() -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and plain values of a checkpoint, small enough to try every byte."""
    config = RunConfig(MetaLSTMSettings(filters=2, hidden_size=1), TrainingSettings(), image_shape=(1, 16, 16), n_way=2)
    tensors = {f"method.{name}": tensor for name, tensor in build(config).state_dict().items()}
    return tensors, {"config": config.to_dict(), "meta_val": 50.0, "episode": 7}


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


@pytest.fixture
def no_room():
    """Files may not grow above 1,000 bytes, which is told as a full disk is."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Writing.


def test_write_replaces_a_file_and_makes_its_folder(tmp_path):
    target = tmp_path / "new" / "folder" / "file"
    for text in (b"first", b"second, longer", b"3"):
        checkpoint.write(target, text)
        assert target.read_bytes() == text
    assert os.listdir(target.parent) == ["file"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, no_room):
    target = tmp_path / "file"
    checkpoint.write(target, b"old")
    with pytest.raises(UserError) as error:
        checkpoint.write(target, b"x" * 1001)
    assert str(error.value) == (
        f"cannot write {target} (1,001 bytes): {os.strerror(errno.EFBIG)}: free some space or choose another folder"
    )
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_write_follows_a_link_and_fills_a_pipe_instead_of_replacing_them(tmp_path):
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(target)
    checkpoint.write(link, b"content")
    assert link.is_symlink()
    assert target.read_bytes() == b"content"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
    checkpoint.write(pipe, b"content")
    assert reader.communicate(timeout=20)[0] == b"content"
    assert pipe.is_fifo()


def test_a_place_that_cannot_be_written_to_is_told_by_its_name(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for target, reason in (
        (tmp_path / "file" / "below", errno.ENOTDIR),
        (tmp_path / "file" / "below" / "deeper", errno.ENOTDIR),
        (tmp_path / "folder", errno.EISDIR),
    ):
        with pytest.raises(UserError) as error:
            checkpoint.write(target, b"x")
        assert str(error.value).startswith(f"cannot write {target} (1 bytes): ")
        assert any(os.strerror(code) in str(error.value) for code in (reason, errno.EEXIST))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


# Reading what was written.


def test_tensors_come_back_with_every_bit(tmp_path):
    tensors = {
        "special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
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


def test_a_method_comes_back_with_configuration_and_weights(path):
    tensors, meta = content()
    method, config, meta_again = checkpoint.load_method(path)
    assert (config.to_dict(), meta_again) == (meta["config"], meta)
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
def test_what_is_not_there_is_told_in_whole_sentences(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=name) as error:
        checkpoint.load_method(name)
    assert not str(error.value).rstrip().endswith((":", "of", "or")), "a list of nothing ends the line"


def test_a_folder_without_a_best_checkpoint_is_no_run(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path} holds no best.safetensors: "):
        checkpoint.load_method(tmp_path)


@pytest.mark.parametrize("name", sorted(checkpoint.shipped()))
def test_shipped_checkpoints_load_and_are_named_for_what_they_hold(name):
    _, config, _ = checkpoint.load_method(name)
    suffix = "-paper" if config.recipe == "paper" else ""
    assert name == f"{config.method}-{config.data}-{config.n_way}w{config.n_shot}s{suffix}"


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


@pytest.mark.parametrize(
    "meta",
    [
        5,
        ["config"],
        {},
        {"config": None},
        {"config": []},
        {"config": {"settings": {}}},
        {"config": {"settings": {}, "training": {}, "image_shape": 16}},
        {"config": {"settings": {}, "training": {}, "image_shape": [16]}},
        {"config": {"settings": {}, "training": {}, "image_shape": [1, 8, 8]}},
        {"config": {"settings": {}, "training": {}, "image_shape": ["1", "16", "16"]}},
        {"config": {"settings": {"filters": "many"}, "training": {}, "image_shape": [1, 16, 16]}},
        {"config": {"settings": {"filters": -1}, "training": {}, "image_shape": [1, 16, 16]}},
        {"config": {"settings": {"epochs": 0}, "training": {}, "image_shape": [1, 16, 16]}},
        {"config": {"settings": {"order": 7}, "training": {}, "image_shape": [1, 16, 16]}},
        {"config": {"settings": {"query_norm": "foo"}, "training": {}, "image_shape": [1, 16, 16]}},
        {"config": {"settings": {"norm_momentum": "x"}, "training": {}, "image_shape": [1, 16, 16]}},
        {"config": {"settings": {}, "training": {"lr": -1}, "image_shape": [1, 16, 16]}},
        {"config": {"settings": {"forget_bias": [1]}, "training": {}, "image_shape": [1, 16, 16]}},
        {"config": {"method": "of the future", "settings": {}, "training": {}, "image_shape": [1, 16, 16]}},
        {"config": {"settings": {"of the future": 1}, "training": {}, "image_shape": [1, 16, 16]}},
        {"config": {"settings": {}, "training": {}, "image_shape": [1, 16, 16], "of the future": 1}},
    ],
    ids=json.dumps,
)
def test_values_that_do_not_fit_are_refused_in_one_line(commands, path, meta):
    path.write_bytes(serialize(content()[0], metadata={"metalstm": json.dumps(meta)}))
    message = commands.refusal("evaluate", path)
    assert message.startswith(f"{path} {UNFIT} (")
    assert message.endswith("): train it anew")
    assert " ()" not in message
    if "of the future" in json.dumps(meta):
        assert "of the future" in message


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
# (file, name) of what may stay: a find_class that allows NumPy arrays only.
ALLOWED = {("datasets.py", "pickle"), ("datasets.py", "pickle.Unpickler"), ("datasets.py", "pickle.UnpicklingError")}


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
