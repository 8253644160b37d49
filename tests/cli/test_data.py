import re
import shutil


def test_data_lists_what_there_is(commands, tmp_path):
    status, out, _ = commands("data", "list", "--data-root", tmp_path)
    assert status == 0
    for name in ("glyphs", "omniglot", "cifar-fs", "fc100", "mini-imagenet", "folder:DIR"):
        assert re.search(rf"\b{name}\b", out), name
    assert "alphabets" in out


def test_data_check_reports_the_state_of_every_file(commands, tmp_path):
    status, out, err = commands("data", "check", "omniglot", "--data-root", tmp_path)
    assert (status, err) == (2, "metalstm: 2 of 2 files are not as released: metalstm data fetch omniglot\n")
    assert out.splitlines() == [
        f"missing\t{tmp_path / 'omniglot' / name}" for name in ("images_background.zip", "images_evaluation.zip")
    ]
    status, _, err = commands("data", "check", "glyphs")  # at the default place; no files
    assert status == 0
    groups = "13 scripts in meta-train, 2 scripts in meta-val, 8 scripts in meta-test"
    assert err == f"groups of classes, for --within-group: {groups}\nno image of glyphs is in two splits\n"


def test_data_check_reads_the_images_of_a_folder(commands, folder):
    status, out, err = commands("data", "check", f"folder:{folder}")
    assert (status, out) == (0, "")
    assert err == (
        f"{folder} has 96 images of 12 classes (6 in meta-train, 3 in meta-val, 3 in meta-test), and all can be read\n"
        f"no image of folder:{folder} is in two splits\n"
    )


def test_data_check_names_images_that_are_in_two_splits(commands, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.copy(copy / "class 00" / "7.png", copy / "class 09" / "2.png")
    shutil.copy(copy / "class 07" / "0.png", copy / "class 09" / "3.png")
    status, out, err = commands("data", "check", f"folder:{copy}")
    assert (status, out) == (
        0,
        "identical\tmeta-train/class 00[7]\tmeta-test/class 09[2]\n"
        "identical\tmeta-val/class 07[0]\tmeta-test/class 09[3]\n",
    )
    assert err.splitlines()[1:] == [
        f"2 images of folder:{copy} are in more than one split. Without them:",
        "  meta-train has 47 of 48 images: 1 less in class 00",
        "  meta-val has 23 of 24 images: 1 less in class 07",
        "  meta-test has 22 of 24 images: 2 less in class 09",
    ]


def test_data_refuses_what_it_does_not_know(commands, folder):
    for words, said in (
        (["chek"], "unknown action 'chek', did you mean 'check'? allowed: check, fetch, list"),
        (["fetch"], "data fetch: which data set? one of "),
        (["check", "omniglto"], "unknown data set 'omniglto', did you mean 'omniglot'? allowed: "),
        (["fetch", f"folder:{folder}"], f"'folder:{folder}' is a folder of your own: there is nothing to fetch"),
        (["fetch", "folder:x"], "x is not a folder: name one with images in <class>/"),
    ):
        assert commands.refusal("data", *words).startswith(said)
