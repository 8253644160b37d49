"""What the table holds is tested in tests/table."""

import numpy as np
from PIL import Image

from helpers import flags
from metalstm import table


def test_rows_can_be_listed(commands):
    status, out, err = commands("table", "--only", "list")
    assert (status, err) == (0, "")
    assert out.splitlines() == [f"{row.name}\t{row.label}" for row in table.ROWS]


def test_table_refuses(commands, folder, tmp_path):
    out = tmp_path / "table"
    for words, said in (
        (flags(only="meta-lstn"), "unknown row 'meta-lstn', did you mean 'meta-lstm'? allowed: "),
        (
            flags(seeds=0, minutes=0),
            "--minutes 0.0: must be above 0 and at most 1e+09 or None; --seeds 0: must be at least 1",
        ),
        (flags(data="omniglot", kind="photo"), "--kind photo: omniglot holds drawings: "),
    ):
        assert commands.refusal("table", *flags(out=out), *words).startswith(said)
    assert not out.exists()


def test_table_makes_some_rows(commands, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(15):
        for k in range(20):
            path = tmp_path / "images" / f"class {number:02}" / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(path)
    for start, split in enumerate(("meta-train", "meta-val", "meta-test")):
        names = [f"class {number:02}\n" for number in range(5 * start, 5 * start + 5)]
        (tmp_path / "images" / f"{split}.txt").write_text("".join(names))
    words = ["table", *flags(data=f"folder:{tmp_path / 'images'}", kind="photo", quick=True, threads=1)]
    only = [*flags(only="nearest-*-pixels,class-means"), *flags(only="nearest-neighbor-pixels")]
    status, out, err = commands(*words, *only, cwd=tmp_path)
    assert status == 0, err
    made = tmp_path / "results" / "images-quick"
    assert out == (made / "table.md").read_text()
    assert (made / "report.html").exists()
    assert (made / "table.json").exists()
    rows = {path.stem for path in (made / "rows").iterdir()}
    assert rows == {f"{name}-5w{shots}s" for name in ("nearest-neighbor-pixels", "class-means") for shots in (1, 5)}
    assert err.endswith("results/images-quick: table.md, table.json, report.html\n")
