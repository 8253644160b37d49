import pytest

from metalstm import checkpoint
from metalstm.classifier.meta_learner import MetaLearner, nearest_shipped
from metalstm.errors import UserError
from metalstm.settings import Traits


def test_the_shipped_checkpoint_is_the_largest_of_the_kind_and_then_that_of_the_ratio_of_shots(make, monkeypatch):
    shipped = {
        f"{name}-{n_shot}": make(traits=traits, n_shot=n_shot)
        for name, traits in (("drawings", Traits(drawing=True)), ("photos", Traits()))
        for n_shot in (1, 5)
    }
    monkeypatch.setattr(checkpoint, "shipped", lambda: shipped)
    assert [nearest_shipped(True, n) for n in (1.0, 2.0, 3.0, 50.0)] == ["drawings-1"] * 2 + ["drawings-5"] * 2
    assert [nearest_shipped(False, n) for n in (1.5, 2.5)] == ["photos-1", "photos-5"]
    shipped["photos-large"] = make(traits=Traits(), n_shot=5, filters=8)
    assert nearest_shipped(False, 1.0) == "photos-large"


def test_every_kind_of_image_has_shipped_checkpoints():
    names = [nearest_shipped(drawings, n_shot) for drawings in (True, False) for n_shot in (1.0, 5.0)]
    assert len(set(names)) == 3  # one for photos
    for name in names:
        assert MetaLearner.load(name).calibrations, name


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="unknown checkpoint 'meta-lstm-omniglot-5w2s', did you mean"):
        MetaLearner.load("meta-lstm-omniglot-5w2s")
