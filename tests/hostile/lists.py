"""Lists of classes and images, folders of a user's own, parquet files, and the answers that are written about them."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from hostile.checkpoints import IMAGES, meta_sets, small
from hostile.commands import run
from hostile.mutations import Random, mutated_bytes
from metalstm import checkpoint, data, recipes
from metalstm.classifier import Classifier
from metalstm.geometry import read_boxes

WORDS = [
    "=1+1", "=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "a\nb", "\x1b[31mred\x1b]0;title\x07", "a,b",
    '"', "'", "-", "--help", "\u202egnp", "\u2028", "e\u0301", "\u00e9", "\udcff", "x" * 200, " ", "..", "a;b", "%n",
    "{0}", "[red]x[/red]", "$(touch canary)", "`touch canary`", "n01532829", "con", "=", "-12.5", "+x",
]  # fmt: skip


class Cases:
    """Data sets and classifiers whose names and lists are hostile.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path):
        import pyarrow
        import pyarrow.parquet

        self.folder, self.root = folder, folder / "root"
        self.mini, config = self.root / "mini_imagenet", small("protonet", meta_sets())
        self.path, self.classifier = folder / "small.safetensors", folder / "named.safetensors"
        checkpoint.save(
            self.path, checkpoint.method_tensors(recipes.build(config)), {"config": recipes.to_dict(config)}
        )
        rows = [{"image": {"bytes": png(k), "path": f"n0000000{k}_{k}.JPEG"}, "label": k} for k in range(4)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "whole.parquet")
        self.parquet = (folder / "whole.parquet").read_bytes()

    def __call__(self, random: Random, number: int) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        [self._mini_imagenet, self._parquet, self._folder, self._predict, self._boxes][number % 5](random)

    def _mini_imagenet(self, random: Random) -> None:
        (self.mini / "images").mkdir(parents=True)
        for k, name in enumerate(("train.csv", "val.csv", "test.csv")):
            files = [f"n{k}{j}.jpg" for j in range(2)]
            for file in files:
                (self.mini / "images" / file).write_bytes(png(k))
            lines = ["filename,label", *(f"{file},n0{k}" for file in files)]
            if random.rand() < 0.5:
                lines.insert(random.randint(4), f"{word(random)},{word(random)}")
            text = "\n".join(lines).encode("utf-8", "surrogateescape")
            (self.mini / name).write_bytes(mutated_bytes(text, random) if random.rand() < 0.3 else text)
        data.load("mini-imagenet", self.root)

    def _parquet(self, random: Random) -> None:
        (self.mini / "data").mkdir(parents=True)
        for part in ("train", "validation", "test"):
            content = self.parquet if random.rand() < 0.5 else mutated_bytes(self.parquet, random)
            (self.mini / "data" / f"{part}-00000-of-00001.parquet").write_bytes(content)
        data.load("mini-imagenet", self.root)

    def _folder(self, random: Random) -> None:
        for name in {word(random) for _ in range(5)}:
            folder = self.root / name.replace("/", "_")
            folder.mkdir(exist_ok=True)
            for _ in range(random.randint(3)):
                (folder / word(random).replace("/", "_")).with_suffix(".png").write_bytes(png(random.randint(9)))
        if random.rand() < 0.4:
            classes = [path.name for path in self.root.iterdir()]
            for split in data.SPLITS:
                lines = "\n".join([classes[random.randint(len(classes))], *([word(random)] * (random.rand() < 0.3))])
                text = lines.encode("utf-8", "surrogateescape")
                (self.root / f"{split}.txt").write_bytes(mutated_bytes(text, random) if random.rand() < 0.2 else text)
        sets = data.load(f"folder:{self.root}")
        assert sets.splits["meta-train"].classes

    def _predict(self, random: Random) -> None:
        """What is written about classes and files of any name: tables without formulas,
        text without control characters."""
        names = list(dict.fromkeys(word(random) for _ in range(9)))[:3]
        Classifier(self.path).fit(IMAGES[: len(names)], names).save(self.classifier)
        files = [self.root / f"{word(random)}.png".replace("/", "_") for _ in range(3)]
        for file in files:
            file.write_bytes(png(1))
        out = self.root / "out.csv"
        words = [self.classifier, *files, *(["--csv", out] if random.rand() < 0.5 else [])]
        said = run("predict", *map(str, words))
        assert not set(said) & {"\x1b", "\x07", "\x00"}, said
        if out.exists():
            rows = list(csv.reader(io.StringIO(out.read_bytes().decode("utf-8", "surrogateescape"), newline="")))
            assert [len(row) for row in rows] == [3 + len(names)] * (len(files) + 1), rows
            for cell in (cell for row in rows[1:] for cell in row[:2]):
                is_number = cell.lstrip("+-").replace(".", "", 1).isdigit()
                assert is_number or not cell.startswith(("=", "+", "-", "@", "\t", "\r")), cell

    def _boxes(self, random: Random) -> None:
        """Boxes of images in JSON, which may be damaged, nested and huge."""
        (self.root / "a.png").write_bytes(png(1))
        values = [[0, 0, 9, 9], [9, 9, 0, 0], [1.5, 0, 9, 9], [10**999] * 4, [True] * 4, "0099", None, {}, [[0]] * 4]
        pairs = {name: values[random.randint(len(values))] for name in ("a.png", word(random))[: random.randint(3)]}
        text = json.dumps(pairs).encode("utf-8", "surrogateescape")
        text = [text, mutated_bytes(text, random), b"[" * 10**5, b'{"a.png":' * 10**4, b"[]" + text][random.randint(5)]
        (self.root / "boxes.json").write_bytes(text)
        for box in read_boxes(self.root / "boxes.json").values():
            assert all(type(each) is int for each in box)


def word(random: Random) -> str:
    """A name, rarely a plain one."""
    return WORDS[random.randint(len(WORDS))] if random.rand() < 0.7 else f"class {random.randint(9)}"


def png(seed: int) -> bytes:
    """A small image."""
    file = io.BytesIO()
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, (16, 16, 3), np.uint8)).save(file, "png")
    return file.getvalue()
