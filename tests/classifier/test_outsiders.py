import pytest
import torch
import torch.nn.functional as F

from metalstm.classifier.outsiders import References, tenth, threshold

Y = torch.tensor([0, 1, 0, 2, 1, 0])


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def mean(rows: torch.Tensor) -> torch.Tensor:
    """Of directions, and of length 1."""
    return F.normalize(F.normalize(rows, dim=-1).mean(0), dim=0)


def test_the_score_by_hand(features):
    query = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    means = [mean(features[k == Y]) for k in range(3)]
    cosines = [(F.normalize(query, dim=0) @ each).item() for each in means]
    plain = References.of(features, Y, 3)
    assert plain.scores(7 * query[None]).item() == pytest.approx(max(cosines)), "whatever the length"
    others = F.normalize(features[:2], dim=-1)
    far = (10 * F.normalize(query, dim=0) @ others.mT).exp().sum().log() / 10
    compared = References.of(features, Y, 3, others)
    assert compared.scores(query[None]).item() == pytest.approx(max(cosines) - far.item())


@pytest.mark.parametrize("with_background", [False, True])
def test_left_out_scores_are_those_of_classifiers_without_the_image(features, with_background):
    others = F.normalize(features[:2] + 1, dim=-1) if with_background else None
    expected = []
    for row in (0, 1, 2, 4, 5):  # row 3 is the only one of its class
        rest = torch.arange(6) != row
        expected.append(References.of(features[rest], Y[rest], 3, others).scores(features[row : row + 1]))
    found = References.of(features, Y, 3, others).left_out_scores(features, Y)
    torch.testing.assert_close(found, torch.cat(expected))


def test_one_image_of_each_class_leaves_none_out(features):
    y = torch.arange(6)
    left_out = References.of(features, y, 6).left_out_scores(features, y)
    assert len(left_out) == 0
    assert threshold({"least": 0.4, "own": 0.3}, left_out) == 0.4


def test_many_images_decide_the_threshold_and_few_hardly_move_it():
    calibration = {"least": 0.4, "own": 0.3}
    for n in (1, 25, 10_000):
        scores = torch.full((n,), 0.1)
        assert threshold(calibration, scores) == pytest.approx(0.4 + n / (n + 25) * (0.1 - 0.3))
    assert threshold({"least": 0.4}, torch.ones(9)) == 0.4, "meta-val has left no image out"


def test_nine_in_ten_reach_the_tenth():
    scores = torch.arange(101.0)
    assert (scores >= tenth(scores)).float().mean() == pytest.approx(0.9, abs=0.01)
