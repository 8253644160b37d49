from pathlib import Path

import numpy as np
import pytest
import torch

from metalstm import backbones, checkpoint
from metalstm.backbones import OwnCheckpoint, cache
from metalstm.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METALSTM_CACHE", str(tmp_path / "cache"))


class Counted(OwnCheckpoint):
    """Counts the images which it computes features of."""

    seen = 0

    def compute(self, pixels):
        self.seen += len(pixels)
        return super().compute(pixels)


@pytest.fixture
def counted() -> Counted:
    backbone = Counted.load("meta-lstm-cifar-fs-5w5s", "cpu", None)
    assert isinstance(backbone, Counted)
    return backbone


def images(n: int) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (n, 32, 32, 3)).astype(np.uint8)


def test_features_of_a_checkpoint_are_what_its_own_head_sees():
    method, _, _ = checkpoint.load_method("meta-lstm-cifar-fs-5w5s")
    x = torch.tensor(images(3)).movedim(-1, 1).float() / 255
    with torch.no_grad():
        expected = method.features({"theta": torch.zeros(65)}, x)
    np.testing.assert_array_equal(backbones.load("meta-lstm-cifar-fs-5w5s").compute(images(3)), expected.numpy())


def test_drawings_are_turned_to_dark_paper():
    backbone, light = backbones.load("meta-lstm-omniglot-5w5s"), np.full((1, 28, 28, 1), 255, np.uint8)
    light[:, 10:20, 14] = 0
    np.testing.assert_array_equal(backbone.compute(light), backbone.compute(255 - light))


def test_features_are_computed_once_and_found_again(counted):
    pixels = images(40)
    first = backbones.features(counted, pixels[:30])
    again = backbones.features(counted, np.concatenate([pixels, pixels]))
    assert counted.seen == 40
    np.testing.assert_array_equal(again[:30], first)
    np.testing.assert_array_equal(again[40:], again[:40])
    np.testing.assert_allclose(first[:, 0, :, 0], OwnCheckpoint.compute(counted, pixels[:30]), atol=1e-5)
    assert backbones.features(counted, pixels[:0]).shape == (0, 1, 64, 1)


def test_another_network_has_other_features(counted):
    backbones.features(counted, images(2))
    counted.sha256 = "another"
    backbones.features(counted, images(2))
    assert counted.seen == 4


def test_the_cache_is_bounded_and_the_oldest_go_first(counted, monkeypatch):
    monkeypatch.setattr(cache, "MOST", 10 * 4 * 64)
    clock = iter(range(100))
    monkeypatch.setattr(cache.time, "time", lambda: next(clock))
    for start in (0, 5, 10):
        backbones.features(counted, images(15)[start : start + 5])
    assert counted.seen == 15
    backbones.features(counted, images(15)[10:])
    assert counted.seen == 15, "the newest are there"
    backbones.features(counted, images(15)[:5])
    assert counted.seen == 20, "the oldest are gone"


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + bytes(200)])
def test_a_damaged_cache_is_made_anew(counted, content, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "features.sqlite").write_bytes(content)
    backbones.features(counted, images(2))
    backbones.features(counted, images(2))
    assert counted.seen == 2


def test_features_do_without_a_cache_that_cannot_be_written(counted, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    backbones.features(counted, images(2))
    assert backbones.features(counted, images(2)).shape == (2, 1, 64, 1)


def test_features_that_are_not_finite_are_an_error(counted, monkeypatch):
    monkeypatch.setattr(counted, "compute", lambda pixels: np.full((len(pixels), 64), np.nan, np.float32))
    with pytest.raises(UserError, match="meta-lstm-cifar-fs-5w5s gives features that are not finite"):
        backbones.features(counted, images(1))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("net.pt2", "net.pt2: loading a .pt2 file can run code that is in it: export the network to ONNX"),
        (
            "net.h5",
            "net.h5: no backbone: give an ONNX file (.onnx), a checkpoint of metalstm (.safetensors), or timm:NAME",
        ),
        ("", "backbone '': give a file, for example net.onnx, or the name of a checkpoint"),
        (3, "backbone 3: give a file, for example net.onnx, or the name of a checkpoint"),
        (Path("no.safetensors"), "no checkpoint at no.safetensors"),
    ],
)
def test_what_is_no_backbone_is_refused(source, said):
    with pytest.raises(UserError) as error:
        backbones.load(source)
    assert str(error.value).startswith(said)
