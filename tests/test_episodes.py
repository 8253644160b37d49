import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalstm.data import ImagesByClass
from metalstm.episodes import BatchSampler, EpisodeSampler
from metalstm.errors import UserError


def numbered(sizes: list[int]) -> ImagesByClass:
    """Classes of these sizes; an image's first pixels are its class and its number within the class."""
    images = np.zeros((sum(sizes), 16, 16, 1), np.uint8)
    stops = np.cumsum(sizes)
    spans = np.stack([stops - sizes, stops], 1)
    for label, (start, stop) in enumerate(spans):
        images[start:stop, 0, 0, 0] = label
        images[start:stop, 0, 1, 0] = np.arange(stop - start)
    return ImagesByClass(images, tuple(f"class {k}" for k in range(len(sizes))), spans)


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(6, 20), min_size=5, max_size=12),
    n_way=st.integers(2, 5),
    n_shot=st.integers(1, 3),
    n_query=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
    index=st.integers(0, 2**32 - 1),
)
def test_episode_follows_the_protocol(sizes, n_way, n_shot, n_query, seed, index):
    episode = EpisodeSampler(numbered(sizes), n_way, n_shot, n_query, seed)[index]
    support, query = episode.support, episode.query
    assert support.x.shape == (1, n_way * n_shot, 1, 16, 16)
    assert query.x.shape == (1, n_way * n_query, 1, 16, 16)
    assert support.x.min() >= 0
    assert support.x.max() <= 1
    pixels = torch.cat([support.x, query.x], 1)[0, :, 0, 0, :2].mul(255).round().long()
    labels = torch.cat([support.y, query.y], 1)[0]
    assert len({tuple(p) for p in pixels.tolist()}) == n_way * (n_shot + n_query)  # no image twice
    for label in range(n_way):
        assert pixels[labels == label, 0].unique().numel() == 1  # one class a label
    assert pixels[:, 0].unique().numel() == n_way  # one label a class
    assert support.y[0].bincount(minlength=n_way).tolist() == [n_shot] * n_way
    assert query.y[0].bincount(minlength=n_way).tolist() == [n_query] * n_way


def test_an_episode_depends_on_seed_and_number_alone():
    images = numbered([20] * 10)
    one, other = EpisodeSampler(images, 5, 2, 3, seed=1), EpisodeSampler(images, 5, 2, 3, seed=1)
    batch = one.batch([7, 3, 11])
    for place, number in enumerate([7, 3, 11]):
        single = other[number]
        assert torch.equal(batch.support.x[place], single.support.x[0])
        assert torch.equal(batch.support.y[place], single.support.y[0])
        assert torch.equal(batch.query.x[place], single.query.x[0])
    assert not torch.equal(one[0].support.x, one[1].support.x)
    assert not torch.equal(one[0].support.x, EpisodeSampler(images, 5, 2, 3, seed=2)[0].support.x)


def test_episodes_are_the_same_forever():
    sampler = EpisodeSampler(numbered([20] * 10), 5, 2, 3, seed=5)
    digest = hashlib.sha256()
    for number in range(20):
        episode = sampler[number]
        for tensor in (episode.support.x, episode.query.x):
            digest.update((tensor * 255).round().byte().numpy().tobytes())
        digest.update(episode.support.y.numpy().astype("<i8").tobytes())
    assert digest.hexdigest() == "9fb0ebd7f2abf8a52c0b3242c5da25089c8284a60a19f84885c87d096fec1e4e"


def grouped() -> ImagesByClass:
    """Groups of 3, 5 and 6 classes, each class with 8 images, the groups' classes mixed."""
    groups = [name for k in range(6) for name, n in (("a", 3), ("b", 5), ("c", 6)) if k < n]
    return replace(numbered([8] * len(groups)), name="meta-val", groups=tuple(groups))


def test_the_classes_of_an_episode_are_of_one_group():
    images = grouped()
    sampler = EpisodeSampler(images, 5, 1, 2, within_group=True)
    groups = [{images.groups[k] for k in sampler.classes(number)} for number in range(50)]
    assert all(len(own) == 1 for own in groups)
    assert set().union(*groups) == {"b", "c"}, "all that have 5 classes"
    assert len({tuple(sorted(sampler.classes(number))) for number in range(50)}) == 7, "all choices, 1 + 6"
    episode = sampler[3]
    shown = (episode.query.x[0, :, 0, 0, 0] * 255).round().int().unique().tolist()
    assert shown == sorted(sampler.classes(3))
    mixed = EpisodeSampler(images, 5, 1, 2)
    plain = EpisodeSampler(replace(images, groups=()), 5, 1, 2)
    assert torch.equal(mixed[3].support.x, plain[3].support.x), "groups change nothing by themselves"


def test_episodes_within_groups_are_the_same_forever():
    sampler = EpisodeSampler(grouped(), 4, 1, 2, seed=5, within_group=True)
    assert [sampler.classes(number) for number in range(3)] == [[4, 9, 11, 1], [2, 12, 13, 5], [5, 12, 8, 13]]


def test_a_query_is_not_by_the_hand_that_drew_the_support_images_of_its_class():
    """Image k of a class is by drawer k, in Omniglot."""
    episode = EpisodeSampler(grouped(), 5, 3, 5, within_group=True)[0]
    for label in range(5):
        support, query = (
            set((part.x[part.y == label][:, 0, 0, 1] * 255).round().int().tolist())
            for part in (episode.support, episode.query)
        )
        assert (len(support), len(query)) == (3, 5)
        assert not support & query


def test_groups_that_are_missing_or_too_small():
    with pytest.raises(UserError) as error:
        EpisodeSampler(numbered([8] * 6), 5, 1, 2, within_group=True)
    assert str(error.value) == "--within-group: the classes of the set have no groups: leave it out"
    with pytest.raises(UserError) as error:
        EpisodeSampler(grouped(), 7, 1, 2, within_group=True)
    assert str(error.value) == (
        "7-way episodes within a group need 7 classes in it, but the largest of meta-val has 6: pass --n-way 6, or "
        "leave out --within-group"
    )


def test_support_is_shuffled():
    sampler = EpisodeSampler(numbered([20] * 10), 5, 5, 0)
    orders = {tuple(sampler[number].support.y[0].tolist()) for number in range(10)}
    assert len(orders) == 10


def test_every_class_and_image_gets_its_turn():
    sampler = EpisodeSampler(numbered([6] * 8), 2, 1, 1)
    batch = sampler.batch(range(400))
    seen = torch.cat([batch.support.x, batch.query.x], 1)[:, :, 0, 0, :2].mul(255).round().long().flatten(0, 1)
    assert seen.unique(dim=0).shape[0] == 8 * 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, 1, 1), "6-way episodes need 6 classes, but the set has 5: add 1, or pass a smaller --n-way"),
        (
            (5, 5, 15),
            "5-shot with 15 queries needs 20 images of each of 5 classes, but 4 of the set have as many ('class 2' has "
            "3): add images, or pass --n-shot 1 --n-query 2",
        ),
        (
            (5, 2, 15),
            "2-shot with 15 queries needs 17 images of each of 5 classes, but 4 of the set have as many ('class 2' has "
            "3): add images, or pass --n-query 1",
        ),
        (
            (5, 3, 1),
            "3-shot with 1 queries needs 4 images of each of 5 classes, but 4 of the set have as many ('class 2' has "
            "3): add images, or pass --n-shot 1 --n-query 2",
        ),
        (
            (4, 15, 15),
            "15-shot with 15 queries needs 30 images of each of 4 classes, but 0 of the set have as many ('class 0' "
            "has 20, 'class 1' has 20, 'class 2' has 3 and 2 more have too few): add images, or pass --n-query 5",
        ),
        ((1, 1, 1), "--n-way 1: must be at least 2"),
        ((5, 0, 1), "--n-shot 0: must be at least 1"),
        ((5, 1, -1), "--n-query -1: must be at least 0"),
    ],
)
def test_what_cannot_be_sampled_is_refused_with_numbers(arguments, message):
    with pytest.raises(UserError) as error:
        EpisodeSampler(numbered([20, 20, 3, 20, 20]), *arguments)
    assert str(error.value) == message


def test_a_class_with_too_few_images_is_left_out_of_episodes_and_one_line_says_so(capsys):
    sizes = [20, 20, 3, 20, 20]
    images = replace(numbered(sizes), name="a set of its own")
    sampler = EpisodeSampler(images, 4, 1, 5, seed=3)
    whole = EpisodeSampler(numbered(sizes).subset([f"class {k}" for k in (0, 1, 3, 4)]), 4, 1, 5, seed=3)
    for number in range(5):
        assert torch.equal(sampler[number].query.x, whole[number].query.x)
        assert sampler.classes(number) == whole.classes(number)
    assert sampler.images.classes == ("class 0", "class 1", "class 3", "class 4")
    EpisodeSampler(images, 2, 1, 5)
    said = "left out of episodes of a set of its own, where a class needs 6 images: 'class 2' has 3"
    assert capsys.readouterr().err == f"{said}\n", "once"


def test_a_device_takes_only_the_own_images_along():
    images = numbered([7, 8, 9, 10])
    subset = images.subset(images.classes[1:])
    here, there = EpisodeSampler(subset, 2, 1, 2), EpisodeSampler(subset, 2, 1, 2, device="meta")
    assert len(there.images.images) == 8 + 9 + 10
    batch, expected = there.batch(range(3)), here.batch(range(3))
    for one, other in ((batch.support, expected.support), (batch.query, expected.query)):
        assert one.x.device.type == one.y.device.type == "meta"
        assert one.x.shape == other.x.shape
    # The meta device holds no values: the same images as they are numbered there, on the CPU.
    compact = EpisodeSampler(subset.compact(), 2, 1, 2).batch(range(20))
    assert torch.equal(compact.support.x, here.batch(range(20)).support.x)
    assert torch.equal(compact.query.x, here.batch(range(20)).query.x)


def test_the_classes_of_an_episode_are_those_of_its_labels():
    sampler = EpisodeSampler(numbered([8] * 9), 4, 2, 3, seed=5)
    for number in range(3):
        support = sampler[number].support
        classes = support.x[0, :, 0, 0, 0].mul(255).round().long()
        assert torch.equal(torch.tensor(sampler.classes(number))[support.y[0]], classes)


def test_mini_batches_hold_images_of_all_classes_with_their_labels():
    images = numbered([3, 7, 5]).subset(["class 0", "class 2"])
    sampler = BatchSampler(images, 400, seed=3)
    batch = sampler[0]
    assert batch.x.shape == (400, 1, 16, 16)
    pixels = batch.x[:, 0, 0, :2].mul(255).round().long()
    assert torch.equal(torch.tensor([0, 2])[batch.y], pixels[:, 0])
    assert {tuple(p) for p in pixels.tolist()} == {(0, k) for k in range(3)} | {(2, k) for k in range(5)}


def test_a_mini_batch_depends_on_seed_and_number_alone():
    one, other = (BatchSampler(numbered([9] * 4), 6, seed=1) for _ in range(2))
    both = one.batch(range(4, 6))
    assert torch.equal(both.x, torch.cat([other[4].x, other[5].x]))
    assert torch.equal(both.y, torch.cat([other[4].y, other[5].y]))
    assert not torch.equal(one[4].x, one[5].x)
    assert not torch.equal(one[4].x, BatchSampler(numbered([9] * 4), 6, seed=2)[4].x)
