"""When the page says "perhaps none of these"."""

import pytest

pytest.importorskip("gradio", reason="needs the extra app")
from metalstm.app.cards import example_cards, read
from metalstm.app.page import CERTAIN, DECENT, classify
from metalstm.classifier import Classifier

DOUBT = "perhaps none of these"


@pytest.fixture(scope="module")
def learned() -> tuple[Classifier, list]:
    """A classifier of the drawings of the example, and its card to classify."""
    support, query = example_cards()
    images = [(read(image), card["name"]) for card in support for image in card["images"]]
    return Classifier().fit(*map(list, zip(*images, strict=True))), query


def with_threshold(learned: tuple[Classifier, list], threshold: float, auroc: float, temperature: float) -> int:
    """How often it doubts."""
    classifier, query = learned
    classifier.meta["calibration"] |= {"threshold": threshold, "auroc": auroc}
    classifier.network.temperature = temperature
    return classify(classifier, query).count(DOUBT)


def test_the_example_has_no_doubts_of_what_it_is_sure_of(learned):
    classifier, query = learned
    probabilities = classifier.predict_proba([read(image) for image in query[0]["images"]])
    assert classify(classifier, query).count(DOUBT) <= (probabilities.max(1) < CERTAIN).sum()


def test_it_doubts_unsure_answers_below_a_threshold_that_means_something(learned):
    n, hot, cold = len(learned[1][0]["images"]), 1e3, 1e-3  # temperatures at which all answers are unsure, or certain
    assert with_threshold(learned, threshold=2.0, auroc=DECENT, temperature=hot) == n
    assert with_threshold(learned, threshold=-2.0, auroc=DECENT, temperature=hot) == 0
    assert with_threshold(learned, threshold=2.0, auroc=DECENT - 0.01, temperature=hot) == 0
    assert with_threshold(learned, threshold=2.0, auroc=DECENT, temperature=cold) == 0


def test_without_a_calibration_it_does_not_doubt(learned):
    classifier, query = learned
    plain = Classifier(classifier.checkpoint_)
    plain._set(classifier.network, classifier.meta | {"calibration": None}, classifier.classes_)
    references, plain.network.references = plain.network.references, None
    assert DOUBT not in classify(plain, query)
    plain.network.references = references
