import helpers
from cli.examples import COLORS, paint
from metalstm import checkpoint
from metalstm.classifier import Classifier


def test_adapt_reports_images_meta_learner_file_and_accuracy(adapted, colors):
    status, out, err = adapted
    assert (status, out) == (0, ""), err
    assert err.splitlines() == [
        "photos: 3 blue [b], 3 green, 2 red",
        "meta-learner: meta-lstm-cifar-fs-5w5s (for photos, 2.67 a class; --checkpoint takes another)",
        "photos.safetensors: the classifier; now: metalstm predict photos.safetensors IMAGES",
        "accuracy on images like these: 100 % (95 % interval 68 to 100 %), by 2-fold cross-validation on 8 images",
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
    assert refusal("one") == "class folder one/red has no images: add some, or remove it"
    paint(tmp_path / "one" / "red" / "1.png", (200, 0, 0), 1)
    assert refusal("one") == "1 class: give 2 to 20"
    (tmp_path / "one").rename(tmp_path / "two")
    (tmp_path / "two" / "green").mkdir()
    paint(tmp_path / "two" / "green" / "1.png", (0, 200, 0), 1)
    (tmp_path / "two" / "red" / "2.jpg").touch()
    assert refusal("two") == "cannot read two/red/2.jpg as an image (it is empty): remove it"
    assert refusal("two", "--checkpoint", "meta-lstm-omniglot-5w2s") == (
        "unknown checkpoint 'meta-lstm-omniglot-5w2s', did you mean 'meta-lstm-omniglot-5w5s'? allowed: "
        + ", ".join(checkpoint.shipped())
    )
    assert refusal(colors / "photos", "--out", tmp_path) == (
        f"--out {tmp_path} is a folder: name a file, for example {tmp_path}/classifier.safetensors"
    )
