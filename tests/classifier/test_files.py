import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers import SIZE
from metalstm import checkpoint
from metalstm.classifier import Classifier
from metalstm.errors import UserError
from metalstm.methods import METHODS


@pytest.fixture
def fitted(make, patterns, tmp_path):
    """The file of a classifier."""
    path = tmp_path / "fitted.safetensors"
    Classifier(make()).fit(patterns.support, patterns.labels).save(path)
    return path


def refusal(path) -> str:
    with pytest.raises(UserError) as error:
        Classifier.load(path)
    return str(error.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_file_gives_the_same_classifier(make, patterns, tmp_path, method):
    support, labels, query, _ = patterns
    fitted = Classifier(make(method)).fit(support, labels)
    fitted.save(tmp_path / "fitted.safetensors")
    again = Classifier.load(tmp_path / "fitted.safetensors")
    assert (again.predict_proba(query) == fitted.predict_proba(query)).all(), "to the bit"
    assert again.meta == fitted.meta
    assert again.classes_.tolist() == fitted.classes_.tolist()
    again.save(tmp_path / "again.safetensors")
    assert (Classifier.load(tmp_path / "again.safetensors").predict_proba(query) == fitted.predict_proba(query)).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_file_holds_what_is_needed_and_no_more(make, patterns, tmp_path, method):
    fitted = Classifier(make(method)).fit(patterns.support, patterns.labels)
    fitted.save(tmp_path / "fitted.safetensors")
    names = {f"method.{name}" for name in fitted.method.state_dict().keys() - fitted.method.spent()}
    names |= {f"adapted.{name}" for name in fitted.network.adapted}
    assert load_file(tmp_path / "fitted.safetensors").keys() == names
    if method == "meta-lstm":
        assert names == {"adapted.theta", "adapted.moments"}


@pytest.mark.parametrize("method", METHODS)
def test_no_tensor_may_be_missing(make, patterns, tmp_path, method):
    """A missing one would otherwise be random, or be done without."""
    changes = {"query_scale": 10.0} if method == "meta-lstm" else {}
    path = tmp_path / "fitted.safetensors"
    Classifier(make(method, **changes)).fit(patterns.support, patterns.labels).save(path)
    tensors, meta = checkpoint.load(path)
    assert method != "meta-lstm" or "method.log_scale" in tensors
    for name in tensors:
        rest = {other: tensor for other, tensor in tensors.items() if other != name}
        checkpoint.save(tmp_path / "less.safetensors", rest, meta)
        assert refusal(tmp_path / "less.safetensors") == (
            f"{tmp_path / 'less.safetensors'} does not fit this version of metalstm "
            f"('{name.partition('.')[2]}' is missing): adapt it anew"
        )


def test_a_file_records_all_that_it_was_made_of(make, meta_sets, patterns, tmp_path):
    path = make(calibrated=True)
    Classifier(path, seed=3).fit(patterns.support, patterns.labels).save(tmp_path / "fitted.safetensors")
    meta = Classifier.load(tmp_path / "fitted.safetensors").meta
    assert meta == {
        "checkpoint": str(path),
        "checkpoint_sha256": checkpoint.sha256(path),
        "config": checkpoint.load(path)[1]["config"],
        "meta_val": 55.5,
        "classes": ["class 09", "class 10", "class 11"],
        "images": [5, 3, 1],
        "seed": 3,
        "preprocessing": {"image_size": SIZE, "channels": 3, "drawing": False, "centered": False, "framing": "crop"},
        "calibration": {"n_way": 2, "n_shot": 5, "temperature": 2.0, "least": 0.6, "auroc": 0.9, "threshold": 0.6},
    }
    assert meta["config"]["licence"] == meta_sets.licence


@pytest.mark.parametrize("framing", [None, "crop", "letterbox", "squeeze"])
def test_the_framing_is_kept(make, patterns, tmp_path, framing):
    """Files of older versions have none, and mean the usual one."""
    path, wide = tmp_path / "fitted.safetensors", [np.repeat(image, 3, 1) for image in patterns.query]
    fitted = Classifier(make(), framing=framing).fit(patterns.support, patterns.labels)
    fitted.save(path)
    tensors, meta = checkpoint.load(path)
    assert meta["preprocessing"]["framing"] == (framing or "crop")
    if framing is None:
        del meta["preprocessing"]["framing"]
        checkpoint.save(path, tensors, meta)
    again = Classifier.load(path)
    assert again.preprocessing == fitted.preprocessing
    assert again.framing == (framing or "crop")
    assert (again.predict_proba(wide) == fitted.predict_proba(wide)).all()


def test_files_that_are_no_classifier(make, fitted, tmp_path):
    path = make()
    assert refusal(path) == (
        f"{path} is a meta-learner, not a classifier: metalstm adapt makes one, with --checkpoint {path}"
    )
    assert refusal(tmp_path) == f"{tmp_path} is a folder: give a file that metalstm adapt has written"
    assert refusal(tmp_path / "x") == f"no checkpoint at {tmp_path / 'x'}"
    assert refusal("x" * 300) == f"cannot read {'x' * 300} (File name too long): check its name and permissions"
    (tmp_path / "text.safetensors").write_text("no")
    assert "text.safetensors is damaged or not a checkpoint of metalstm" in refusal(tmp_path / "text.safetensors")
    with pytest.raises(UserError) as error:
        checkpoint.load_method(fitted)
    assert str(error.value) == f"{fitted} is a classifier, not a meta-learner: metalstm predict takes it"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"classes": ["a", "b"]}, "theta is no vector of "),
        ({"classes": "abc"}, "--classes abc: must be"),
        ({"seed": "x"}, "--seed x: must be a whole number"),
        ({"config": {}}, "RunConfig lacks data"),
        (
            {"preprocessing": {"image_size": 0, "channels": 3, "drawing": False}},
            "images of 3x0x0 for a learner of 3x16x16",
        ),
        (
            {"preprocessing": {"image_size": 10**6, "channels": 3, "drawing": False}},
            "images of 3x1000000x1000000 for a ",
        ),
        ({"preprocessing": {"size": 16}}, "Preprocessing does not know size"),
        (
            {"preprocessing": {"image_size": 16, "channels": 3, "drawing": False, "framing": "zoom"}},
            "--framing zoom: must be one of crop, letterbox, squeeze",
        ),
        ({"calibration": {"threshold": 0.5}}, "Object missing required field `n_way`"),
        ({"classes": ["a", "b", 3]}, "labels of different types, numbers and text"),
        ({"images": [1, -1, 1]}, "--images [1, -1, 1]: must be"),
        ({"seed": -1}, "--seed -1: must be at least 0"),
        ({"more": 1}, "ClassifierFile does not know more"),
    ],
)
def test_values_that_do_not_fit(fitted, tmp_path, changes, reason):
    tensors, meta = checkpoint.load(fitted)
    checkpoint.save(tmp_path / "other.safetensors", tensors, meta | changes)
    message = refusal(tmp_path / "other.safetensors")
    assert message.startswith(f"{tmp_path / 'other.safetensors'} does not fit this version of metalstm ({reason}")
    assert message.endswith("): adapt it anew")
    assert "\n" not in message


@pytest.mark.parametrize("name", ["checkpoint", "config", "classes", "seed", "preprocessing", "calibration", "adapted"])
def test_values_that_are_missing(fitted, tmp_path, name):
    tensors, meta = checkpoint.load(fitted)
    checkpoint.save(tmp_path / "less.safetensors", tensors, {key: meta[key] for key in meta if key != name})
    message = refusal(tmp_path / "less.safetensors")
    if name == "classes":
        assert "is a meta-learner, not a classifier" in message
    else:
        assert "does not fit this version of metalstm" in message
        assert name in message


def test_tensors_that_do_not_fit(fitted, tmp_path):
    tensors, meta = checkpoint.load(fitted)
    for change in ({"adapted.theta": torch.zeros(3)}, {"method.foreign": torch.zeros(3)}):
        checkpoint.save(tmp_path / "other.safetensors", tensors | change, meta)
        assert refusal(tmp_path / "other.safetensors").endswith("): adapt it anew")


@pytest.mark.parametrize(
    ("method", "changes", "reason"),
    [
        ("meta-lstm", {"adapted.theta": torch.zeros(10**6)}, "theta is no vector of "),
        ("meta-lstm", {"adapted.moments": torch.zeros(2, 4)}, "moments is no vector of 32 numbers"),
        ("pixels", {"adapted.n_way": torch.tensor(10**12)}, "n_way is 1000000000000, but there are 3 classes"),
        ("matching-net", {"adapted.n_way": torch.tensor(10**12)}, "n_way is 1000000000000, but there are 3 classes"),
        ("matching-net", {"adapted.n_way": torch.tensor([3, 3])}, "n_way is [3, 3], but there are 3 classes"),
        ("pretrained", {"adapted.y": torch.full((15,), 3)}, "y are no labels of 3 classes"),
        ("pretrained", {"adapted.y": torch.zeros(15)}, "y are no labels of 3 classes"),
        ("pixels", {"adapted.y": torch.zeros(14, dtype=torch.int64)}, "x and y are of different lengths"),
        ("pretrained", {"adapted.features": torch.zeros(15, 5)}, "features are not those of the learner"),
    ],
)
def test_what_was_adapted_is_checked_before_anything_is_computed(make, patterns, tmp_path, method, changes, reason):
    """10^12 classes would be a loop without end."""
    Classifier(make(method)).fit(patterns.support, patterns.labels).save(tmp_path / "fitted.safetensors")
    tensors, meta = checkpoint.load(tmp_path / "fitted.safetensors")
    checkpoint.save(tmp_path / "other.safetensors", tensors | changes, meta)
    message = refusal(tmp_path / "other.safetensors")
    assert f"other.safetensors does not fit this version of metalstm ({reason}" in message


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("meta-lstm", {"learner_settings.filters": 4096}),
        ("pretrained", {"n_classes": 10**6, "training.rotations": True}),
        ("meta-lstm", {"n_way": 10**6, "settings.shared_head": False}),
    ],
)
def test_what_a_file_lacks_is_not_made_however_large(make, patterns, tmp_path, method, changes):
    """The file of a classifier lacks what adapting alone needs: it was gigabytes that its settings could ask for."""
    path = make(method, filters=64)
    Classifier(path).fit(patterns.support, patterns.labels).save(tmp_path / "fitted.safetensors")
    tensors, meta = checkpoint.load(tmp_path / "fitted.safetensors")
    for place, value in changes.items():
        *outer, name = place.split(".")
        part = meta["config"][outer[0]] if outer else meta["config"]
        part[name] = value
    checkpoint.save(tmp_path / "other.safetensors", tensors, meta)
    assert "other.safetensors does not fit this version of metalstm (" in refusal(tmp_path / "other.safetensors")


def test_probabilities_that_are_not_finite_are_refused(fitted, tmp_path, patterns):
    tensors, meta = checkpoint.load(fitted)
    theta = torch.full_like(tensors["adapted.theta"], 3e38)
    checkpoint.save(tmp_path / "other.safetensors", tensors | {"adapted.theta": theta}, meta)
    assert "(the classifier's probabilities are not finite: adapt anew" in refusal(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"is not written \(adapted.theta has numbers that are not finite\)"):
        checkpoint.save(tmp_path / "other.safetensors", tensors | {"adapted.theta": theta * 10}, meta)


def test_a_device_that_is_not_there_is_named(fitted):
    with pytest.raises(UserError, match=r"^--device xx: not usable here \(.*\): pass --device cpu$"):
        Classifier.load(fitted, device="xx")
