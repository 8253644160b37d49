import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import helpers
from metalstm import checkpoint, data, recipes
from metalstm.classifier import Classifier
from metalstm.classifier.inputs import as_list, make_task, read_batches
from metalstm.classifier.meta_learner import MetaLearner
from metalstm.classifier.network import BATCH
from metalstm.errors import UserError
from metalstm.images import Preprocessing
from metalstm.settings import Traits


def test_smaller_classes_are_repeated_and_all_are_shuffled(patterns):
    labels = np.array(patterns.labels)
    task = make_task(np.stack(patterns.support), labels, drawing=False, seed=0)
    support = task.support
    assert task.classes.tolist() == ["class 09", "class 10", "class 11"]
    assert task.counts == [5, 3, 1]
    assert support.y.bincount().tolist() == [5, 5, 5]
    assert [len(support.x[support.y == k].unique(dim=0)) for k in range(3)] == [5, 3, 1]
    assert support.y.tolist() != sorted(support.y.tolist()), "shuffled"
    other = make_task(np.stack(patterns.support), labels, drawing=False, seed=1)
    assert support.y.tolist() != other.support.y.tolist()


def test_large_classes_are_learned_from_in_part():
    """200 classes, one with 1,000 images: not 200,000 images are learned from, but 2,000."""
    counts = [1000, *[3] * 198, 20]
    labels = np.repeat(np.arange(200), counts)
    pixels = np.zeros((len(labels), 2, 2, 1), np.uint8)
    pixels[:, 0, 0, 0] = np.concatenate([np.arange(n) % 256 for n in counts])
    task = make_task(pixels, labels, drawing=False, seed=0)
    assert task.counts == counts
    assert task.support.y.bincount().tolist() == [10] * 200
    large, other = (
        each.support.x[each.support.y == 0, 0, 0, 0].unique()
        for each in (task, make_task(pixels, labels, drawing=False, seed=1))
    )
    assert 8 <= len(large) <= 10
    assert large.tolist() != other.tolist()
    small = make_task(pixels[:1003], labels[:1003], drawing=False, seed=0)
    assert small.support.y.bincount().tolist() == [1000, 1000], "up to 2,000 images all are learned from"


@pytest.mark.parametrize("traits", [Traits(), Traits(drawing=True), Traits(drawing=True, centered=True)])
@pytest.mark.parametrize("ink", ["black", "white"])
def test_a_classifier_sees_the_pixels_that_its_meta_learner_was_trained_on(drawings, tmp_path, traits, ink):
    """Of a user's own folder, whether or not the user says that the images are drawings."""
    images, labels = drawings(3, ink=ink, paper="gray" if ink == "white" else "beige")
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / "symbols" / label / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.crop((0, 0, 60, 50)).save(path)
    meta_sets = data.load(f"folder:{tmp_path / 'symbols'}", traits=traits)
    config = helpers.tiny_config(meta_sets, shared_head=True)
    checkpoint.save(
        tmp_path / "best.safetensors",
        checkpoint.method_tensors(recipes.build(config)),
        {"config": recipes.to_dict(config)},
    )
    learner = MetaLearner.load(tmp_path / "best.safetensors")
    for split in meta_sets.splits.values():  # one class each
        files = sorted((tmp_path / "symbols" / split.classes[0]).iterdir())
        pixels = np.stack([learner.preprocessing(path) for path in files])
        task = make_task(pixels, np.arange(len(files)), learner.preprocessing.drawing, seed=0)
        trained_on = torch.from_numpy(split.images[slice(*split.spans[0])].copy()).movedim(-1, -3).float() / 255
        assert torch.equal(task.support.x, trained_on[task.support.y])


@pytest.mark.data
def test_a_classifier_sees_omniglots_files_as_the_sampler_gives_them(data_root):
    learner = MetaLearner.load("meta-lstm-omniglot-5w1s")
    traits = recipes.from_dict(learner.meta["config"]).traits
    images = data.load("omniglot", data_root, traits=traits).splits["meta-train"]
    with zipfile.ZipFile(data_root / "omniglot" / "images_background.zip") as archive:
        for label, (start, stop) in list(zip(images.classes, images.spans, strict=True))[::300]:
            members = sorted(name for name in archive.namelist() if f"/{label}/" in name and name.endswith(".png"))
            files = [Image.open(io.BytesIO(archive.read(name))) for name in members]
            pixels = np.stack([learner.preprocessing(file) for file in files])
            task = make_task(pixels, np.arange(len(files)), learner.preprocessing.drawing, seed=0)
            expected = torch.from_numpy(images.images[start:stop].copy()).movedim(-1, -3).float() / 255
            assert torch.equal(task.support.x, expected[task.support.y])


def test_one_image_is_no_list():
    for one in ("a.png", Path("a.png"), Image.new("L", (4, 4)), np.zeros((4, 4, 3), np.uint8)):
        with pytest.raises(UserError, match="one image where several are expected"):
            as_list(one)
    assert len(as_list(np.zeros((3, 5, 5), np.uint8))) == 3, "three gray images"
    assert len(as_list(torch.zeros(3, 4, 4))) == 3
    assert as_list(iter("ab")) == ["a", "b"]


def test_files_are_read_a_batch_at_a_time_and_broken_ones_are_named(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(BATCH + 2)]
    for path in paths[:-1]:
        Image.new("L", (20, 20)).save(path)
    paths[1].write_text("no")
    first, second = read_batches(paths, Preprocessing(16, 3, drawing=False), "reading")
    assert first.good == [0, *range(2, BATCH)]
    assert first.pixels.shape == (BATCH - 1, 16, 16, 3)
    assert first.faults == [
        f"cannot read {paths[1]} as an image (no format that is known here): save it as JPEG or PNG, or remove it"
    ]
    assert (second.good, len(second.pixels)) == ([BATCH], 1)
    assert second.faults == [
        f"cannot read {paths[-1]} as an image (No such file or directory): check its name and permissions"
    ]


def test_a_classifier_answers_for_the_files_that_it_can_read(make, patterns, tmp_path):
    fitted = Classifier(make()).fit(patterns.support, patterns.labels)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, image in zip(paths[:2], patterns.query, strict=False):
        Image.fromarray(image).save(path)
    read, probabilities, faults = fitted.predict_files(paths)
    assert read == paths[:2]
    assert (probabilities == fitted.predict_proba(paths[:2])).all()
    assert len(faults) == 1
    read, probabilities, faults = fitted.predict_files([paths[2]])
    assert (read, probabilities.shape, len(faults)) == ([], (0, 3), 1)
    assert fitted.predict_files([])[1].shape == (0, 3)
