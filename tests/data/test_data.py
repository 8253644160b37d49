import subprocess
import sys
from dataclasses import replace

import pytest

from metalstm.data import DATASETS, check, describe, fetch, find, load
from metalstm.errors import UserError
from metalstm.settings import Traits

from .makers import make_cifar_zip, make_folder, make_omniglot


def test_unknown_data_set():
    with pytest.raises(UserError) as error:
        load("omniglott")
    assert str(error.value) == (
        "unknown data set 'omniglott', did you mean 'omniglot'? allowed: cifar-fs, fc100, folder:DIR, glyphs, "
        "mini-imagenet, omniglot"
    )


def test_image_size_below_one():
    with pytest.raises(UserError) as error:
        load("omniglot", image_size=0)
    assert str(error.value) == "image size 0 is too small: pass 1 or more pixels"


def test_a_data_root_whose_name_is_too_long(tmp_path):
    with pytest.raises(UserError, match=r"x \(File name too long\): check its name and permissions$"):
        load("omniglot", tmp_path / ("x" * 300))


def test_importing_is_light():
    code = (
        "import sys, metalstm.data; print({'torch', 'PIL.Image', 'requests', 'matplotlib'}.intersection(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_data_root_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("METALSTM_DATA", str(make_omniglot(tmp_path / "elsewhere")))
    assert load("omniglot").digest == load("omniglot", tmp_path / "elsewhere").digest


def test_fetch_and_check_of_what_has_no_files(tmp_path):
    assert fetch("glyphs", tmp_path) == []
    assert check("glyphs", tmp_path) == []
    for function in (fetch, check):
        with pytest.raises(UserError, match=r"^unknown data set 'cifar', did you mean 'cifar-fs'"):
            function("cifar", tmp_path)


def test_describe(tmp_path):
    records = {record.name: record for record in describe(tmp_path)}
    assert list(records) == list(DATASETS)
    assert {name: record.present for name, record in records.items()} == {
        "glyphs": True,
        "omniglot": False,
        "cifar-fs": False,
        "fc100": False,
        "mini-imagenet": False,
    }
    assert records["omniglot"].classes == {"meta-train": 803, "meta-val": 161, "meta-test": 659}
    assert records["fc100"].classes == {"meta-train": 60, "meta-val": 20, "meta-test": 20}
    assert records["cifar-fs"].image_shape == (3, 32, 32)
    make_omniglot(tmp_path)
    make_cifar_zip(tmp_path)
    assert [record.name for record in describe(tmp_path) if not record.present] == ["mini-imagenet"]


def test_traits_of_a_known_data_set_cannot_be_changed(tmp_path):
    own = DATASETS["omniglot"].traits
    assert find("omniglot", own) is DATASETS["omniglot"]
    before = replace(own, centered=False)
    assert find("omniglot", before).traits == before
    assert DATASETS["omniglot"].traits == own
    with pytest.raises(UserError) as error:
        load("omniglot", tmp_path, traits=Traits())
    assert str(error.value) == (
        f"omniglot has {own}, not {Traits()}: leave them out; only a folder:DIR can have others"
    )


def test_find(tmp_path):
    assert find("fc100") is DATASETS["fc100"]
    folder = make_folder(tmp_path / "birds")
    assert find(f"folder:{folder}/").name == f"folder:{folder}/"
