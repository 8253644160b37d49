import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

import helpers
from cli.examples import COLORS, paint
from helpers import flags
from metalstm import checkpoint
from metalstm.classifier import Classifier
from metalstm.errors import Problems


def test_adapt_reports_images_meta_learner_file_and_accuracy(adapted, colors):
    status, out, err = adapted
    assert (status, out) == (0, ""), err
    assert err.splitlines() == [
        "photos: 3 blue [b], 3 green, 2 red",
        "meta-learner: meta-lstm-cifar-fs-resnet12-5w5s (for photos, 2.67 a class; --checkpoint takes another)",
        "photos.safetensors: the classifier; now: metalstm predict photos.safetensors IMAGES",
        "accuracy on images like these: 100 % (95 % interval 68 to 100 %), by 3-fold cross-validation on 8 images",
    ]
    assert (colors / "photos.safetensors").is_file()


def test_adapt_takes_a_checkpoint_and_says_why_there_is_no_estimate(colors, commands, tmp_path):
    for name, color in COLORS.items():
        paint(tmp_path / "few" / name / "1.png", color, 1)
    out = tmp_path / "deep" / "made.safetensors"
    words = ("adapt", tmp_path / "few", *helpers.flags(checkpoint="meta-lstm-omniglot-5w1s", out=out, seed=4))
    status, _, err = commands(*words)
    assert status == 0, err
    assert err.splitlines() == [
        f"{tmp_path}/few: 1 blue [b], 1 green, 1 red",
        f"{out}: the classifier; now: metalstm predict {out} IMAGES",
        "accuracy on images like these: unknown: an estimate of the accuracy needs 2 images per class, but blue [b] "
        "has 1",
    ]
    meta = Classifier.load(out).meta
    assert (meta["checkpoint"], meta["seed"]) == ("meta-lstm-omniglot-5w1s", 4)


@pytest.fixture
def messy(colors, tmp_path):
    """`photos` with all that folders of people have in them."""
    photos = shutil.copytree(colors / "photos", tmp_path / "photos")
    for name in ("notes.txt", "Thumbs.db", ".DS_Store", "._0.png", "7.heic"):
        (photos / "green" / name).write_text("no image")
    (photos / "green" / "8.jpg").write_text("no image")
    (photos / "red" / "9.PNG").write_bytes((photos / "red" / "0.png").read_bytes()[:900])
    (photos / "yellow").mkdir()
    return photos


def test_adapt_names_all_problems_at_once_or_goes_on_without(messy, colors, commands, tmp_path):
    status, out, err = commands("adapt", "photos", cwd=tmp_path)
    assert (status, out) == (2, "")
    problems = [
        "  class folder photos/yellow has no images: add some, or remove it",
        "  cannot read photos/green/8.jpg as an image (no format that is known here): save it as JPEG or PNG, or "
        "remove it",
        "  cannot read photos/red/9.PNG as an image (image file is truncated): repair or remove it",
    ]
    assert err.splitlines() == [
        "metalstm: photos: 3 problems; mend them, or pass --skip-bad to go on without:",
        *problems,
    ]
    assert not (tmp_path / "photos.safetensors").exists()
    status, out, err = commands("adapt", "photos", "--skip-bad", cwd=tmp_path)
    assert (status, out) == (0, ""), err
    assert err.splitlines()[:6] == [
        "photos: left out, as no images by their names: green/7.heic, green/Thumbs.db, green/notes.txt",
        "photos: goes on without these:",
        *problems,
        "photos: 3 blue [b], 3 green, 2 red",
    ]
    status, out, _ = commands("adapt", "photos", "--skip-bad", "--report", "-", cwd=tmp_path)
    assert json.loads(out)["left_out"] == [problem.strip() for problem in problems]
    commands("adapt", colors / "photos", "--out", tmp_path / "clean.safetensors")
    helpers.assert_same_tensors(tmp_path / "photos.safetensors", tmp_path / "clean.safetensors")


def test_a_classifier_goes_on_without_bad_images(messy, colors):
    def files(folder):
        return [path for path in sorted(folder.glob("*/*")) if path.suffix in (".png", ".jpg", ".PNG")]

    def labels(folder):
        return [path.parent.name for path in files(folder)]

    classifier = Classifier(skip_bad=True).fit(files(messy), labels(messy))
    clean = Classifier().fit(files(colors / "photos"), labels(colors / "photos"))
    assert len(classifier.left_out_) == 3, "._0.png, 8.jpg and 9.PNG"
    assert clean.left_out_ == []
    new = sorted((colors / "new").iterdir())
    assert (classifier.predict_proba(new) == clean.predict_proba(new)).all()
    assert str(classifier.estimate()) == str(clean.estimate())
    with pytest.raises(Problems) as error:
        Classifier().fit(files(messy), labels(messy))
    assert len(error.value.problems) == 3
    with pytest.raises(Problems) as error:
        classifier.predict([messy / "green" / "8.jpg", messy / "red" / "9.PNG"])
    assert str(error.value).startswith("the images: 2 problems; mend them, or call predict_files")


def test_adapt_names_what_goes_wrong_and_writes_all_figures(colors, commands, tmp_path):
    photos = shutil.copytree(colors / "photos", tmp_path / "photos")
    for k in range(3, 6):
        for name, color in COLORS.items():
            paint(photos / name / f"{k}.png", color, 50 * k + len(name))
    shutil.move(photos / "red" / "0.png", photos / "green" / "wrong.png")
    status, out, err = commands("adapt", "photos", "--report", "-", cwd=tmp_path)
    assert status == 0, err
    said = dict(line.split(": ", 1) for line in err.splitlines() if ": " in line)
    assert said["least accurate"] == "green 86 %"
    assert said["most often confused"] == "green taken for red 1 times"
    assert said["may be mislabeled"] == "photos/green/wrong.png looks like red"
    values = json.loads(out)
    assert values["may_be_mislabeled"][0]["image"] == "photos/green/wrong.png"
    assert values["confused"] == [{"class": "green", "taken_for": "red", "times": 1}]
    assert values["classes"]["green"]["images"] == 7
    assert list(values["learning_curve"]) == ["1", "2", "4"]
    assert values["accuracy"]["images"] == sum(each["images"] for each in values["classes"].values())


@pytest.mark.parametrize("new", ["green", "yellow"])
def test_images_and_classes_are_added_as_if_they_had_been_there(colors, commands, tmp_path, new):
    """Bit by bit, old images first. A file that keeps no images refuses."""
    photos, more = shutil.copytree(colors / "photos", tmp_path / "photos"), tmp_path / "more"
    paint(more / new / "9.png", (230, 220, 40), 1)
    status, _, err = commands("adapt", "photos", "--out", "x.safetensors", cwd=tmp_path)
    assert status == 0, err
    assert commands.refusal("adapt", "more", "--add", "x.safetensors", cwd=tmp_path) == (
        "this classifier does not keep its images: adapt to all of them anew, with --keep-images"
    )
    small = (tmp_path / "x.safetensors").stat().st_size
    commands("adapt", "photos", "--out", "x.safetensors", "--keep-images", cwd=tmp_path)
    assert (tmp_path / "x.safetensors").stat().st_size > small + 8 * 32 * 32 * 3
    status, _, err = commands("adapt", "more", "--add", "x.safetensors", cwd=tmp_path)
    assert status == 0, err
    assert ("1 yellow" if new == "yellow" else "4 green") in err
    shutil.copytree(more, photos, dirs_exist_ok=True)
    words = flags(checkpoint="meta-lstm-cifar-fs-resnet12-5w5s", out="all.safetensors", keep_images=True)
    commands("adapt", "photos", *words, cwd=tmp_path)
    helpers.assert_same_tensors(tmp_path / "x.safetensors", tmp_path / "all.safetensors")
    status, out, _ = commands("predict", "x.safetensors", colors / "new", "--csv", "-", cwd=tmp_path)
    assert (status, out.count("\n")) == (0, 4)
    refused = commands.refusal("adapt", "more", "--add", "x.safetensors", "--checkpoint", "y", cwd=tmp_path)
    assert refused == "--add takes the meta-learner of the classifier: leave out --checkpoint"
    refused = commands.refusal("adapt", "more", "--add", "x.safetensors", "--framing", "crop", cwd=tmp_path)
    assert refused == "--add takes the framing of the classifier: leave out --framing"


def test_kept_images_that_are_damaged_are_refused(colors, commands, tmp_path):
    commands("adapt", colors / "photos", "--out", tmp_path / "x.safetensors", "--keep-images")
    tensors, meta = checkpoint.load(tmp_path / "x.safetensors")
    for change in (
        {"kept.y": tensors["kept.y"] + 1},
        {"kept.y": tensors["kept.y"][:-1].contiguous()},
        {"kept.pixels": tensors["kept.pixels"][:, 1:].contiguous()},
        {"kept.pixels": tensors["kept.pixels"].float()},
    ):
        checkpoint.save(tmp_path / "y.safetensors", tensors | change, meta)
        assert "y.safetensors" in commands.refusal("predict", tmp_path / "y.safetensors", colors / "new")


def test_what_adapt_refuses(colors, commands, tmp_path):
    def refusal(*words):
        return commands.refusal("adapt", *words, cwd=tmp_path)

    assert refusal("nowhere") == "nowhere is not a folder: name one with images in <class>/"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert refusal("loop") == "loop is not a folder: name one with images in <class>/"
    assert refusal("") == "metalstm adapt has an empty word: a name or value is missing, or a variable is not set"
    (tmp_path / "empty").mkdir()
    assert refusal("empty") == "empty has no class folders: put the images of each class into empty/<class>/"
    (tmp_path / "one" / "red").mkdir(parents=True)
    status, _, err = commands("adapt", "one", cwd=tmp_path)
    assert (status, err.splitlines()) == (
        2,
        [
            "metalstm: one: 2 problems; mend them, or pass --skip-bad to go on without:",
            "  class folder one/red has no images: add some, or remove it",
            "  0 classes: give 2 to 200",
        ],
    )
    paint(tmp_path / "one" / "red" / "1.png", (200, 0, 0), 1)
    assert refusal("one") == "1 class: give 2 to 200"
    (tmp_path / "one").rename(tmp_path / "two")
    (tmp_path / "two" / "green").mkdir()
    paint(tmp_path / "two" / "green" / "1.png", (0, 200, 0), 1)
    (tmp_path / "two" / "red" / "2.jpg").touch()
    assert refusal("two") == (
        "cannot read two/red/2.jpg as an image (it is empty): remove it, or pass --skip-bad to go on without"
    )
    assert refusal("two", "--checkpoint", "meta-lstm-omniglot-5w2s") == (
        "unknown checkpoint 'meta-lstm-omniglot-5w2s', did you mean 'meta-lstm-omniglot-5w5s'? allowed: "
        + ", ".join(checkpoint.shipped())
    )
    assert refusal(colors / "photos", "--out", tmp_path) == (
        f"--out {tmp_path} is a folder: name a file, for example {tmp_path}/classifier.safetensors"
    )


def test_adapt_learns_on_a_backbone_and_says_which_head_and_why(colors, commands, tmp_path):
    out, backbone = tmp_path / "made.safetensors", checkpoint.shipped()["meta-lstm-cifar-fs-5w1s"]
    own = Path(shutil.copy(backbone, tmp_path / "net.safetensors"))
    status, _, err = commands("adapt", "photos", *flags(backbone=own, out=out, keep_images=True), cwd=colors)
    assert status == 0, err
    assert err.splitlines() == [
        "photos: 3 blue [b], 3 green, 2 red",
        "head: meta-lstm (cross-validated 100.0 %; logistic 100.0 %, class-means 100.0 %, tip-adapter 100.0 %; --head "
        "takes another)",
        f"{out}: the classifier; now: metalstm predict {out} IMAGES",
        "accuracy on images like these: 100 % (95 % interval 68 to 100 %), by 3-fold cross-validation on 8 images",
    ]
    status, _, err = commands("adapt", "new", *flags(add=out, head="logistic"), cwd=colors)
    assert (status, "head: logistic" in err.splitlines()) == (2, False), "new has no folders of classes"
    status, _, err = commands("adapt", "photos", *flags(add=out, head="logistic", backbone=own), cwd=colors)
    assert (status, err.splitlines()[1]) == (0, "head: logistic"), err
    own.unlink()
    status, _, err = commands("predict", out, "new", cwd=colors)
    assert (status, err) == (
        2,
        f"metalstm: no checkpoint at {own}: give a run folder, a file, or one of {', '.join(checkpoint.shipped())}\n",
    )
    status, stdout, err = commands("predict", out, "new", *flags(backbone=backbone, csv="-"), cwd=colors)
    assert (status, err, stdout.count("\n")) == (0, "", 4)


def test_a_head_alone_learns_on_the_network_of_the_checkpoint(colors, commands, tmp_path):
    net, out = "meta-lstm-cifar-fs-resnet12-5w5s", tmp_path / "made.safetensors"
    status, _, err = commands("adapt", "photos", *flags(head="logistic", out=out), cwd=colors)
    assert status == 0, err
    assert err.splitlines()[1:3] == [
        f"network: {net} (for photos, 2.67 a class; --checkpoint takes another)",
        "head: logistic",
    ]
    for option in ("checkpoint", "backbone"):
        other = tmp_path / f"{option}.safetensors"
        status, _, err = commands("adapt", "photos", *flags(head="logistic", out=other, **{option: net}), cwd=colors)
        assert (status, "network: " in err) == (0, False), err
        helpers.assert_same_tensors(out, other)
    assert commands("predict", out, "new", cwd=colors)[0] == 0
    commands("adapt", "photos", *flags(out=out, keep_images=True), cwd=colors)
    assert commands.refusal("adapt", "photos", *flags(add=out, head="logistic"), cwd=colors) == (
        f"{out} learns by the method of {net}, not by a head: leave out --head, or adapt to all images anew, without "
        "--add"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--head", "logit"],
            "unknown head 'logit', did you mean 'logistic'? allowed: auto, class-means, logistic, meta-lstm, "
            "tip-adapter",
        ),
        (
            ["--backbone", "meta-lstm-cifar-fs-5w1s", "--checkpoint", "meta-lstm-cifar-fs-5w1s"],
            "a checkpoint and a backbone: give one of them, --checkpoint or --backbone",
        ),
        (
            ["--backbone", "net.pt2"],
            "net.pt2: loading a .pt2 file can run code that is in it: export the network to ONNX",
        ),
    ],
)
def test_options_of_a_backbone_that_make_no_sense_are_refused(words, said, colors, commands):
    status, _, err = commands("adapt", "photos", *words, cwd=colors)
    assert (status, err) == (2, f"metalstm: {said}\n")


def test_adapt_keeps_a_framing(colors, commands, tmp_path):
    words = ("adapt", colors / "photos", "--out", tmp_path / "x.safetensors", "--framing")
    status, _, err = commands(*words, "letterbox")
    assert status == 0, err
    assert Classifier.load(tmp_path / "x.safetensors").preprocessing.framing == "letterbox"
    assert "'zoom'" in commands.refusal(*words, "zoom")


def test_adapt_and_predict_look_at_boxes(colors, commands, tmp_path):
    """Two files show all three colors; the boxes say which one is meant."""
    for source in (colors / "photos").glob("*/*"):
        with Image.open(source) as image:
            wide = Image.new("RGB", (150, 60), "white")
            wide.paste(image, (90, 10))
        target = tmp_path / "wide" / source.parent.name / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        wide.save(target)
    files = [path.relative_to(tmp_path) for path in sorted((tmp_path / "wide").glob("*/*"))]
    (tmp_path / "boxes.json").write_text(json.dumps({str(path): [90, 10, 140, 50] for path in files}))
    status, _, err = commands("adapt", "wide", "--crop", "boxes.json", cwd=tmp_path)
    assert status == 0, err
    commands("adapt", colors / "photos", "--out", "whole.safetensors", cwd=tmp_path)
    helpers.assert_same_tensors(tmp_path / "wide.safetensors", tmp_path / "whole.safetensors")
    words = ("predict", "wide.safetensors", "wide", "--crop", "boxes.json", "--json", "-")
    status, out, _ = commands(*words, cwd=tmp_path)
    assert status == 0
    assert [(each["image"], each["class"]) for each in json.loads(out)] == [(str(f), f.parent.name) for f in files]

    (tmp_path / "boxes.json").write_text(json.dumps({str(files[0]): [90, 10, 150, 61], str(files[1]): [5, 5, 9, 9]}))
    refused = commands.refusal("adapt", "wide", "--crop", "boxes.json", cwd=tmp_path)
    assert refused == (
        f"the box of {files[0]} is [90, 10, 150, 61], but the upright image has 150 x 60 pixels: give a box within "
        "them, or pass --skip-bad to go on without"
    )
    for command in (("adapt", "wide"), ("predict", "wide.safetensors", "wide")):
        (tmp_path / "boxes.json").write_text('{"none.png": [0, 0, 1, 1]}')
        assert commands.refusal(*command, "--crop", "boxes.json", cwd=tmp_path) == (
            "boxes.json has a box for 'none.png', but there is no such file: correct the path, which starts at the "
            "folder of boxes.json"
        )
        assert commands.refusal(*command, "--crop", "no.json", cwd=tmp_path) == (
            "cannot read no.json (No such file or directory): check its name and permissions"
        )
