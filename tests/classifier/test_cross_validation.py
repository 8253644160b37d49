import numpy as np
import pytest

from metalstm.classifier import Classifier, Estimate
from metalstm.classifier.cross_validation import folds
from metalstm.errors import UserError


def test_the_estimate_is_cross_validated(make, patterns, drawings):
    with pytest.raises(UserError) as error:
        Classifier(make()).estimate(patterns.support, patterns.labels)
    assert str(error.value) == "an estimate of the accuracy needs 2 images per class, but class 11 has 1"
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
    for k in range(3):
        fitted = Classifier(path, seed=4).fit(images[fold != k], labels[fold != k])
        right += int((fitted.predict(images[fold == k]) == labels[fold == k]).sum())
    assert estimate == Estimate(right, 8, 3)


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
    assert folds(np.array([0, 0, 1, 1, 1]), seed=0).max() == 1, "as many folds as the smallest class has images"


def test_the_interval_is_wilsons():
    assert Estimate(8, 10, 5).interval == pytest.approx((49.0, 94.3), abs=0.1)
    assert str(Estimate(8, 10, 5)) == "80 % (95 % interval 49 to 94 %), by 5-fold cross-validation on 10 images"
