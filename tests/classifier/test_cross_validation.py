import math

import numpy as np
import pytest

from metalstm.classifier import Classifier, Estimate
from metalstm.classifier.classifier import NotFitted
from metalstm.classifier.cross_validation import CrossValidation, another_image, folds
from metalstm.classifier.meta_learner import MetaLearner
from metalstm.errors import UserError
from metalstm.learners import HeadOnly


def test_the_estimate_is_cross_validated(make, patterns, drawings):
    with pytest.raises(UserError) as error:
        Classifier(make()).estimate(patterns.support[4:6], patterns.labels[4:6])
    assert str(error.value) == "an estimate of the accuracy needs 2 images per class, but class 09 has 1"
    with pytest.raises(NotFitted, match=r"^which images\? give some with their labels, or call fit first"):
        Classifier(make()).estimate()
    found = Classifier(make()).cross_validate(patterns.support, patterns.labels)
    assert found.by_class().keys() == {"class 09", "class 10"}, "the only image of class 11 is not tested"
    assert found.probabilities.shape == (8, 3)
    images, symbols = drawings(3)
    estimate = Classifier().estimate(images, symbols)
    assert (estimate.images, estimate.folds) == (9, 3)
    assert estimate.right >= 7


def test_each_image_is_classified_by_a_classifier_that_has_not_seen_it(make, patterns):
    """The estimate counts what the classifiers of the other folds get right."""
    images, labels = np.stack(patterns.support[:8]), np.array(patterns.labels[:8])
    path = make("pixels")
    estimate = Classifier(path, seed=4).estimate(images, labels)
    fold = folds(np.unique(labels, return_inverse=True)[1], seed=4)
    right = 0
    for k in range(5):
        fitted = Classifier(path, seed=4).fit(images[fold != k], labels[fold != k])
        right += int((fitted.predict(images[fold == k]) == labels[fold == k]).sum())
    assert estimate == Estimate(right, 8, 5)


@pytest.mark.parametrize(
    ("method", "settings", "fixed"),
    [
        ("meta-lstm", {"moves": "head", "keep_moments": True}, True),
        ("meta-lstm", {"moves": "all", "keep_moments": False}, False),
        ("r2d2", {}, True),
    ],
)
def test_images_are_embedded_once_for_all_folds(method, settings, fixed, make, patterns, monkeypatch):
    classifier, counts, embed = Classifier(make(method, **settings)), [], HeadOnly.fixed

    def counted(self, x, train=False):
        counts.append(x.shape[:-3].numel())
        return embed(self, x, train)

    monkeypatch.setattr(HeadOnly, "fixed", counted)
    classifier.fit(patterns.support, patterns.labels)
    found = classifier.cross_validate()
    assert sum(counts) == fixed * len(patterns.support), "an image in several folds is embedded once"
    monkeypatch.setattr(MetaLearner, "remembering", property(lambda learner: learner.method))
    slow = classifier.cross_validate()
    np.testing.assert_allclose(found.probabilities, slow.probabilities, rtol=1e-5, atol=1e-5)


def test_folds_are_stratified_and_drawn_by_the_seed():
    y = np.random.RandomState(0).permutation(np.repeat([0, 1, 2], [7, 12, 30]))
    fold = folds(y, seed=0)
    assert set(fold) == set(range(5))
    for k, count in enumerate((7, 12, 30)):
        sizes = np.bincount(fold[y == k], minlength=5)
        assert sizes.sum() == count
        assert np.ptp(sizes) <= 1
    assert (fold == folds(y, seed=0)).all()
    assert (fold != folds(y, seed=1)).any()
    few = folds(np.array([0, 0, 1, 1, 1, 2]), seed=0)
    assert few.max() == 2, "as many folds as the largest class has images"
    assert few[0] != few[1], "each is tested by a classifier that has seen the other"
    assert few[5] == -1


def test_classes_confusions_and_doubts_by_hand():
    rows = [[0.9, 0.1, 0.0], [0.05, 0.9, 0.05], [0.2, 0.7, 0.1], [0.0, 0.9, 0.1], [0.3, 0.3, 0.4], [0.04, 0.06, 0.9]]
    found = CrossValidation(
        np.array(["a", "b", "c"]), [f"{k}.png" for k in range(6)], np.array([0, 0, 0, 1, 2, 1]), np.array(rows), 2
    )
    assert {name: (each.right, each.images) for name, each in found.by_class().items()} == {
        "a": (1, 3), "b": (1, 2), "c": (1, 1)
    }  # fmt: skip
    assert found.confused() == [("a", "b", 2), ("b", "c", 1)]
    assert found.doubts() == [("1.png", "a", 0.05, "b"), ("5.png", "b", 0.06, "c")]
    assert found.estimate == Estimate(3, 6, 2)


def test_the_learning_curve_learns_from_fewer_images(drawings):
    images, labels = drawings(6)
    classifier = Classifier("meta-lstm-omniglot-5w1s").fit(images, labels)
    curve = classifier.learning_curve()
    assert list(curve) == [1, 2, 4]
    assert {each.images for each in curve.values()} == {18}
    assert curve[4].right >= curve[1].right


def test_another_image_brings_what_the_line_through_the_curve_says():
    curve = {size: Estimate(right, 100, 5) for size, right in ((1, 40), (2, 50), (4, 60))}
    assert another_image(curve, 4.0) == pytest.approx(10 * math.log2(5 / 4))
    assert another_image({1: Estimate(4, 9, 2)}, 1.0) is None


def test_the_interval_is_wilsons():
    assert Estimate(8, 10, 5).interval == pytest.approx((49.0, 94.3), abs=0.1)
    assert str(Estimate(8, 10, 5)) == "80 % (95 % interval 49 to 94 %), by 5-fold cross-validation on 10 images"
