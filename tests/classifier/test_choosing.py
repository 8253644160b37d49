"""Classifiers on the features of a backbone."""

import numpy as np
import pytest

from metalstm import backbones
from metalstm.backbones import OwnCheckpoint
from metalstm.classifier import Classifier
from metalstm.errors import UserError
from metalstm.heads import HEADS

BACKBONE = "meta-lstm-cifar-fs-5w5s"
COLORS = {"red": (200, 40, 40), "green": (40, 190, 60), "blue": (40, 50, 200)}


def paint(n: int, seed: int = 0, spread: int = 120):
    """`n` noisy images of each color, and their names."""
    rng, images, labels = np.random.RandomState(seed), [], []
    for name, color in COLORS.items():
        for _ in range(n):
            images.append(np.clip(rng.randint(0, spread, (20, 24, 3)) + np.array(color), 0, 255).astype(np.uint8))
            labels.append(name)
    return images, labels


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METALSTM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def fitted() -> Classifier:
    return Classifier(backbone=BACKBONE).fit(*paint(4))


@pytest.mark.parametrize("head", ["auto", *HEADS])
def test_each_head_learns_saves_and_loads(head, tmp_path):
    classifier, (images, labels) = Classifier(backbone=BACKBONE, head=head).fit(*paint(4)), paint(5, seed=1)
    assert classifier.score(images, labels) > 0.9
    classifier.save(tmp_path / "a.safetensors")
    again = Classifier.load(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(again.predict_proba(images), classifier.predict_proba(images))
    np.testing.assert_array_equal(again.known(images), classifier.known(images))
    assert (again.head, again.backbone) == (head, BACKBONE)


def test_auto_takes_the_head_that_is_best_by_cross_validation(fitted):
    facts = fitted.meta["backbone"]
    assert set(facts["accuracy"]) == set(HEADS)
    assert facts["accuracy"][facts["head"]] == max(facts["accuracy"].values())
    estimate = fitted.estimate()
    assert estimate.accuracy == pytest.approx(facts["accuracy"][facts["head"]]), "the same folds"


def test_one_image_of_each_class_takes_the_first_head():
    classifier = Classifier(backbone=BACKBONE).fit(*paint(1))
    assert classifier.meta["backbone"]["head"] == next(iter(HEADS))
    assert classifier.predict_proba(paint(2)[0]).sum(1) == pytest.approx(1)
    with pytest.raises(UserError, match="this classifier has one image of each class, so it cannot answer 'none of"):
        classifier.threshold()


def test_features_are_computed_once(monkeypatch):
    seen, compute = [], OwnCheckpoint.compute
    monkeypatch.setattr(
        OwnCheckpoint, "compute", lambda self, pixels: [seen.append(len(pixels)), compute(self, pixels)][1]
    )
    images, labels = paint(4)
    classifier = Classifier(backbone=BACKBONE).fit(images, labels)
    classifier.estimate()
    classifier.learning_curve()
    classifier.predict(images)
    Classifier(backbone=BACKBONE, head="logistic").fit(images, labels)
    assert sum(seen) == 12


def test_nine_in_ten_of_its_own_images_are_known_and_noise_is_not(fitted):
    noise = list(np.random.RandomState(0).randint(0, 2, (8, 24, 24, 3)).astype(np.uint8) * 255)
    assert fitted.known(paint(10, seed=2)[0]).mean() > 0.6
    assert fitted.known(noise).mean() < 0.5


def test_adding_is_fitting_on_all_at_once(fitted, tmp_path):
    (images, labels), (more, more_labels) = paint(4), paint(2, seed=3)
    more_labels = [f"{label}, too" for label in more_labels]
    fitted.save(tmp_path / "a.safetensors", keep_images=True)
    added = Classifier.load(tmp_path / "a.safetensors").add(more, more_labels)
    order = np.argsort(labels, kind="stable")  # as the file keeps them
    whole = Classifier(backbone=BACKBONE).fit([*(images[k] for k in order), *more], [*sorted(labels), *more_labels])
    np.testing.assert_allclose(added.predict_proba(more), whole.predict_proba(more), atol=1e-6)
    assert Classifier.load(tmp_path / "a.safetensors").estimate().images == 12


def test_a_backbone_that_is_missing_or_another_one_is_named(fitted, tmp_path):
    fitted.save(tmp_path / "a.safetensors")
    other = Classifier.load(tmp_path / "a.safetensors", backbone="meta-lstm-cifar-fs-5w1s")
    with pytest.raises(UserError) as error:
        other.predict(paint(1)[0])
    assert str(error.value) == (
        "meta-lstm-cifar-fs-5w1s is another backbone than the one that made this classifier (meta-lstm-cifar-fs-5w5s, "
        f"sha256 {backbones.load(BACKBONE).sha256[:12]}...): pass that file with --backbone, or adapt anew"
    )
    gone = Classifier.load(tmp_path / "a.safetensors", backbone=tmp_path / "net.onnx")
    with pytest.raises(UserError, match=r"no backbone at .*net.onnx"):
        gone.predict(paint(1)[0])


def test_what_does_not_go_together_is_refused(tmp_path):
    with pytest.raises(UserError, match="a checkpoint and a backbone: give one of them, --checkpoint or --backbone"):
        Classifier(BACKBONE, backbone=BACKBONE).fit(*paint(2))
    with pytest.raises(UserError, match="unknown head 'logistics'"):
        Classifier(backbone=BACKBONE, head="logistics").fit(*paint(2))
    Classifier(BACKBONE).fit(*paint(2)).save(tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match=r"is a classifier without a backbone: leave out --backbone net\.onnx"):
        Classifier.load(tmp_path / "plain.safetensors", backbone="net.onnx")


@pytest.mark.parametrize(
    "facts",
    [
        3,
        {"head": "logistic"},
        {"head": "logistic", "asked": "auto", "accuracy": {}, "input": {"size": 0}},
        {"head": "x", "asked": "auto", "accuracy": {}},
    ],
)
def test_a_file_whose_values_do_not_fit_is_refused(facts, fitted, tmp_path):
    fitted.meta["backbone"] = facts
    fitted.save(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="does not fit this version of metalstm"):
        Classifier.load(tmp_path / "a.safetensors")
