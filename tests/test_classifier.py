import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

import helpers
import metalstm
from helpers import SIZE
from metalstm import checkpoint, classifier, datasets
from metalstm.classifier import Classifier, nearest_shipped
from metalstm.episodes import EpisodeSampler
from metalstm.errors import UserError
from metalstm.evaluation import evaluate
from metalstm.methods import build

STROKES = {"one": [(30, 8), (30, 52)], "ell": [(15, 8), (15, 50), (45, 50)], "vee": [(8, 8), (30, 50), (52, 8)]}


def drawings(n: int, seed: int = 0, ink="black", paper="white") -> tuple[list[Image.Image], list[str]]:
    """`n` of each of three symbols, drawn with a shaking hand."""
    rng, images, labels = np.random.RandomState(seed), [], []
    for label, stroke in STROKES.items():
        for _ in range(n):
            image = Image.new("RGB", (60, 60), paper)
            shaken = [(x + rng.randint(-4, 5), y + rng.randint(-4, 5)) for x, y in stroke]
            ImageDraw.Draw(image).line(shaken, fill=ink, width=3)
            images.append(image)
            labels.append(label)
    return images, labels


@pytest.fixture(scope="module")
def meta_sets(tmp_path_factory) -> datasets.MetaSets:
    return helpers.load_folder(helpers.make_folder(tmp_path_factory.mktemp("images") / "patterns"))


@pytest.fixture(scope="module")
def make(meta_sets, tmp_path_factory):
    """Writes a checkpoint of a method that was not trained, and gives its path."""

    def make(method: str = "meta-lstm", calibrated: bool = False, **settings) -> Path:
        if method == "meta-lstm":
            config = helpers.tiny_config(meta_sets, {"shared_head": True, **settings})
        else:
            config = helpers.method_config(method, meta_sets)
        made = build(config)
        meta = {"config": config.to_dict(), "meta_val": 55.5}
        if calibrated:
            entry = {"n_way": 2, "n_shot": 1, "temperature": 2.0, "threshold": 0.6}
            meta["calibration"] = [entry, entry | {"n_way": 5, "temperature": 3.0}, entry | {"n_shot": 5}]
        path = tmp_path_factory.mktemp("checkpoints") / f"{method}.safetensors"
        checkpoint.save(path, {f"method.{name}": tensor for name, tensor in made.state_dict().items()}, meta)
        return path

    return make


@pytest.fixture(scope="module")
def patterns(meta_sets):
    """Images of three classes: a support set with five, three and one of each, and others with their labels."""
    images = meta_sets.splits["meta-test"]
    support, labels, query, query_labels = [], [], [], []
    for name, (start, stop), n in zip(images.classes, images.spans, (5, 3, 1), strict=True):
        support += list(images.images[start : start + n])
        labels += [name] * n
        query += list(images.images[start + 5 : stop])
        query_labels += [name] * 3
    return support, labels, query, query_labels


# Learning


def test_drawings_are_learned_from_whatever_their_polarity():
    assert metalstm.Classifier is Classifier
    images, labels = drawings(5)
    made = Classifier().fit(images, labels)
    assert made.checkpoint_ == "meta-lstm-omniglot-5w5s"
    assert made.classes_.tolist() == ["ell", "one", "vee"]
    others, answers = drawings(5, seed=1)
    assert made.score(others, answers) > 0.9
    light_on_dark, _ = drawings(5, seed=1, ink="white", paper="black")
    assert np.abs(made.predict_proba(others) - made.predict_proba(light_on_dark)).max() < 1e-4
    assert Classifier().fit(*drawings(1)).checkpoint_ == "meta-lstm-omniglot-5w1s"


def test_the_nearest_shipped_checkpoint_is_that_of_the_kind_and_the_ratio_of_shots(monkeypatch, tmp_path):
    found = {}
    for data, n_shot in (("omniglot", 1), ("omniglot", 5), ("cifar-fs", 1), ("cifar-fs", 5)):
        found[f"{data}-{n_shot}"] = tmp_path / f"{data}-{n_shot}"
        checkpoint.save(found[f"{data}-{n_shot}"], {}, {"config": {"data": data, "n_shot": n_shot}})
    monkeypatch.setattr(checkpoint, "shipped", lambda: found)
    assert [nearest_shipped(True, n) for n in (1.0, 2.0, 3.0, 50.0)] == ["omniglot-1"] * 2 + ["omniglot-5"] * 2
    assert [nearest_shipped(False, n) for n in (1.5, 2.5)] == ["cifar-fs-1", "cifar-fs-5"]


def test_probabilities_are_those_of_the_method_by_the_protocol(make, meta_sets, patterns):
    """The support set of an episode, given as images, gives the network that `evaluate` tests."""
    sampler = EpisodeSampler(meta_sets.splits["meta-test"], 3, 2, 3)
    path = make(batch_size=25)
    method, _, _ = checkpoint.load_method(path)
    episode = sampler[0]
    pixels = (episode.support.x[0] * 255).round().byte()
    made = Classifier(path)
    made.fit(pixels, episode.support.y[0].numpy())
    # Sorted by class and shuffled anew, the order is another one; a mini-batch holds all, so that it is of no account.
    expected = method.logits(method.adapt(episode.support), episode.query.x)[0].softmax(-1)
    got = made.predict_proba((episode.query.x[0] * 255).round().byte())
    torch.testing.assert_close(torch.from_numpy(got), expected.detach(), atol=1e-4, rtol=1e-4)
    assert evaluate(method, sampler, 1).mean == pytest.approx(100 * made.score(
        (episode.query.x[0] * 255).round().byte(), episode.query.y[0].numpy()
    ))  # fmt: skip


@pytest.mark.parametrize("method", ["meta-lstm", "matching-net", "matching-net-fce", "pretrained"])
def test_unequal_shots_of_any_method_and_a_file_of_it(make, patterns, tmp_path, method):
    support, labels, query, query_labels = patterns
    made = Classifier(make(method)).fit(support, labels)
    probabilities = made.predict_proba(query)
    assert probabilities.shape == (9, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert made.predict(query).tolist() == made.classes_[probabilities.argmax(1)].tolist()
    assert made.score(query, query_labels) == np.mean(made.predict(query) == np.array(query_labels))
    made.save(tmp_path / "made.safetensors")
    again = Classifier.load(tmp_path / "made.safetensors")
    assert (again.predict_proba(query) == probabilities).all(), "to the bit"
    assert again.meta == made.meta
    assert again.classes_.tolist() == made.classes_.tolist()
    assert not [name for name in load_file(tmp_path / "made.safetensors") if "optimizer" in name or "_0" in name]


def test_smaller_classes_are_repeated(make, patterns, monkeypatch):
    support, labels, *_ = patterns
    seen = []
    monkeypatch.setattr(
        classifier, "Support", lambda x, y, n_way: seen.append((x, y)) or metalstm.episodes.Support(x, y, n_way)
    )
    Classifier(make()).fit(support, labels)
    (x, y), *_ = seen
    assert y.bincount().tolist() == [5, 5, 5]
    assert len(x[y == 1].unique(dim=0)) == 3
    assert len(x[y == 2].unique(dim=0)) == 1
    assert y.tolist() != sorted(y.tolist()), "shuffled"


def test_steps_are_those_of_fit(make, patterns):
    support, labels, query, _ = patterns
    made = Classifier(make(epochs=3, batch_size=8))
    steps = list(made.steps(support, labels))
    assert [(step.number, step.of) for step in steps] == [(k, 6) for k in range(1, 7)]
    assert all(0 <= step.accuracy <= 1 and step.loss > 0 for step in steps)
    layers = ["conv1", "conv2", "conv3", "conv4", "head"]
    for step in steps:
        assert list(step.forget) == list(step.rate) == layers
        assert all(0 < gate < 1 for gate in (*step.forget.values(), *step.rate.values()))
    assert (made.predict_proba(query) == Classifier(made.checkpoint).fit(support, labels).predict_proba(query)).all()
    assert list(Classifier(make("matching-net")).steps(support, labels)) == [], "it has no inner loop"


def test_the_estimate_is_cross_validated(make, patterns):
    support, labels, *_ = patterns
    with pytest.raises(UserError) as error:
        Classifier(make()).estimate(support, labels)
    assert str(error.value) == "an estimate of the accuracy needs 2 images per class, but class 11 has 1"
    images, symbols = drawings(3)
    estimate = Classifier().estimate(images, symbols)
    assert (estimate.images, estimate.folds) == (9, 3)
    assert estimate.right >= 7
    low, high = classifier.Estimate(8, 10, 5).interval
    assert (low, high) == pytest.approx((49.0, 94.3), abs=0.1)  # Wilson's, for 8 of 10
    assert str(classifier.Estimate(8, 10, 5)) == (
        "80 % (95 % interval 49 to 94 %), by 5-fold cross-validation on 10 images"
    )


# What a file records, and what is refused.


def test_a_file_records_all_that_it_was_made_of(make, meta_sets, patterns, tmp_path):
    support, labels, *_ = patterns
    path = make(calibrated=True)
    Classifier(path, seed=3).fit(support, labels).save(tmp_path / "made.safetensors")
    meta = Classifier.load(tmp_path / "made.safetensors").meta
    assert meta == {
        "checkpoint": str(path),
        "checkpoint_sha256": checkpoint.sha256(path),
        "config": checkpoint.load(path)[1]["config"],
        "meta_val": 55.5,
        "classes": ["class 09", "class 10", "class 11"],
        "images": [5, 3, 1],
        "seed": 3,
        "preprocessing": {"image_size": SIZE, "channels": 3, "drawing": False},
        "calibration": {"n_way": 2, "n_shot": 5, "temperature": 2.0, "threshold": 0.6},
    }
    assert meta["config"]["licence"] == meta_sets.licence


def test_temperature_and_threshold_are_those_of_the_calibration(make, patterns):
    support, labels, query, _ = patterns
    path = make(calibrated=True)
    made = Classifier(path).fit(support, labels)
    tensors, meta = checkpoint.load(path)
    checkpoint.save(path.with_name("plain.safetensors"), tensors, {"config": meta["config"]})
    plain = Classifier(path.with_name("plain.safetensors")).fit(support, labels)
    expected = torch.from_numpy(plain.predict_proba(query)).log().div(2).softmax(-1)
    torch.testing.assert_close(torch.from_numpy(made.predict_proba(query)), expected)
    assert made.known(query).tolist() == (expected.amax(-1) >= 0.6).tolist()
    with pytest.raises(UserError) as error:
        plain.known(query)
    assert str(error.value) == (
        f"{path.with_name('plain.safetensors')} has no calibration, so that what it made cannot tell 'none of these': "
        f"adapt with a shipped checkpoint: {', '.join(checkpoint.shipped())}"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y[:-1]), "9 images, but labels of shape (8,): give one label for each image"),
        (lambda x, y: (x, ["a"] * 9), "1 class: give 2 to 20"),
        (lambda x, y: (x * 3, list(range(27))), "27 classes: give 2 to 20"),
        (lambda x, y: ([], []), "0 classes: give 2 to 20"),
        (lambda x, y: (x[0], y[:1]), "one image where several are asked for: give a list, [image]"),
        (lambda x, y: ("a.jpg", ["a"]), "one image where several are asked for: give a list, [image]"),
        (
            lambda x, y: ([*x[:4], "p", "q", "r", "s", np.zeros((2, 2))[None]], y),
            "cannot read p as an image (No such file or directory): check its name and permissions; "
            "cannot read q as an image (No such file or directory): check its name and permissions; "
            "cannot read r as an image (No such file or directory): check its name and permissions; and 2 more",
        ),
    ],
)
def test_what_cannot_be_learned_from(make, patterns, change, message):
    support, labels, *_ = patterns
    with pytest.raises(UserError) as error:
        Classifier(make()).fit(*change(support, labels))
    assert str(error.value) == message


def test_an_unshared_head_serves_its_own_number_of_classes(make, patterns):
    support, labels, *_ = patterns
    with pytest.raises(UserError) as error:
        Classifier(make(shared_head=False)).fit(support, labels)
    assert str(error.value) == "this method was meta-trained for 2 classes and serves no other number: got 3"
    assert Classifier(make(shared_head=False)).fit(support[:8], labels[:8]).classes_.tolist() == [
        "class 09",
        "class 10",
    ]


def test_files_that_are_no_classifier(make, patterns, tmp_path):
    path, made = make(), tmp_path / "made.safetensors"
    Classifier(path).fit(*patterns[:2]).save(made)
    tensors, meta = checkpoint.load(made)
    checkpoint.save(tmp_path / "short.safetensors", tensors, meta | {"classes": ["a", "b"]})
    checkpoint.save(tmp_path / "other.safetensors", tensors, meta | {"config": {}})
    (tmp_path / "text.safetensors").write_text("no")
    for file, message in [
        (path, f"{path} is a meta-learner, not a classifier: metalstm adapt makes one, with --checkpoint {path}"),
        (tmp_path, f"{tmp_path} is a folder: give a file that metalstm adapt has written"),
        (tmp_path / "x", f"no checkpoint at {tmp_path / 'x'}"),
        (
            tmp_path / "short.safetensors",
            f"{tmp_path / 'short.safetensors'} does not fit this version of metalstm (3 outputs for 2 classes): adapt "
            "it anew",
        ),
        (
            tmp_path / "other.safetensors",
            f"{tmp_path / 'other.safetensors'} does not fit this version of metalstm ('settings'): adapt it anew",
        ),
    ]:
        with pytest.raises(UserError) as error:
            Classifier.load(file)
        assert str(error.value) == message
    with pytest.raises(UserError, match=r"text\.safetensors is damaged or not a checkpoint of metalstm"):
        Classifier.load(tmp_path / "text.safetensors")
    with pytest.raises(UserError) as error:
        checkpoint.load_method(made)
    assert str(error.value) == (
        f"{made} is a classifier, which has learned, and no meta-learner: metalstm predict takes it"
    )


# scikit-learn


def test_scikit_learn_takes_it_for_one_of_its_own(make, patterns):
    from sklearn.base import clone, is_classifier
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import Pipeline
    from sklearn.utils.validation import check_is_fitted

    images, labels = drawings(3)
    one = Classifier("meta-lstm-omniglot-5w1s", seed=2)
    assert repr(one) == "Classifier(checkpoint='meta-lstm-omniglot-5w1s', seed=2, device='cpu')"
    copy: Any = clone(one)
    assert copy is not one
    assert copy.get_params() == one.get_params() == {"checkpoint": one.checkpoint, "seed": 2, "device": "cpu"}
    assert is_classifier(one)
    with pytest.raises(Exception, match="not fitted"):
        check_is_fitted(one)
    scores = cross_val_score(one, images, labels, cv=3)
    assert scores.shape == (3,)
    assert scores.mean() > 0.6
    arrays = np.stack([np.asarray(image) for image in images])
    assert (cross_val_score(one, arrays, labels, cv=3) == scores).all()
    pipeline = Pipeline([("as they are", "passthrough"), ("classify", one)])
    pipeline.set_params(classify__seed=5)
    assert pipeline.fit(images, labels).predict(images).tolist() == labels
    assert one.seed == 5
    check_is_fitted(one)
    search = GridSearchCV(Classifier(), {"checkpoint": ["meta-lstm-omniglot-5w1s"]}, cv=2).fit(arrays, labels)
    assert search.best_estimator_.score(images, labels) > 0.6
    with pytest.raises(UserError) as error:
        one.set_params(sede=1)
    assert str(error.value) == ("unknown parameter 'sede', did you mean 'seed'? allowed: checkpoint, device, seed")


def test_labels_may_be_numbers_and_a_classifier_be_pickled(make, patterns, tmp_path):
    support, labels, query, _ = patterns
    numbers = [int(label[-2:]) for label in labels]
    made = Classifier(make()).fit(support, numbers)
    assert set(made.predict(query).tolist()) <= {9, 10, 11}
    made.save(tmp_path / "made.safetensors")
    assert Classifier.load(tmp_path / "made.safetensors").classes_.tolist() == [9, 10, 11]
    assert (pickle.loads(pickle.dumps(made)).predict(query) == made.predict(query)).all()
