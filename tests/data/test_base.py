import numpy as np
import pytest

from metalstm import data
from metalstm.data.base import SPLITS, Dataset, ImagesByClass, MetaSets, check_disjoint, permuted
from metalstm.errors import UserError
from metalstm.settings import Traits

from .makers import images_of, make_folder


def toy() -> ImagesByClass:
    images = np.arange(5 * 2 * 2, dtype=np.uint8).reshape(5, 2, 2, 1)
    return ImagesByClass(images, ("a", "b"), np.array([[0, 2], [2, 5]]), groups=("first", "second"))


def test_image_shape_has_channels_first():
    assert ImagesByClass(np.zeros((1, 4, 5, 3), np.uint8), ("a",), np.array([[0, 1]])).image_shape == (3, 4, 5)


def test_subset_shares_images_and_keeps_the_order():
    whole = toy()
    part = whole.subset(["b"])
    assert part.classes == ("b",)
    assert part.spans.tolist() == [[2, 5]]
    assert part.images is whole.images
    assert whole.subset(["b", "a"]).classes == ("a", "b")


def test_subset_with_an_unknown_class():
    with pytest.raises(UserError) as error:
        toy().subset(["a", "bb"])
    assert str(error.value) == "unknown class 'bb', did you mean 'b'? allowed: a, b"


def test_rotated_makes_new_classes_of_the_own_images_only():
    turned = toy().subset(["b"]).rotated()
    assert turned.classes == ("b", "b@90", "b@180", "b@270")
    assert turned.spans.tolist() == [[0, 3], [3, 6], [6, 9], [9, 12]]
    assert not turned.images.flags.writeable
    for turns in range(4):
        expected = np.rot90(toy().images[2:5], turns, axes=(1, 2))
        np.testing.assert_array_equal(turned.images[3 * turns : 3 * turns + 3], expected)


def test_mirrored_doubles_the_own_images_of_each_class():
    both = toy().subset(["b"]).mirrored()
    assert both.classes == ("b",)
    assert both.spans.tolist() == [[0, 6]]
    assert not both.images.flags.writeable
    np.testing.assert_array_equal(both.images[:3], toy().images[2:5])
    np.testing.assert_array_equal(both.images[3:], toy().images[2:5, :, ::-1])


def test_compact_holds_the_own_images_only():
    part = toy().subset(["b"]).compact()
    assert part.spans.tolist() == [[0, 3]]
    assert not part.images.flags.writeable
    np.testing.assert_array_equal(part.images, toy().images[2:5])


def test_groups_stay_with_their_classes():
    part = toy().subset(["b"])
    assert part.groups == part.compact().groups == part.mirrored().groups == ("second",)
    assert toy().rotated().groups[:4] == ("first", "second", "first@90", "second@90")
    without = ImagesByClass(toy().images, ("a", "b"), toy().spans)
    assert without.subset(["b"]).groups == without.rotated().groups == ()


def test_a_permutation_that_is_always_the_same():
    names = [f"{k:03}" for k in range(964)]
    assert sorted(permuted(names)[:164])[:5] == ["005", "008", "014", "027", "030"]
    assert permuted(reversed(names)) == permuted(names)


def test_no_class_may_be_in_two_splits():
    with pytest.raises(UserError) as error:
        check_disjoint("birds", {"meta-train": ["a", "b"], "meta-val": ["c"], "meta-test": ["b"]})
    assert str(error.value) == "birds: class 'b' is in meta-train and in meta-test: keep one of them"


@pytest.mark.parametrize(
    ("name", "short"),
    [("omniglot", "omniglot"), ("folder:/home/me/birds/", "birds"), ("folder:birds", "folder-birds")],
)
def test_short_name(name, short):
    assert MetaSets(name, {}, "", "").short_name == short


class InMemory(Dataset):
    """The images of a folder, passed on as arrays."""

    name = "in-memory"
    licence = "none"
    traits = Traits(rotations=True)

    def __init__(self, sets: MetaSets):
        self.sets = sets

    def load(self, root, size):
        # In reverse order, because the order must not matter.
        return self.from_arrays({split: dict(reversed(images_of(self.sets, split).items())) for split in SPLITS})


def test_arrays_give_the_digest_of_the_same_images_in_files(tmp_path):
    folder = data.load(f"folder:{make_folder(tmp_path / 'birds')}")
    sets = InMemory(folder).load(tmp_path, 32)
    assert (sets.name, sets.licence, sets.traits) == ("in-memory", "none", Traits(rotations=True))
    assert sets.digest == folder.digest
    for split in SPLITS:
        assert sets.splits[split].name == split
        assert sets.splits[split].classes == folder.splits[split].classes
        assert not sets.splits[split].images.flags.writeable
        for label, images in images_of(sets, split).items():
            np.testing.assert_array_equal(images, images_of(folder, split)[label])


def test_a_data_set_without_files_needs_no_code_to_fetch_and_check(tmp_path):
    dataset = InMemory(MetaSets("", {}, "", ""))
    assert dataset.is_here(tmp_path)
    assert dataset.fetch(tmp_path) == dataset.check(tmp_path) == []
