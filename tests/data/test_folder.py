import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metalstm.classifier.network import to_x
from metalstm.data import SPLITS, Folder, fetch, load
from metalstm.episodes import EpisodeSampler
from metalstm.errors import Problems, UserError
from metalstm.images import Preprocessing
from metalstm.settings import Traits

from .makers import images_of, letter, make_folder, make_letters


def test_folder_without_lists(tmp_path):
    sets = load(f"folder:{make_folder(tmp_path / 'birds', n_classes=25)}")
    assert [len(sets.splits[split].classes) for split in SPLITS] == [16, 4, 5]
    assert len({name for part in sets.splits.values() for name in part.classes}) == 25
    assert sets.splits["meta-train"].image_shape == (3, 32, 32)
    assert sets.licence == "terms of the owner of the images"


def test_folder_with_three_classes_has_one_in_each_split(tmp_path):
    sets = load(f"folder:{make_folder(tmp_path / 'birds', n_classes=3)}")
    assert [len(sets.splits[split].classes) for split in SPLITS] == [1, 1, 1]


def test_folder_with_lists_leaves_other_classes_out(tmp_path):
    folder = make_folder(tmp_path / "birds")
    for split, text in zip(SPLITS, ("class3\nclass0\n", "\nclass1\r\n", "class4"), strict=True):
        (folder / f"{split}.txt").write_text(text)
    sets = load(f"folder:{folder}")
    assert [sets.splits[split].classes for split in SPLITS] == [("class0", "class3"), ("class1",), ("class4",)]
    assert len(sets.splits["meta-train"].images) == 12


def test_folder_image_is_cropped_upright_and_resized(tmp_path):
    folder = make_folder(tmp_path / "birds", size=(30, 50))
    # The left half of the stored picture is red; turned upright (orientation 6), it is the upper half.
    picture = Image.new("RGB", (60, 90), "blue")
    picture.paste("red", (0, 0, 30, 90))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "class0" / "a.jpg", exif=exif, quality=95)
    sets = load(f"folder:{folder}", image_size=16)
    stored = next(images_of(sets, split)["class0"] for split in SPLITS if "class0" in sets.splits[split].classes)
    assert stored.shape == (4, 16, 16, 3)
    expected = Image.open(folder / "class0" / "0.png").resize((16, 16), Image.Resampling.LANCZOS, box=(10, 0, 40, 30))
    np.testing.assert_array_equal(stored[0], np.asarray(expected))
    assert stored[3, 1, :, 0].min() > 240
    assert stored[3, -2, :, 2].min() > 240


def test_hidden_files_are_ignored(tmp_path):
    folder = make_folder(tmp_path / "birds")
    digest = load(f"folder:{folder}").digest
    (folder / ".git").mkdir()
    (folder / "class0" / ".DS_Store").write_bytes(b"hidden")
    assert load(f"folder:{folder}").digest == digest


def test_a_folder_is_decoded_again_if_a_file_has_changed(tmp_path, cache):
    folder = make_folder(tmp_path / "birds")
    digest = load(f"folder:{folder}").digest
    assert load(f"folder:{folder}").digest == digest
    assert len(list(cache.glob("*.npy"))) == 1
    (folder / "class0" / "0.png").write_bytes((folder / "class1" / "0.png").read_bytes())
    assert load(f"folder:{folder}").digest != digest


def test_the_digest_depends_on_splits_and_names(tmp_path):
    folder = make_folder(tmp_path / "birds")
    digests = set()
    for train, val in (("class0", "class1"), ("class1", "class0")):
        for split, label in zip(SPLITS, (train, val, "class2"), strict=True):
            (folder / f"{split}.txt").write_text(label)
        digests.add(load(f"folder:{folder}").digest)
    (folder / "class2").rename(folder / "class9")
    (folder / "meta-test.txt").write_text("class9")
    digests.add(load(f"folder:{folder}").digest)
    assert len(digests) == 3


def test_a_name_that_is_too_long_is_a_mistake():
    with pytest.raises(UserError, match=r"^cannot read x+ \(File name too long\): check its name and permissions$"):
        load("folder:" + "x" * 300)


def write_lists(folder: Path, train: str | None = "class0", val: str | None = "class1", test: str | None = "class2"):
    for split, text in zip(SPLITS, (train, val, test), strict=True):
        if text is not None:
            (folder / f"{split}.txt").write_text(text)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (
            lambda d: d.rename(d.parent / "gone"),
            "{d} is not a folder: name one with images in <class>/",
        ),
        (
            lambda d: [c.rename(d / f".{c.name}") for c in list(d.iterdir())],
            "{d} has no class folders: put the images of each class into {d}/<class>/",
        ),
        (
            lambda d: [(d / f"class{k}").rename(d / f".class{k}") for k in range(3)],
            "{d} has 2 classes, but the three splits need at least 3: add 1",
        ),
        (lambda d: (d / "class9").mkdir(), "class folder {d}/class9 has no images: add some, or remove it{or_skip}"),
        (
            lambda d: write_lists(d, val=None, test=None),
            "{d} has meta-train.txt but not meta-val.txt, meta-test.txt: write all three lists, or none",
        ),
        (
            lambda d: write_lists(d, val="class1\nclas2"),
            "{d}/meta-val.txt names 'clas2', but {d} has no such folder: correct the name",
        ),
        (
            lambda d: write_lists(d, val="../birds"),
            "{d}/meta-val.txt names '../birds', but {d} has no such folder: correct the name",
        ),
        (lambda d: write_lists(d, test="\n"), "{d}/meta-test.txt names no class: write one class name per line"),
        (
            lambda d: write_lists(d, test="class0"),
            "{d}: class 'class0' is in meta-train and in meta-test: keep one of them",
        ),
        (
            lambda d: write_lists(d, val="class1\nclass1"),
            "{d}: class 'class1' is in meta-val and in meta-val: keep one of them",
        ),
        (
            lambda d: (d / "class1" / "notes.jpg").write_text("no image"),
            "cannot read {d}/class1/notes.jpg as an image (no format that is known here): save it as JPEG or PNG, or "
            "remove it{or_skip}",
        ),
        (
            lambda d: (d / "class1" / "1.png").write_bytes((d / "class1" / "1.png").read_bytes()[:2000]),
            "cannot read {d}/class1/1.png as an image (image file is truncated): repair or remove it{or_skip}",
        ),
    ],
)
def test_faults_of_a_folder(tmp_path, prepare, message):
    folder = make_folder(tmp_path / "birds")
    prepare(folder)
    with pytest.raises(UserError) as error:
        load(f"folder:{folder}")
    assert str(error.value) == message.format(d=folder, or_skip=", or pass --skip-bad to go on without")


def spoil(folder: Path) -> list[str]:
    """Put in what folders of people have in them; gives the problems."""
    for name in ("notes.txt", "Thumbs.db", ".DS_Store"):
        (folder / "class0" / name).write_text("no image")
    (folder / "class0" / "9.jpg").write_text("no image")
    for path in (folder / "class2").iterdir():
        path.write_bytes(path.read_bytes()[:2000])
    (folder / "class9").mkdir()
    return [
        f"class folder {folder}/class9 has no images: add some, or remove it",
        f"cannot read {folder}/class0/9.jpg as an image (no format that is known here): save it as JPEG or PNG, or "
        "remove it",
        *(
            f"cannot read {folder}/class2/{k}.png as an image (image file is truncated): repair or remove it"
            for k in range(3)
        ),
    ]


@pytest.mark.parametrize("with_lists", [False, True])
def test_bad_images_and_classes_are_one_list_or_are_left_out(tmp_path, capsys, with_lists):
    folder, clean = (make_folder(tmp_path / name / "birds") for name in ("messy", "clean"))
    problems = spoil(folder)
    if with_lists:
        write_lists(folder, train="class0\nclass2\nclass3", val="class1\nclass9", test="class4")
        write_lists(clean, train="class0\nclass3", val="class1", test="class4")
    for _ in range(2):  # decoded, then from the cache
        with pytest.raises(Problems) as error:
            load(f"folder:{folder}")
        assert error.value.problems == problems
        assert str(error.value).splitlines() == [
            f"{folder}: 5 problems; mend them, or pass --skip-bad to go on without:",
            *(f"  {problem}" for problem in problems),
        ]
        assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value), "as other processes get it"
    capsys.readouterr()
    sets = load(f"folder:{folder}", skip_bad=True)
    assert capsys.readouterr().err.splitlines() == [
        f"{folder}: left out, as no images by their names: class0/Thumbs.db, class0/notes.txt",
        f"{folder}: goes on without these:",
        *(f"  {problem}" for problem in problems),
    ]
    if with_lists:
        assert sets.digest == load(f"folder:{clean}").digest
    assert sum(len(part.classes) for part in sets.splits.values()) == 4


def test_a_split_in_which_nothing_can_be_read(tmp_path):
    folder = make_folder(tmp_path / "birds")
    spoil(folder)
    write_lists(folder, val="class2")
    write_lists(folder, train="class1", val=None, test="class3")
    with pytest.raises(UserError) as error:
        load(f"folder:{folder}", skip_bad=True)
    assert str(error.value) == (f"meta-val of {folder} has no image that can be read: add classes with images to it")
    for path in folder.glob("class*/*"):
        path.write_text("no image")
    with pytest.raises(UserError, match=r"meta-train of .* has no image that can be read"):
        load(f"folder:{folder}", skip_bad=True)


def test_decompression_bomb(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "birds", n_classes=3, size=(40, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    with pytest.raises(Problems) as error:
        load(f"folder:{folder}")
    assert error.value.problems[0] == (
        f"cannot read {folder}/class0/0.png as an image (more pixels than Pillow reads): scale it down to 50 "
        "million pixels and sides of at most 65,535, or remove it"
    )


# Traits


@pytest.mark.parametrize(("ink", "paper"), [("black", "white"), ("white", "black"), ("#333", "#bbb")])
def test_drawings_have_no_mirrors(tmp_path, ink, paper):
    folder = make_letters(tmp_path / "letters", ink=ink, paper=paper)
    sets = load(f"folder:{folder}")
    assert sets.traits == Traits(mirrors=False)
    assert sets.splits["meta-train"].image_shape == (3, 32, 32)


def test_photos_have_mirrors(tmp_path):
    assert load(f"folder:{make_folder(tmp_path / 'birds')}").traits == Traits()


def test_a_few_drawings_among_photos_do_not_matter(tmp_path):
    folder = make_folder(tmp_path / "birds", n_classes=20)
    for k in range(9):
        letter(k).save(folder / f"class{k}" / "0.png")
    assert load(f"folder:{folder}").traits.mirrors


def test_what_the_user_says_goes_before_what_the_images_look_like(tmp_path):
    letters, birds = make_letters(tmp_path / "letters"), make_folder(tmp_path / "birds")
    assert load(f"folder:{letters}", traits=Traits()).traits == Traits()
    assert load(f"folder:{birds}", traits=Traits(mirrors=False, rotations=True)).traits.rotations
    # Traits other than `drawing` do not change what is read.
    assert load(f"folder:{letters}", traits=Traits()).digest == load(f"folder:{letters}").digest


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize(("ink", "paper"), [("black", "white"), ("#bbb", "#333")])
@pytest.mark.parametrize("traits", [None, Traits(drawing=True), Traits(drawing=True, centered=True)])
def test_training_and_classifier_see_the_same_pixels(tmp_path, traits, ink, paper, kind):
    folder = tmp_path / "letters"
    for k in range(5):
        (folder / f"letter{k}").mkdir(parents=True)
        for image in range(3):
            letter(100 * k + image, ink, paper).save(folder / f"letter{k}" / f"{image}.{kind}")
    sets = load(f"folder:{folder}", image_size=20, traits=traits)
    channels, size, _ = sets.splits["meta-train"].image_shape
    # As `Classifier` builds it from a checkpoint.
    preprocessing = Preprocessing(size, channels, sets.traits.drawing, sets.traits.centered)
    for split in SPLITS:
        for label, images in images_of(sets, split).items():
            files = [preprocessing(folder / label / f"{k}.{kind}") for k in range(3)]
            seen = to_x(torch.from_numpy(np.stack(files)), sets.traits.drawing)
            trained = torch.tensor(images).movedim(-1, 1).float().div(255)
            assert torch.equal(seen, trained)
    episode = EpisodeSampler(sets.splits["meta-train"], 2, 1, 1)[0]
    light = paper == "white" and traits is None
    assert (episode.support.x.mean() > 0.5) == light


def test_a_folder_of_drawings_read_as_drawings(tmp_path):
    folder = make_letters(tmp_path / "letters")
    plain, drawn = (load(f"folder:{folder}", traits=traits) for traits in (None, Traits(drawing=True, mirrors=False)))
    assert drawn.splits["meta-train"].image_shape == (1, 32, 32)
    assert drawn.digest != plain.digest
    centered = load(f"folder:{folder}", traits=Traits(drawing=True, mirrors=False, centered=True))
    assert centered.digest != drawn.digest
    assert load(f"folder:{folder}").digest == plain.digest  # each has an entry of its own in the cache
    dark = make_letters(tmp_path / "dark", ink="white", paper="black")
    turned = load(f"folder:{dark}", traits=Traits(drawing=True, mirrors=False))
    for split in SPLITS:
        one, other = (sets.splits[split].images.astype(int) for sets in (drawn, turned))
        assert np.abs(one - other).max() <= 1, "but for rounding, the color of the paper does not matter"
        assert one.mean() < 100


# Fetch and check


def test_a_folder_describes_itself(tmp_path):
    folder = Folder(make_folder(tmp_path / "birds", n_classes=25))
    assert folder.name == f"folder:{tmp_path / 'birds'}"
    assert folder.n_classes == (16, 4, 5)
    assert folder.image_shape == (3, 32, 32)
    assert folder.is_here(tmp_path)


def test_a_folder_cannot_be_fetched(tmp_path):
    folder = make_folder(tmp_path / "birds")
    with pytest.raises(UserError) as error:
        fetch(f"folder:{folder}")
    assert str(error.value) == f"'folder:{folder}' is a folder of your own: there is nothing to fetch"
