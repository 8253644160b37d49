import datetime
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import metalstm
from metalstm import checkpoint
from metalstm.classifier import Classifier
from metalstm.classifier.meta_learner import MetaLearner
from metalstm.classifier.outsiders import References
from metalstm.episodes import EpisodeSampler
from metalstm.errors import UserError
from metalstm.evaluation import evaluate
from metalstm.geometry import Cropped
from metalstm.methods import METHODS

# Learning


def test_drawings_are_learned_from_whatever_their_polarity(drawings):
    assert metalstm.Classifier is Classifier
    images, labels = drawings(5)
    fitted = Classifier().fit(images, labels)
    assert fitted.checkpoint_ == "meta-lstm-omniglot-5w5s"
    assert fitted.classes_.tolist() == ["ell", "one", "vee"]
    others, answers = drawings(5, seed=1)
    assert fitted.score(others, answers) > 0.9
    light_on_dark, _ = drawings(5, seed=1, ink="white", paper="black")
    assert np.abs(fitted.predict_proba(others) - fitted.predict_proba(light_on_dark)).max() < 1e-4
    assert Classifier().fit(*drawings(1)).checkpoint_ == "meta-lstm-omniglot-5w1s"


def test_probabilities_are_those_of_the_method_by_the_protocol(make, meta_sets):
    """The support set of an episode, given as images, gives the network that `evaluate` tests."""
    sampler = EpisodeSampler(meta_sets.splits["meta-test"], 3, 2, 3)
    path = make(batch_size=25)
    method, _, _ = checkpoint.load_method(path)
    episode = sampler[0]
    pixels = (episode.support.x[0] * 255).round().byte()
    queries = (episode.query.x[0] * 255).round().byte()
    fitted = Classifier(path).fit(pixels, episode.support.y[0].numpy())
    # The classifier sorts by class and shuffles anew; one mini-batch holds all images, so the order does not matter.
    expected = method.logits(method.adapt(episode.support), episode.query.x)[0].softmax(-1)
    got = fitted.predict_proba(queries)
    torch.testing.assert_close(torch.from_numpy(got), expected.detach(), atol=1e-4, rtol=1e-4)
    accuracy = 100 * fitted.score(queries, episode.query.y[0].numpy())
    assert evaluate(method, sampler, 1).mean == pytest.approx(accuracy)


def test_images_keep_their_numbers_when_others_are_left_out(make, patterns):
    broken = np.zeros((4, 4, 2))
    fitted = Classifier(make(), skip_bad=True).fit([broken, *patterns.support], ["class 09", *patterns.labels])
    assert [each[:8] for each in fitted.left_out_] == ["image 1 "]
    assert fitted.cross_validate().images == [f"image {number}" for number in range(2, 10)], "the last is alone"


def test_a_class_too_many_leaves_a_classifier_as_it_was(make, patterns, tmp_path):
    fitted = Classifier(make(shared_head=False)).fit(patterns.support[:8], patterns.labels[:8])
    before = fitted.predict_proba(patterns.query)
    with pytest.raises(UserError, match="2"):
        fitted.add(patterns.support[8:], patterns.labels[8:])
    fitted.save(tmp_path / "same.safetensors", keep_images=True)
    kept = Classifier.load(tmp_path / "same.safetensors")
    assert (kept.predict_proba(patterns.query) == before).all()
    assert (kept.add([], []).predict_proba(patterns.query) == before).all()


@pytest.mark.parametrize("method", METHODS)
def test_any_method_learns_from_unequal_shots(make, patterns, method):
    support, labels, query, query_labels = patterns
    fitted = Classifier(make(method)).fit(support, labels)
    probabilities = fitted.predict_proba(query)
    assert probabilities.shape == (9, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert fitted.predict(query).tolist() == fitted.classes_[probabilities.argmax(1)].tolist()
    assert fitted.score(query, query_labels) == np.mean(fitted.predict(query) == np.array(query_labels))


@pytest.mark.parametrize("method", METHODS)
def test_steps_end_where_fit_does(make, patterns, method):
    support, labels, query, _ = patterns
    path = make(method)
    watched = Classifier(path)
    steps = list(watched.steps(support, labels))
    assert [(step.number, step.of) for step in steps] == [(k, len(steps)) for k in range(1, len(steps) + 1)]
    fitted = Classifier(path).fit(support, labels)
    assert (watched.predict_proba(query) == fitted.predict_proba(query)).all(), "to the bit"
    assert watched.meta == fitted.meta


def test_steps_of_a_meta_lstm_have_losses_and_gates(make, patterns):
    support, labels, *_ = patterns
    steps = list(Classifier(make(epochs=3, batch_size=8)).steps(support, labels))
    assert [(step.number, step.of) for step in steps] == [(k, 6) for k in range(1, 7)]
    assert all(0 <= step.accuracy <= 1 and step.loss > 0 for step in steps)
    layers = ["conv1", "conv2", "conv3", "conv4", "head"]
    for step in steps:
        assert list(step.forget) == list(step.rate) == layers
        assert all(0 < gate < 1 for gate in (*step.forget.values(), *step.rate.values()))
    assert list(Classifier(make("matching-net")).steps(support, labels)) == [], "it has no inner loop"
    assert not next(Classifier(make("finetune")).steps(support, labels)).forget, "a fixed rule has no gates"


def test_few_shots_take_the_epochs_of_few_shots(make, patterns):
    support, labels, *_ = patterns
    path = make(epochs=4, few_shot_epochs=1, batch_size=None)
    assert len(list(Classifier(path).steps(support, labels))) == 4, "5 of the largest class"
    assert len(list(Classifier(path).steps(support[1:], labels[1:]))) == 1, "4 of it"


def test_a_classifier_computes_in_fp32_whatever_the_checkpoint_says(make, patterns, tmp_path):
    support, labels, query, _ = patterns
    bf16, fp32 = make(precision="bf16"), make(precision="fp32")
    fitted = Classifier(bf16).fit(support, labels)
    expected = Classifier(fp32).fit(support, labels).predict_proba(query)
    assert (fitted.predict_proba(query) == expected).all(), "to the bit"
    assert fitted.meta["config"]["learner_settings"]["precision"] == "bf16", "what the meta-learner was made of"
    fitted.save(tmp_path / "fitted.safetensors")
    assert (Classifier.load(tmp_path / "fitted.safetensors").predict_proba(query) == expected).all()


def test_fitting_leaves_the_meta_learner_as_it_was(make, patterns):
    support, labels, *_ = patterns
    path = make()
    fitted = Classifier(path).fit(support, labels)
    before, _, _ = checkpoint.load_method(path)
    assert fitted.method.state_dict().keys() == before.state_dict().keys()
    for name, tensor in before.state_dict().items():
        assert torch.equal(fitted.method.state_dict()[name], tensor), name


def test_a_classifier_that_fails_to_learn_anew_stays_what_it_was(make, patterns):
    support, labels, query, _ = patterns
    fitted = Classifier(make()).fit(support, labels)
    before = fitted.predict_proba(query)
    fitted.checkpoint = make("matching-net")
    with pytest.raises(UserError, match="cannot read"):
        fitted.fit(["no.png", *support[1:]], labels)
    assert (fitted.predict_proba(query) == before).all()
    assert fitted.meta["config"]["method"] == "meta-lstm"


# Calibration


def test_temperature_and_scores_are_those_of_the_calibration(make, patterns):
    support, labels, query, _ = patterns
    path = make(calibrated=True)
    fitted = Classifier(path).fit(support, labels)
    tensors, meta = checkpoint.load(path)
    checkpoint.save(path.with_name("plain.safetensors"), tensors, {"config": meta["config"]})
    plain = Classifier(path.with_name("plain.safetensors")).fit(support, labels)
    expected = torch.from_numpy(plain.predict_proba(query)).log().div(2).softmax(-1)
    torch.testing.assert_close(torch.from_numpy(fitted.predict_proba(query)), expected)
    scores = fitted.known_scores(query)
    assert fitted.threshold() == 0.6
    assert fitted.known(query).tolist() == (scores >= 0.6).tolist()
    probabilities, same = fitted.predict_with_scores(query)
    np.testing.assert_array_equal(same, scores)
    np.testing.assert_array_equal(probabilities, fitted.predict_proba(query))
    assert plain.predict_with_scores(query)[1] is None
    with pytest.raises(UserError) as error:
        plain.known(query)
    assert str(error.value) == (
        f"{path.with_name('plain.safetensors')} has no calibration, so its classifiers cannot answer 'none of these': "
        f"adapt with a shipped checkpoint: {', '.join(checkpoint.shipped())}"
    )


def test_an_old_calibration_gives_temperatures_alone(make, patterns):
    path = make(calibrated=True)
    tensors, meta = checkpoint.load(path)
    entry = {"n_way": 2, "n_shot": 1, "temperature": 2.0, "threshold": 0.6}  # of a probability
    checkpoint.save(path, tensors, meta | {"calibration": [entry]})
    fitted = Classifier(path).fit(patterns.support, patterns.labels)
    assert fitted.network.temperature == 2
    assert "threshold" not in fitted.meta["calibration"]
    with pytest.raises(
        UserError, match="was made by an older version, whose calibration is no longer used: adapt anew"
    ):
        fitted.known(patterns.query)


def test_the_users_own_images_move_the_threshold(make, patterns):
    path = make(calibrated=True)
    tensors, meta = checkpoint.load(path)
    entry = {"n_way": 2, "n_shot": 5, "temperature": 2.0, "least": 0.6, "own": 0.5}
    checkpoint.save(path, tensors, meta | {"calibration": [entry]})
    fitted = Classifier(path).fit(patterns.support, patterns.labels)  # 5, 3 and 1 images: 8 can be left out
    references, learner = fitted.network.references, MetaLearner.load(path)
    assert references
    assert fitted._examples
    task = learner.task(fitted._examples.pixels, fitted._examples.labels, 0)
    features = fitted.method.features(fitted.network.adapted, task.support.x)
    labels = task.support.y.tolist()
    scores = []
    for row in {int(image): k for k, image in enumerate(task.rows)}.values():
        distinct = {int(image): k for k, image in enumerate(task.rows)}
        others = [k for image, k in distinct.items() if image != task.rows[row]]
        if any(labels[k] == labels[row] for k in others):
            y = torch.tensor([labels[k] for k in others])
            scores.append(References.of(features[others], y, 3).scores(features[row : row + 1]).item())
    assert len(scores) == 8
    expected = 0.6 + 8 / (8 + 25) * (float(np.quantile(scores, 0.1)) - 0.5)
    assert fitted.threshold() == pytest.approx(expected, abs=1e-5)
    assert len(references.background) == 0


def test_a_background_of_other_features_is_refused(make, patterns):
    path = make(calibrated=True)
    tensors, meta = checkpoint.load(path)
    checkpoint.save(path, tensors | {"background": torch.ones(3, 7)}, meta)
    with pytest.raises(
        UserError, match=r"is damaged \(its background is \(3, 7\), for features of 4 numbers\): get or"
    ):
        Classifier(path).fit(patterns.support, patterns.labels)


# What is refused


@pytest.mark.parametrize("checkpoint_name", [None, "made"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y[:-1]), "9 images, but labels of shape (8,): give one label for each image"),
        (lambda x, y: (x, ["a"] * 9), "1 class: give 2 to 200"),
        (lambda x, y: (x * 23, list(range(207))), "207 classes: give 2 to 200"),
        (lambda x, y: ([], []), "0 classes: give 2 to 200"),
        (lambda x, y: (x[0], y[:1]), "one image where several are expected: give a list, [image]"),
        (lambda x, y: ("a.jpg", ["a"]), "one image where several are expected: give a list, [image]"),
    ],
)
def test_what_cannot_be_learned_from(make, patterns, checkpoint_name, change, message):
    support, labels, *_ = patterns
    path = checkpoint_name and make()
    for learn in (Classifier(path).fit, lambda *task: list(Classifier(path).steps(*task)), Classifier(path).estimate):
        with pytest.raises(UserError) as error:
            learn(*change(support, labels))
        assert str(error.value) == message


def test_images_that_cannot_be_read_are_named(make, patterns):
    support, labels, *_ = patterns
    with pytest.raises(UserError) as error:
        Classifier(make()).fit([*support[:6], "p", "q", np.zeros((2, 2))[None]], labels)
    assert str(error.value).splitlines() == [
        "the images: 3 problems; mend them, or pass --skip-bad to go on without:",
        "  cannot read p as an image (No such file or directory): check its name and permissions",
        "  cannot read q as an image (No such file or directory): check its name and permissions",
        "  image 9 is (1, 2, 2): give a path, a PIL image, or (height, width) or (height, width, channels) with 1, 3 "
        "or 4 channels",
    ]
    with pytest.raises(UserError) as error:
        Classifier(make()).fit([*support[:8], "p"], labels)
    assert str(error.value) == (
        "cannot read p as an image (No such file or directory): check its name and permissions, or pass --skip-bad to "
        "go on without"
    )


def test_an_unshared_head_serves_its_own_number_of_classes(make, patterns):
    support, labels, *_ = patterns
    with pytest.raises(UserError) as error:
        Classifier(make(shared_head=False)).fit(support, labels)
    assert str(error.value) == "this method was meta-trained for 2 classes and serves no other number: got 3"
    fitted = Classifier(make(shared_head=False)).fit(support[:8], labels[:8])
    assert fitted.classes_.tolist() == ["class 09", "class 10"]


ODD = {
    "None": (None, "label 1 is None, of type NoneType: give text or numbers"),
    "bytes": (b"cat", "label 1 is b'cat', of type bytes: give text or numbers"),
    "date": (datetime.date(2024, 1, 2), "label 1 is datetime.date(2024, 1, 2), of type date: give text or numbers"),
    "complex": (1j, "label 1 is 1j, of type complex: give text or numbers"),
    "list": ([1], "label 1 is [1], of type list: give text or numbers"),
    "NaN": (float("nan"), "label 1 is nan: give finite numbers"),
    "infinity": (float("inf"), "label 1 is inf: give finite numbers"),
    "large": (2**63, "label 1 is 9223372036854775808: give numbers of at most 64 bits"),
    "number": (3, "labels of different types, numbers and text: give labels of one"),
    "truth": (True, "labels of different types, True or False and text: give labels of one"),
    "character 0": ("class 09\0", "label 1 is 'class 09\\x00', with a character 0: remove that"),
}


@pytest.mark.parametrize("case", ODD)
def test_labels_that_would_not_stay_what_they_are_are_refused(patterns, case):
    support, labels, *_ = patterns
    label, message = ODD[case]
    for learn in (Classifier().fit, lambda *task: list(Classifier().steps(*task)), Classifier().estimate):
        with pytest.raises(UserError) as error:
            learn(support, [label, *labels[1:]])
        assert str(error.value) == message


@pytest.mark.parametrize("dtype", ["datetime64[ns]", "timedelta64[s]", "S3", "V3"])
def test_arrays_of_odd_labels_are_refused_too(patterns, dtype):
    with pytest.raises(UserError, match=r"^label 1 is .*, of type \w+: give text or numbers$"):
        Classifier().fit(patterns.support, np.zeros(9, dtype))


@pytest.mark.parametrize(
    "labels",
    [
        np.arange(9) % 3,
        np.arange(9, dtype=np.uint8) % 3,
        torch.arange(9) % 3,
        np.arange(9) / 2 % 1.5,
        np.arange(9) % 2 == 0,
    ],
    ids=["ints", "bytes", "tensor", "floats", "truths"],
)
def test_numbers_and_truths_are_labels(make, patterns, tmp_path, labels):
    n_way = len(set(labels.tolist()))
    fitted = Classifier(make(n_shot=1)).fit(patterns.support, labels)
    fitted.save(tmp_path / "fitted.safetensors")
    again = Classifier.load(tmp_path / "fitted.safetensors")
    assert len(again.classes_) == n_way
    assert again.classes_.tolist() == fitted.classes_.tolist() == sorted(set(labels.tolist()))
    assert (again.predict(patterns.query) == fitted.predict(patterns.query)).all()


@pytest.mark.parametrize(
    "ask",
    [
        lambda classifier, x: classifier.predict(x),
        lambda classifier, x: classifier.predict_proba(x),
        lambda classifier, x: classifier.predict_files([Path("a.png")]),
        lambda classifier, x: classifier.known(x),
        lambda classifier, x: classifier.score(x, [1]),
        lambda classifier, x: classifier.threshold(),
        lambda classifier, x: classifier.save("x.safetensors"),
        lambda classifier, x: classifier.classes_,
    ],
)
def test_a_classifier_that_learned_nothing_says_so(patterns, ask):
    with pytest.raises(UserError) as error:
        ask(Classifier(), patterns.query)
    assert str(error.value) == "this classifier has learned nothing yet: call fit first, or Classifier.load"
    assert not hasattr(Classifier(), "classes_")
    with pytest.raises(AttributeError, match="has no attribute 'clases_'"):
        _ = Classifier().clases_


@pytest.mark.parametrize(
    "labels",
    [
        [np.zeros((2, 3)), np.zeros((2, 4))] * 2,
        torch.zeros(4, device="meta"),
        ["a"],
        3,
        [np.zeros((99, 99))] * 3 + ["a"],
    ],
    ids=["ragged", "without numbers", "too few", "no list", "mixed"],
)
def test_labels_that_are_none_are_refused_in_one_line(make, patterns, labels):
    fitted = Classifier(make()).fit(patterns.support[:8], patterns.labels[:8])
    for ask in (Classifier(make()).fit, fitted.score, fitted.estimate):
        with pytest.raises(UserError, match="label") as error:
            ask(patterns.support[:4], labels)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "--seed -1: must be a whole number, at least 0 and below 2^32"),
        ({"seed": 2**32}, "--seed 4294967296: must be a whole number, at least 0 and below 2^32"),
        ({"device": "xx"}, "--device xx: not usable here ("),
        ({"device": "meta"}, "--device meta: not usable here ("),
    ],
    ids=str,
)
def test_seed_and_device_are_checked_where_they_are_used(make, patterns, arguments, message):
    classifier = Classifier(make(), **arguments)
    for learn in (classifier.fit, lambda *task: list(classifier.steps(*task)), classifier.estimate):
        with pytest.raises(UserError) as error:
            learn(patterns.support[:8], patterns.labels[:8])
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "name", "value"), [("meta-lstm", "body_0", 3e38), ("r2d2", "log_penalty", -1e9)], ids=["loop", "solver"]
)
def test_adapting_that_diverges_is_reported(make, patterns, method, name, value):
    path = make(method)
    tensors, meta = checkpoint.load(path)
    odd = {f"method.{name}": torch.full_like(tensors[f"method.{name}"], value)}
    if method == "r2d2":  # a network that is 0 everywhere makes a singular system without the penalty
        odd["method.body"] = torch.zeros_like(tensors["method.body"])
    checkpoint.save(path, tensors | odd, meta)
    with pytest.raises(
        UserError, match=r"^adapting has diverged \(\w+ has numbers that are not finite\): take another"
    ):
        Classifier(path).fit(patterns.support, patterns.labels)


# Whole photos


@pytest.fixture
def bands(make) -> tuple[Classifier, Image.Image]:
    """A classifier of red and blue, and a wide photo that is red at the left and blue elsewhere."""
    colors = {
        name: np.full((20, 20, 3), color, np.uint8) for name, color in (("red", (200, 0, 0)), ("blue", (0, 0, 200)))
    }
    classifier = Classifier(make("protonet", calibrated=True)).fit([*colors.values()], [*colors])
    return classifier, Image.fromarray(np.concatenate([colors["red"], *[colors["blue"]] * 2], 1))


def test_crops_are_averaged(bands):
    classifier, wide = bands
    parts = [wide.crop((left, 0, left + 20, 20)) for left in (0, 20, 40)]
    every, scores = classifier.predict_with_scores(parts)
    assert every.argmax(1).tolist() == [1, 0, 0]
    found, score = classifier.predict_with_scores([wide, parts[0]], crops=3)
    np.testing.assert_allclose(found, [every.mean(0), every[0]], atol=0.02)  # the filter reaches beyond a square
    assert scores is not None
    assert score is not None
    np.testing.assert_allclose(score, [scores.mean(), scores[0]], atol=0.05)
    assert (classifier.predict_proba([wide], crops=3) == found[:1]).all()
    assert classifier.predict([wide], crops=3).tolist() == ["blue"]
    assert classifier.predict_proba([], crops=3).shape == (0, 2)
    with pytest.raises(UserError, match=r"^--crops 26: must be a whole number, at least 1 and at most 25$"):
        classifier.predict([wide], crops=26)


def test_whole_images_have_no_crops(make, bands):
    _, wide = bands
    classifier = Classifier(make(), framing="letterbox").fit([wide, wide.rotate(180)], ["a", "b"])
    with pytest.raises(UserError, match=r"^--crops 3: this classifier looks at whole images \(framing letterbox\)"):
        classifier.predict_proba([wide], crops=3)
    assert (classifier.predict_proba([wide], crops=1) == classifier.predict_proba([wide])).all()


def test_parts_of_images_can_be_learned_from_and_predicted(make, bands, tmp_path):
    _, wide = bands
    wide.save(tmp_path / "wide.png")
    parts = [Cropped(tmp_path / "wide.png", box) for box in ((0, 0, 20, 20), (20, 0, 40, 20))]
    by_box = Classifier(make(), seed=1).fit(parts, ["red", "blue"])
    cut = [wide.crop(part.box) for part in parts]
    by_cut = Classifier(by_box.checkpoint, seed=1).fit(cut, ["red", "blue"])
    assert (by_box.predict_proba(parts) == by_cut.predict_proba(cut)).all()
    files, probabilities, _, faults = by_box.predict_files_with_scores(
        [*parts, Cropped(tmp_path / "wide.png", (0, 0, 99, 9))]
    )
    assert files == parts
    assert (probabilities == by_cut.predict_proba(cut)).all()
    assert faults == [
        f"the box of {tmp_path / 'wide.png'} is [0, 0, 99, 9], but the upright image has 60 x 20 pixels: give a box "
        "within them"
    ]


def test_added_images_have_the_same_framing(make, bands, tmp_path):
    _, wide = bands
    images, labels = [wide, wide.rotate(180), wide.rotate(90, expand=True)], ["a", "b", "b"]
    at_once = Classifier(make(), framing="squeeze").fit(images, labels)
    Classifier(at_once.checkpoint, framing="squeeze").fit(images[:2], labels[:2]).save(tmp_path / "x", keep_images=True)
    added = Classifier.load(tmp_path / "x").add(images[2:], labels[2:])
    assert added.preprocessing == at_once.preprocessing
    assert (added.predict_proba(images) == at_once.predict_proba(images)).all()


def test_an_unknown_framing(make, bands):
    with pytest.raises(UserError, match=r"^--framing zoom: must be one of crop, letterbox, squeeze"):
        Classifier(make(), framing="zoom").fit([bands[1]] * 2, ["a", "b"])


# scikit-learn


def test_scikit_learn_takes_it_for_one_of_its_own(drawings):
    from sklearn.base import clone, is_classifier
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import Pipeline
    from sklearn.utils.validation import check_is_fitted

    images, labels = drawings(3)
    one = Classifier("meta-lstm-omniglot-5w1s", seed=2)
    expected = {"checkpoint": "meta-lstm-omniglot-5w1s", "seed": 2, "device": "cpu", "skip_bad": False}
    expected |= {"framing": None, "backbone": None, "head": "auto"}
    assert repr(one) == f"Classifier({', '.join(f'{name}={value!r}' for name, value in expected.items())})"
    copy: Any = clone(one)
    assert copy is not one
    assert copy.get_params() == one.get_params() == expected
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
    assert str(error.value) == (
        "unknown parameter 'sede', did you mean 'seed'? "
        "allowed: backbone, checkpoint, device, framing, head, seed, skip_bad"
    )


def test_labels_may_be_numbers_and_a_classifier_be_pickled(make, patterns, tmp_path):
    support, labels, query, _ = patterns
    numbers = [int(label[-2:]) for label in labels]
    fitted = Classifier(make()).fit(support, numbers)
    assert set(fitted.predict(query).tolist()) <= {9, 10, 11}
    fitted.save(tmp_path / "fitted.safetensors")
    assert Classifier.load(tmp_path / "fitted.safetensors").classes_.tolist() == [9, 10, 11]
    assert (pickle.loads(pickle.dumps(fitted)).predict(query) == fitted.predict(query)).all()
