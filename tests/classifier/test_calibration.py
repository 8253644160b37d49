import math

import pytest
import torch

import helpers
from metalstm import checkpoint, recipes
from metalstm.classifier.calibration import (
    auroc,
    background,
    calibrate,
    expected_calibration_error,
    fit_temperature,
    nearest,
)
from metalstm.methods import PixelNearestNeighbor


def test_the_temperature_is_that_which_the_labels_were_drawn_by():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, 4, dtype=torch.float64, generator=generator)
    y = torch.multinomial((logits / 2.5).softmax(-1), 1, generator=generator)[:, 0]
    assert fit_temperature(logits, y) == pytest.approx(2.5, rel=0.05)
    assert fit_temperature(logits / 50, y) == pytest.approx(2.5 / 50, rel=0.05)


def test_one_that_was_always_right_is_not_sure_of_everything():
    n = 98
    y = torch.arange(n) % 2
    logits = 10 * torch.eye(2, dtype=torch.float64)[y]
    # The least cross-entropy is where the wrong class has its share of the doubt, half of 1 / (n + 2).
    assert fit_temperature(logits, y) == pytest.approx(10 / math.log(2 * (n + 2) - 1), rel=1e-3)


def test_the_expected_calibration_error_by_hand():
    confidence = torch.tensor([0.95, 0.95, 0.55, 0.55], dtype=torch.float64)
    right = torch.tensor([True, False, True, True])
    # A bin of two that is right half of the time, and one of two that is always right.
    assert expected_calibration_error(confidence, right) == pytest.approx((0.45 + 0.45) / 2)
    assert expected_calibration_error(torch.ones(3), torch.tensor([True] * 3)) == 0


def test_auroc_by_hand():
    assert auroc(torch.tensor([0.9, 0.8]), torch.tensor([0.1, 0.2, 0.3])) == 1
    assert auroc(torch.tensor([0.5]), torch.tensor([0.5, 0.1, 0.9, 0.9])) == pytest.approx(1.5 / 4)


def test_nearest_is_by_ratio():
    entries = [{"n_way": n_way, "n_shot": n_shot} for n_way in (2, 5, 10, 20) for n_shot in (1, 5)]
    for n_way, n_shot, expected in [(3, 1.0, (2, 1)), (4, 2.0, (5, 1)), (7, 3.0, (5, 5)), (8, 99.0, (10, 5))]:
        entry = nearest(entries, n_way, n_shot)
        assert (entry["n_way"], entry["n_shot"]) == expected


def test_what_is_measured_of_a_method(tmp_path):
    meta_sets = helpers.load_folder(helpers.make_folder(tmp_path / "patterns", noise=170))
    images = meta_sets.splits["meta-val"]  # three classes of eight images, too few for more than 2-way
    method = PixelNearestNeighbor()
    with pytest.raises(Exception, match="'class 06' has 8"):
        calibrate(method, images, shots=(1,), episodes=2)
    entries, taken = calibrate(method, images, shots=(1, 2), episodes=20, n_query=4)
    assert taken is None
    assert [(entry["n_way"], entry["n_shot"]) for entry in entries] == [(2, 1), (2, 2)]
    for entry in entries:
        assert entry["temperature"] > 0
        assert 0 <= entry["ece"] <= 1
        assert -1 <= entry["least"] <= 1
        assert ("own" in entry) == (entry["n_shot"] > 1), "an only image of a class cannot be left out"
        assert entry["kept"] == pytest.approx(0.9, abs=0.1)
        assert entry["auroc"] > 0.6, "known patterns are separated from those never seen"
        assert 0 <= entry["rejected"] <= 1
    assert entries == calibrate(method, images, shots=(1, 2), episodes=20, n_query=4)[0], "by the seed alone"


def test_the_background_is_taken_if_it_separates_better(tmp_path):
    meta_sets = helpers.load_folder(helpers.make_folder(tmp_path / "patterns", noise=170))
    images, method = meta_sets.splits["meta-val"], PixelNearestNeighbor()
    own = background(method, meta_sets.splits["meta-train"], 2, 1)
    assert own.shape == (6, 3 * helpers.SIZE**2)
    torch.testing.assert_close(own.norm(dim=1), torch.ones(6))
    kind = {"ways": (2,), "shots": (2,), "episodes": 20, "n_query": 4}
    found = {}
    for name, choices in {"none": (None,), "own": (own,), "both": (None, own)}.items():
        found[name], taken = calibrate(method, images, **kind, backgrounds=choices)
        assert any(taken is choice for choice in choices)
    assert found["none"] != found["own"]
    assert found["both"] in (found["none"], found["own"])


def test_calibration_leaves_the_method_as_it_was(meta_sets):
    """Its schedule too, which has another number of passes for few shots."""
    config = helpers.tiny_config(meta_sets, shared_head=True, epochs=2, few_shot_epochs=1)
    method = recipes.build(config)
    settings, state = method.settings, {name: tensor.clone() for name, tensor in method.state_dict().items()}
    assert len(calibrate(method, meta_sets.splits["meta-val"], (2,), (1, 5), n_query=2, episodes=2)[0]) == 2
    assert method.settings is settings
    assert settings == config.settings
    assert method.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in method.state_dict().items())


def test_ways_that_the_method_does_not_serve_are_left_out(meta_sets):
    images = meta_sets.splits["meta-train"]
    for shared, expected in ((True, [2, 3, 5]), (False, [2])):
        method = recipes.build(helpers.tiny_config(meta_sets, shared_head=shared))
        entries, _ = calibrate(method, images, (2, 3, 5, 6), (1,), n_query=2, episodes=2)
        assert [entry["n_way"] for entry in entries] == expected, "6 of 6 classes leave no outsider"


def test_shipped_checkpoints_are_calibrated():
    for path in checkpoint.shipped().values():
        _, meta = checkpoint.load(path)
        assert {entry["n_shot"] for entry in meta["calibration"]} == {1, 5}
        for entry in meta["calibration"]:
            assert entry["ece"] < 0.06, (path.stem, entry)
            assert entry["kept"] == pytest.approx(0.9, abs=0.05)
            assert math.isfinite(entry["temperature"])
            if (entry["n_way"], entry["n_shot"]) == (5, 5):
                assert entry["auroc"] > (0.95 if "omniglot" in path.stem else 0.75)
