"""A small mini-ImageNet in files of the same forms. The real images may not be passed on."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from helpers import Commands, flags
from metalstm.data import DATASETS, SPLITS, check, describe, fetch, load, mini_imagenet
from metalstm.episodes import EpisodeSampler
from metalstm.errors import UserError

HOW = "as docs/mini-imagenet.md says"
ROOT = Path(__file__).parents[2]
N_IMAGES = 4  # per class
# Named as by the authors: a WordNet id and a number of eight digits. The classes are in no order.
CLASSES = {
    "meta-train": ("n01558993", "n01532829", "n01704323"),
    "meta-val": ("n02091244", "n01855672"),
    "meta-test": ("n02099601", "n01930112"),
}


def pictures(split: str) -> list[tuple[str, str, Image.Image]]:
    """File name, class and picture, ordered by file name. Sizes differ, and none is 84x84."""
    found = []
    for label in sorted(CLASSES[split]):
        random = np.random.RandomState(int(label[1:]))
        pattern = random.randint(0, 200, (4, 5, 3))
        for k in range(N_IMAGES):
            pixels = np.kron(pattern, np.ones((22 + 3 * k, 33 - 4 * k, 1), int))
            pixels += random.randint(0, 56, pixels.shape)
            found.append((f"{label}{11 * k + 5:08}.jpg", label, Image.fromarray(pixels.astype(np.uint8))))
    return found


def encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=90)
    return buffer.getvalue()


def make_images(root: Path, kind: str = "jpeg") -> Path:
    folder = root / "mini_imagenet"
    (folder / "images").mkdir(parents=True)
    for split, name in mini_imagenet.LISTS.items():
        lines = []
        for file, label, picture in pictures(split):
            (folder / "images" / file).write_bytes(encoded(picture, kind))
            lines.append(f"{file},{label}\n")
        (folder / name).write_text("filename,label\n" + "".join(reversed(lines)))  # loading must not depend on order
    return folder


def make_parquet(root: Path, kind: str = "jpeg", names: bool = True, shuffle: bool = True) -> Path:
    """The columns of GATE-engine/mini_imagenet, and its files' names: two files a split."""
    folder = root / "mini_imagenet"
    (folder / "data").mkdir(parents=True)
    for split, part in mini_imagenet.PARTS.items():
        rows = pictures(split)
        order = np.random.RandomState(3).permutation(len(rows)) if shuffle else np.arange(len(rows))
        for number, half in enumerate(np.array_split(order, 2)):
            images = [
                {"bytes": encoded(picture, kind), "path": file if names else None}
                for file, _, picture in (rows[k] for k in half)
            ]
            labels = [sorted(CLASSES[split]).index(rows[k][1]) for k in half]
            columns = {
                "image": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
                "label": pa.array(labels, pa.int64()),
            }
            path = folder / "data" / f"{part}-{number:05}-of-00002-{number:016x}.parquet"
            pyarrow.parquet.write_table(pa.table(columns), path, row_group_size=3)
    return folder


MAKE = {"images": make_images, "parquet": make_parquet}


# Loading


@pytest.mark.parametrize("source", MAKE)
def test_classes_are_by_name_and_images_by_file_name(tmp_path, capsys, source):
    folder = MAKE[source](tmp_path)
    sets = load("mini-imagenet", tmp_path)
    assert sets.name == "mini-imagenet"
    for split in SPLITS:
        part = sets.splits[split]
        assert part.classes == tuple(sorted(CLASSES[split]))
        assert part.image_shape == (3, 84, 84)
        assert (np.diff(part.spans) == N_IMAGES).all()
        for image, (_, _, picture) in zip(part.images, pictures(split), strict=True):
            with Image.open(io.BytesIO(encoded(picture, "jpeg"))) as decoded:
                # The whole picture, squeezed into the square.
                expected = np.asarray(decoded.resize((84, 84), Image.Resampling.LANCZOS))
            np.testing.assert_array_equal(image, expected)
    # A message and the licence name what it was read from.
    assert capsys.readouterr().err == f"mini-imagenet is read from {source} in {folder}\n"
    assert sets.licence == f"ImageNet's terms: non-commercial research and education only (read from {source})"


@pytest.mark.parametrize("shuffle", [True, False])
def test_episodes_are_the_same_from_both_where_the_pixels_are(tmp_path, shuffle):
    make_images(tmp_path / "images", kind="png")
    make_parquet(tmp_path / "parquet", kind="png", shuffle=shuffle)
    images, parquet = (load("mini-imagenet", tmp_path / source) for source in MAKE)
    assert images.digest == parquet.digest
    for split in SPLITS:
        samplers = [EpisodeSampler(sets.splits[split], 2, 1, n_query=2, seed=7) for sets in (images, parquet)]
        for number in range(5):
            one, other = (sampler[number] for sampler in samplers)
            assert one.support.x.equal(other.support.x)
            assert one.query.x.equal(other.query.x)
            assert one.query.y.equal(other.query.y)


def test_other_pixels_make_another_digest(tmp_path):
    make_images(tmp_path / "images", kind="png")
    make_parquet(tmp_path / "parquet", kind="jpeg")
    assert load("mini-imagenet", tmp_path / "images").digest != load("mini-imagenet", tmp_path / "parquet").digest


def test_parquet_without_file_names_has_numbers_for_classes(tmp_path):
    make_parquet(tmp_path, kind="png", names=False, shuffle=False)
    sets = load("mini-imagenet", tmp_path)
    assert sets.splits["meta-train"].classes == ("meta-train/000", "meta-train/001", "meta-train/002")
    assert sets.splits["meta-val"].classes == ("meta-val/000", "meta-val/001")
    for image, (_, _, picture) in zip(sets.splits["meta-val"].images, pictures("meta-val"), strict=True):
        np.testing.assert_array_equal(image, np.asarray(picture.resize((84, 84), Image.Resampling.LANCZOS)))


def test_images_come_before_parquet(tmp_path):
    make_parquet(tmp_path)
    assert load("mini-imagenet", tmp_path).licence.endswith("(read from parquet)")
    make_images(tmp_path)
    assert load("mini-imagenet", tmp_path).licence.endswith("(read from images)")


@pytest.mark.parametrize("source", MAKE)
def test_the_cache_is_keyed_by_content(tmp_path, cache, source):
    folder = MAKE[source](tmp_path / "1")
    sets = load("mini-imagenet", tmp_path / "1")
    kept = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert sorted({path.name.rpartition("-")[0] for path in kept}) == [
        f"mini-imagenet-{source}-{split}" for split in sorted(SPLITS)
    ]
    folder.parent.rename(tmp_path / "2")
    assert load("mini-imagenet", tmp_path / "2").digest == sets.digest
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == kept
    assert load("mini-imagenet", tmp_path / "2", image_size=32).splits["meta-val"].image_shape == (3, 32, 32)


def test_white_space_and_folders_in_a_list(tmp_path):
    folder = make_images(tmp_path)
    digest = load("mini-imagenet", tmp_path).digest
    text = (folder / "val.csv").read_text().replace(",", " , ").replace("n01855672000", "geese/n01855672000")
    (folder / "val.csv").write_text("\ufeff" + text.replace("\n", "\r\n") + "\r\n")
    (folder / "images" / "geese").mkdir()
    for path in (folder / "images").glob("n01855672*"):
        path.rename(folder / "images" / "geese" / path.name)
    assert load("mini-imagenet", tmp_path).digest == digest


# Errors: one line each


def refusal(root: Path) -> str:
    """Why the data set is not loaded."""
    with pytest.raises(UserError) as error:
        load("mini-imagenet", root)
    return str(error.value)


def replace_in(name: str, old: str, new: str) -> Callable[[Path], object]:
    """Change a list."""
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda d: (d / "images").rename(d / "pictures"),
            "mini-imagenet needs images/ or data/*.parquet in {d}: get the images, {how}, or pass --data-root DIR",
        ),
        (
            lambda d: (d / "val.csv").unlink(),
            "mini-imagenet needs val.csv in {d}: get the images, {how}, or pass --data-root DIR",
        ),
        (
            lambda d: (d / "val.csv").write_text(f"filename,label\n{'x' * 300},bird\n"),
            f"cannot read {{d}}/images/{'x' * 300} (File name too long): check its name and permissions",
        ),
        (
            lambda d: [path.unlink() for path in (d / "images").glob("n01532829*")],
            "{d}/images lacks 4 of the 28 images that the lists name, 'n0153282900000005.jpg' first: add them, {how}",
        ),
        (
            replace_in("train.csv", "filename,label", "n1,n2"),
            "{d}/train.csv has the line 'n1,n2', but needs 'filename,label' there: correct it, or take the "
            "authors' list",
        ),
        (
            replace_in("train.csv", "n0153282900000005.jpg,", "n0153282900000005.jpg"),
            "{d}/train.csv has the line 'n0153282900000005.jpgn01532829', but needs a file name, a comma and a class "
            "there: correct it, or take the authors' list",
        ),
        (
            replace_in("test.csv", "n0209960100000005.jpg,n02099601", "n0209960100000005.jpg,"),
            "{d}/test.csv has the line 'n0209960100000005.jpg,', but needs a file name, a comma and a class there: "
            "correct it, or take the authors' list",
        ),
        (
            lambda d: (d / "test.csv").write_text("filename,label\n"),
            "{d}/test.csv names no images: take the authors' list, {how}",
        ),
        (lambda d: (d / "test.csv").write_text(""), "{d}/test.csv names no images: take the authors' list, {how}"),
        (
            lambda d: (d / "test.csv").write_bytes(b"filename,label\n\xff\n"),
            "{d}/test.csv is damaged ('utf-8' codec can't decode byte 0xff in position 15: invalid start byte): "
            "get it again, {how}",
        ),
        (
            replace_in("train.csv", "n0153282900000016.jpg", "n0153282900000005.jpg"),
            "{d}: the lists name 'n0153282900000005.jpg' 2 times: keep one of these lines",
        ),
        (
            replace_in("val.csv", "5.jpg,n01855672", "5.jpg,n01532829"),
            "{d}: class 'n01532829' is in meta-train and in meta-val: keep one of them",
        ),
        (
            lambda d: (d / "images" / "n0153282900000005.jpg").write_bytes(b"no image"),
            "{d}/images/n0153282900000005.jpg is damaged (cannot identify image file "
            "'{d}/images/n0153282900000005.jpg'): get it again, {how}",
        ),
    ],
)
def test_faults_of_images(tmp_path, harm, message):
    folder = make_images(tmp_path)
    harm(folder)
    assert refusal(tmp_path) == message.format(d=folder, how=HOW)


def rewrite(name: str, change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], object]:
    """Change a parquet file."""

    def harm(folder: Path) -> None:
        (path,) = (folder / "data").glob(name)
        pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(path)), path)

    return harm


def broken_image(table: pa.Table) -> pa.Table:
    images = [{**image, "bytes": b"no image"} for image in table["image"].to_pylist()]
    return table.set_column(0, "image", pa.array(images, table.schema.field("image").type))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda d: [path.unlink() for path in (d / "data").glob("validation-*")],
            "mini-imagenet needs data/validation-*.parquet in {d}: get the images, {how}, or pass --data-root DIR",
        ),
        (
            lambda d: next((d / "data").glob("train-00000-*")).unlink(),
            "mini-imagenet needs 2 files data/train-*.parquet, not 1, in {d}: get the images, {how}, or pass "
            "--data-root DIR",
        ),
        (
            lambda d: next((d / "data").glob("test-00001-*")).write_bytes(b"PAR1"),
            "{d}/data/test-00001-of-00002-0000000000000001.parquet is damaged (Parquet file size is 4 bytes, smaller "
            "than the minimum file footer (8 bytes)): get it again, {how}",
        ),
        (
            rewrite("train-00001-*", lambda table: table.drop_columns("label")),
            "{d}/data/train-00001-of-00002-0000000000000001.parquet has columns image.bytes, image.path, but needs "
            "image.bytes, image.path, label: get it again, {how}",
        ),
    ],
)
def test_faults_of_parquet(tmp_path, harm, message):
    folder = make_parquet(tmp_path)
    harm(folder)
    assert refusal(tmp_path) == message.format(d=folder, how=HOW)


def test_parquet_with_a_broken_image(tmp_path, cache):
    folder = make_parquet(tmp_path)
    rewrite("train-00001-*", broken_image)(folder)
    name = re.escape(f"{folder}/data/train-00001-of-00002-0000000000000001.parquet")
    with pytest.raises(UserError, match=rf"^{name} is damaged \(cannot identify image file .*\): get it again, {HOW}$"):
        load("mini-imagenet", tmp_path)
    assert list(cache.iterdir()) == []


def test_without_pyarrow(tmp_path):
    make_parquet(tmp_path / "parquet")
    make_images(tmp_path / "images")
    commands = Commands(tmp_path, first="import sys; sys.modules['pyarrow'] = None")
    words = ["data", "check", "mini-imagenet", "--data-root"]
    refusals = [commands.refusal(*words, tmp_path / source) for source in ("parquet", "images")]
    commands.close()
    assert refusals[0] == "parquet files need pyarrow, which is not installed: pip install 'metalstm[parquet]'"
    assert refusals[1].startswith("meta-train has 3 classes of 4 to 4 images, but")  # read without it


# Fetch, check, list


def test_fetch_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError) as error:
        fetch("mini-imagenet", tmp_path)
    assert str(error.value) == (
        "mini-imagenet has no download, because ImageNet's terms are between ImageNet and you: get the images, "
        f"{HOW}, and put them into {tmp_path}/mini_imagenet"
    )


@pytest.mark.parametrize("source", MAKE)
def test_check_counts(tmp_path, monkeypatch, capsys, source):
    folder = MAKE[source](tmp_path)
    with pytest.raises(UserError) as error:
        check("mini-imagenet", tmp_path)
    assert str(error.value) == (
        f"meta-train has 3 classes of 4 to 4 images, but mini-ImageNet's has 64 of 600: get the rest, {HOW}"
    )
    monkeypatch.setattr(DATASETS["mini-imagenet"], "n_classes", tuple(len(labels) for labels in CLASSES.values()))
    monkeypatch.setattr(mini_imagenet, "N_IMAGES", N_IMAGES)
    lists = [(folder / name, "unknown checksum") for name in mini_imagenet.LISTS.values()]
    assert check("mini-imagenet", tmp_path) == (lists if source == "images" else [])
    assert capsys.readouterr().err == f"mini-imagenet has all its classes and images, as {source}\n"


def test_check_without_any(tmp_path):
    with pytest.raises(UserError, match=r"^mini-imagenet needs images/ or data/\*.parquet in "):
        check("mini-imagenet", tmp_path)


@pytest.mark.parametrize("source", MAKE)
def test_describe(tmp_path, source):
    MAKE[source](tmp_path)
    (record,) = (record for record in describe(tmp_path) if record.name == "mini-imagenet")
    assert record.present
    assert record.image_shape == (3, 84, 84)
    assert record.classes == {"meta-train": 64, "meta-val": 16, "meta-test": 20}
    assert record.licence == "ImageNet's terms: non-commercial research and education only"


@pytest.mark.data
def test_the_authors_lists(data_root):
    folder = data_root / "mini_imagenet"
    if not folder.is_dir():
        pytest.skip(f"the lists are not in {folder}")
    dataset = DATASETS["mini-imagenet"]
    for file, n_classes in zip(dataset.files, dataset.n_classes, strict=True):
        assert file.state(data_root) == "original"
        rows = mini_imagenet._read_list(data_root / file.path)
        assert len({label for label, _ in rows}) == n_classes
        assert len(set(rows)) == n_classes * mini_imagenet.N_IMAGES
        assert all(re.fullmatch(rf"{label}\d{{8}}\.jpg", name) for label, name in rows)


# All of it, as a user does it


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    commands = Commands(tmp_path_factory.mktemp("commands"))
    yield commands
    commands.close()


@pytest.mark.parametrize(("source", "recipe"), [("images", "paper"), ("parquet", "best")])
def test_train_and_evaluate(tmp_path, commands, source, recipe):
    MAKE[source](tmp_path)
    task = flags(n_way=2, n_shot=1, n_query=2)
    tiny = flags(filters=4, hidden_size=3, epochs=2, val_every=2, val_episodes=2, episodes=4)
    if recipe == "best":
        tiny += flags(pretrain=2)
    words = ["--data", "mini-imagenet", "--recipe", recipe, *task, *tiny, "--out", tmp_path / "run"]
    status, _, err = commands("train", *words, "--data-root", tmp_path)
    assert status == 0, err
    assert f"mini-imagenet is read from {source} in {tmp_path}/mini_imagenet" in err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["image_shape"] == [3, 84, 84]
    assert config["n_classes"] == 3
    assert config["licence"].endswith(f"(read from {source})")
    words = [tmp_path / "run", "--n-query", 2, "--episodes", 5, "--json", "-", "--data-root"]
    status, out, err = commands("evaluate", *words, tmp_path)
    assert status == 0, err
    result = json.loads(out)
    assert (result["data"], result["split"], result["recipe"]) == ("mini-imagenet", "meta-test", recipe)
    assert len(result["per_episode"]) == 5
    # The other source has other pixels here, so that its results would be those of other data.
    other = {"images": make_parquet, "parquet": make_images}[source]
    other(tmp_path / "other", kind="png")
    status, _, err = commands("evaluate", *words, tmp_path / "other")
    assert status == 2
    assert f"{tmp_path / 'run'} was trained on mini-imagenet (digest {config['data_digest'][:12]}), but" in err


# The document


DOC = (ROOT / "docs" / "mini-imagenet.md").read_text("utf-8")


def test_the_hours_in_the_document_are_those_that_were_measured():
    measured = json.loads((ROOT / "results" / "speed" / "table_hours.json").read_text())

    def hours(*parts):
        return sum(sum(part.values()) for part in parts) / 3600

    one, five = (measured["columns"][column] for column in ("5w1s", "5w5s"))
    lines = [f"`{row}` | {hours(one[row]):.2f} | {hours(five[row]):.2f}" for row in one]
    lines += [
        f"pre-training, {size} | {hours(parts):.2f} | the same" for size, parts in measured["pretraining"].items()
    ]
    comparison = {"all": measured["comparison"]}
    lines += [f"comparison of the optimizers, ablation | | {hours(comparison):.2f}"]
    lines += [
        f"**all** | | **{hours(*one.values(), *five.values(), *measured['pretraining'].values(), comparison):.1f}**"
    ]
    for line in lines:
        assert f"\n| {line} |\n" in DOC


def test_what_the_document_points_to_is_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", DOC):
        assert (ROOT / "docs" / target).exists(), target
