"""Random changes of training images."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from metalstm.augmentation import augmented, crop, jitter, warp
from metalstm.episodes import Episode, Labeled, Query, Support
from metalstm.settings import TrainingSettings

X = torch.rand(5, 3, 16, 20, generator=torch.Generator().manual_seed(0))
STRONG = TrainingSettings(crop=3, jitter=0.4, affine=0.1, elastic=1.0)
BATCH = Labeled(X, torch.arange(5))
EPISODE = Episode(Support(X[None, :2], torch.arange(2)[None], 2), Query(X[None, 2:], torch.tensor([[0, 1, 1]])))


def test_without_settings_a_batch_is_itself():
    assert augmented(BATCH, TrainingSettings()) is BATCH
    assert augmented(EPISODE, TrainingSettings()) is EPISODE


@pytest.mark.parametrize("name", ["crop", "jitter", "affine", "elastic"])
def test_each_setting_changes_each_image_and_nothing_else(name):
    settings = replace(TrainingSettings(), **{name: getattr(STRONG, name)})
    torch.manual_seed(2)
    changed = augmented(BATCH, settings)
    assert changed.x.shape == X.shape
    assert torch.equal(changed.y, BATCH.y)
    assert all(not torch.equal(one, other) for one, other in zip(changed.x, X, strict=True))
    assert changed.x.min() >= 0
    assert changed.x.max() <= 1


def test_images_of_support_and_queries_change_alike_and_labels_do_not():
    changed = augmented(EPISODE, STRONG)
    for part, before in ((changed.support, EPISODE.support), (changed.query, EPISODE.query)):
        assert part.x.shape == before.x.shape
        assert not torch.allclose(part.x, before.x)
        assert torch.equal(part.y, before.y)
    assert changed.support.n_way == 2


def test_the_seed_of_torch_decides():
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return augmented(BATCH, STRONG).x

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_a_crop_is_a_window_of_the_padded_image_and_all_windows_come():
    padded = F.pad(X, (2, 2, 2, 2))
    windows = {(top, left): padded[:, :, top : top + 16, left : left + 20] for top in range(5) for left in range(5)}
    seen = set()
    torch.manual_seed(0)
    for _ in range(60):
        for k, image in enumerate(crop(X, 2)):
            (place,) = [place for place, window in windows.items() if torch.equal(window[k], image)]
            seen.add(place)
    assert seen == set(windows)


def test_jitter_of_no_strength_changes_nothing_and_gray_stays_gray():
    torch.testing.assert_close(jitter(X, 0.0), X)
    gray = X[:, :1].expand(-1, 3, -1, -1)
    changed = jitter(gray, 0.4)
    torch.testing.assert_close(changed[:, :1].expand_as(changed), changed)
    assert jitter(X[:, :1], 0.4).shape == X[:, :1].shape


def test_a_warp_of_no_strength_changes_nothing_and_a_small_one_little():
    torch.testing.assert_close(warp(X, 0.0, 0.0), X, rtol=1e-4, atol=1e-5)
    smooth = F.interpolate(torch.rand(5, 1, 3, 3, generator=torch.Generator().manual_seed(0)), (32, 32), mode="bicubic")
    inside = (slice(None), slice(None), slice(6, -6), slice(6, -6))
    for changes in ((0.01, 0.0), (0.0, 0.1)):
        gap = (warp(smooth, *changes) - smooth)[inside].abs().max()
        assert 0 < gap < 0.1
