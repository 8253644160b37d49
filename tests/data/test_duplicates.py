import numpy as np
import pytest

from helpers import numbered
from metalstm import data
from metalstm.data.duplicates import Place, across_splits, replaced


def test_finds_what_is_in_two_splits_and_nothing_else():
    one, two, three = [numbered([4, 3]), numbered([2, 2]), numbered([5])]
    for split, base in ((one, 10), (two, 20), (three, 30)):
        split.images[:, 1, 1, 0] = base  # no two splits share an image yet
    assert across_splits({"meta-train": one, "meta-val": two, "meta-test": three}) == []
    one.images[2] = one.images[1]  # twice in one split: no leak
    two.images[3] = one.images[5]
    three.images[4] = one.images[5]
    assert across_splits({"meta-train": one, "meta-val": two, "meta-test": three}) == [
        [
            Place("meta-train", "class 1", 1, 5),
            Place("meta-val", "class 1", 1, 3),
            Place("meta-test", "class 0", 4, 4),
        ]
    ]


def test_replaced_images_are_others_of_the_same_class():
    images = numbered([3, 3])
    other = replaced(images, [1, 2, 5])
    assert other.images[:, 0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert other.images[:, 0, 1, 0].tolist() == [0, 0, 0, 0, 1, 0]  # the class's next one, from its start again
    assert images.images[1, 0, 1, 0] == 1
    assert np.array_equal(other.spans, images.spans)


@pytest.mark.data
@pytest.mark.parametrize(("name", "n_pairs"), [("cifar-fs", 15), ("fc100", 3)])
def test_cifar_holds_some_images_twice(name, n_pairs, data_root):
    groups = across_splits(data.load(name, data_root).splits)
    assert [len(group) for group in groups] == [2] * n_pairs
