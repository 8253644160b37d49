import os
import re
import shutil
import subprocess
import sys

from PIL import Image


def test_data_lists_what_there_is(commands, tmp_path):
    status, out, _ = commands("data", "list", "--data-root", tmp_path)
    assert status == 0
    for name in ("glyphs", "omniglot", "cifar-fs", "fc100", "mini-imagenet", "folder:DIR"):
        assert re.search(rf"\b{name}\b", out), name
    assert "alphabets" in out


def test_the_list_fits_into_80_columns(tmp_path):
    environment = os.environ | {"COLUMNS": "80"}
    command = [sys.executable, "-m", "metalstm", "data", "list", "--data-root", tmp_path]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True).stdout
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80
    for word in (
        "mini-imagenet",
        "superclasses",
        "meta-train",
        "3x84x84",
        "License of omniglot: MIT, Copyright (c) 2015",
    ):
        assert word in out


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
    splits = ["meta-train"] * 6 + ["meta-val"] * 3 + ["meta-test"] * 3
    classes = [f"class\tclass {k:02}\t{split}\t8" for k, split in enumerate(splits)]
    assert (status, out.splitlines()) == (0, classes)
    assert err.splitlines() == [
        f"{folder} has 96 images of 12 classes",
        "0 groups of identical images",
        "0 pairs of nearly identical images",
    ]


def test_data_check_names_duplicates_and_all_problems(commands, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.copy(copy / "class 00" / "7.png", copy / "class 09" / "2.png")
    shutil.copy(copy / "class 00" / "7.png", copy / "class 00" / "6.png")
    shutil.copy(copy / "class 07" / "0.png", copy / "class 08" / "3.png")
    photo = Image.open(copy / "class 03" / "1.png").convert("RGB")
    photo.resize((48, 48)).save(copy / "class 03" / "z.jpg", quality=90)
    (copy / "class 04" / "notes.txt").write_text("no image")
    (copy / "class 04" / "1.png").write_bytes(b"")
    (copy / "class 05" / "1.png").write_text("no image")
    (copy / "class 99").mkdir()
    status, out, err = commands("data", "check", f"folder:{copy}")
    assert status == 2
    assert out.splitlines()[4] == "class\tclass 04\tmeta-train\t7"
    assert out.splitlines()[12:] == [
        "class\tclass 99\tno split\t0",
        "left out\tclass 04/notes.txt",
        "identical\tacross splits\tclass 00/6.png\tclass 00/7.png\tclass 09/2.png",
        "identical\tacross classes\tclass 07/0.png\tclass 08/3.png",
        "near\twithin a class\tclass 03/1.png\tclass 03/z.jpg",
        f"problem\tclass folder {copy}/class 99 has no images: add some, or remove it",
        f"problem\tcannot read {copy}/class 04/1.png as an image (it is empty): remove it",
        f"problem\tcannot read {copy}/class 05/1.png as an image (no format that is known here): save it as JPEG or "
        "PNG, or remove it",
    ]
    assert err.splitlines() == [
        f"{copy} has 95 images of 12 classes",
        "1 files are no images by their names and are always left out",
        "2 groups of identical images (1 across classes, 1 across splits)",
        "1 pairs of nearly identical images (1 within a class)",
        f"metalstm: 3 problems in {copy}: mend them; or --skip-bad goes on without",
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
