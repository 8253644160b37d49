import numpy as np
import pytest

pytest.importorskip("gradio", reason="needs the extra app")
from metalstm.app.page import estimate
from metalstm.classifier import Classifier


def noise(n: int) -> list[np.ndarray]:
    """Images that nobody can tell apart."""
    return list(np.random.RandomState(0).randint(0, 256, (n, 40, 40, 3), dtype=np.uint8))


def test_the_estimate_is_that_of_the_classifier_and_names_what_is_confused():
    classifier = Classifier().fit(noise(8), ["<a>"] * 4 + ["b"] * 4)
    result, html = classifier.cross_validate(), estimate(classifier)
    assert f"<b>{result.estimate.accuracy:.0f} %</b> right of images that it had not seen" in html
    assert f"{result.estimate.folds}-fold cross-validation on 8 images." in html
    assert result.confused(), "noise was told apart"
    for label, other, times in result.confused():
        names = f"{label}, taken for {other}".replace("<a>", "&lt;a&gt;")
        assert f"<li>{names}{f' ({times} times)' if times > 1 else ''}</li>" in html


def test_single_images_give_no_estimate():
    html = estimate(Classifier().fit(noise(2), ["a", "b"]))
    assert "With two images of a class, it can estimate its accuracy on new ones." in html
