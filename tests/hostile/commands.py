"""Command lines: options with any value, missing and empty words, files that are none, and whatever comes on stdin."""

import contextlib
import io
import os
import re
import sys
from pathlib import Path

from hostile.checkpoints import IMAGES, LABELS, meta_sets, small
from hostile.mutations import Random
from metalstm import checkpoint, cli, recipes
from metalstm.classifier import Classifier
from metalstm.errors import UserError

VALUES = [
    "", "0", "-1", "1", "2", "3", "0.5", "-0.5", "1e400", "nan", "inf", "-inf", "10" * 30, "1_0", "0x10", "x", "-",
    "--",
    "None", "True", "[]", "()", ",", "1,2", "*", "a b", "\n", "\x1b[31m", "\u202e", "\udcff", "y" * 500, "..",
    "../..", "/",
    "/dev/null", "/dev/full", "/proc/self/mem", "missing/file", "folder:", "folder:/", "folder:missing", "cuda",
    "cuda:9",
    "meta", "cpu:1", "mps", "auto", "support", "batch", "running", "paper", "best", "sgd", "meta-lstm",
    "omniglot",
    "--help", "--debug=1", "'", '"', "$(touch canary)", ";", "|", "%s", "{}", "@file", "-h=1", "=",
]  # fmt: skip
LINES = [
    "",
    "\n" * 1000,
    "missing\n",
    "\0\n",
    "x" * 70_000,
    "images/a.png\n" * 3,
    "\udcff\n",
    "/dev/zero\n",
    ".\n",
    "-\n",
]
SMALL = ["--episodes", "2", "--threads", "1"]  # behind all others, so that what is allowed is done in no time
END = {
    "train": [
        *SMALL,
        "--val-episodes",
        "2",
        "--pretrain",
        "0",
        "--minutes",
        "0.001",
        "--image-size",
        "16",
        "--filters",
        "2",
    ],
    "evaluate": [*SMALL, "--n-query", "1"],
    "table": ["--only", "list"],
    "data": ["--threads", "1"],
    "adapt": ["--threads", "1"],
    "predict": ["--threads", "1"],
}  # those that are run; others would take too long, and their words are only read


class Cases:
    """Commands with odd words.

    Args:
        folder: Where they work.
    """

    def __init__(self, folder: Path):
        self.folder, config = folder, small("protonet", meta_sets())
        self.path, self.classifier = folder / "small.safetensors", folder / "fitted.safetensors"
        checkpoint.save(
            self.path, checkpoint.method_tensors(recipes.build(config)), {"config": recipes.to_dict(config)}
        )
        Classifier(self.path).fit(IMAGES, LABELS).save(self.classifier)
        from data.makers import make_folder

        make_folder(folder / "images", 3, 20, (16, 16))
        (folder / "empty").mkdir()
        self.options = {
            name: sorted(set(re.findall(r"--[a-z][a-z0-9-]+", run(name, "--help")))) for name in cli.COMMANDS
        }

    def __call__(self, random: Random, number: int) -> None:
        os.chdir(self.folder)
        name = cli.COMMANDS[number % len(cli.COMMANDS)] if random.rand() < 0.98 else VALUES[random.randint(len(VALUES))]
        words = []
        for _ in range(random.randint(4)):
            words.append(self._word(name, random))
            if random.rand() < 0.8:
                words.append(VALUES[random.randint(len(VALUES))])
        words = [*self._usual(name, random), *words] if random.rand() < 0.9 else words
        lines = LINES[random.randint(len(LINES))]
        if name in END and not {"--debug", "--debug=1"} & {*words}:
            images = ["--data", "folder:images"] if name == "train" and "--data" not in words else []  # not the glyphs
            run(name, *words, *END[name], *images, stdin=lines)
            return
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            try:
                cli.parse([name, *words])
            except SystemExit as end:  # of the help
                if end.code:
                    raise AssertionError(f"status {end.code}") from end

    def _usual(self, name: str, random: Random) -> list[str]:
        """Words with which a command does something."""
        fitted, path = str(self.classifier), str(self.path)
        match name:
            case "train":
                method = ["meta-lstm", "protonet", "maml", "matching-net", "finetune", "r2d2"][random.randint(6)]
                return ["--data", "folder:images", "--method", method, "--out", f"runs/{random.randint(10**9)}",
                "--n-way", "2",
                        "--n-shot", "1", "--n-query", "1"]  # fmt: skip
            case "evaluate":
                return [path, "--data", "folder:images", "--n-way", "1", "--n-shot", "1"]
            case "data":
                return ["check" if random.rand() < 0.8 else "list", *(["folder:images"] * (random.rand() < 0.9))]
            case "adapt":
                return ["images", "--checkpoint", path]
            case "predict":
                return [fitted, ["images", "-", "empty", "missing.png", "images/class0/0.png"][random.randint(5)]]
            case "export":
                return [fitted]
        return []

    def _word(self, name: str, random: Random) -> str:
        known = self.options.get(name) or ["--seed"]
        option = known[random.randint(len(known))]
        match random.randint(8):
            case 0:
                return VALUES[random.randint(len(VALUES))]
            case 1:
                return option[:-1]
            case 2:
                return f"{option}={VALUES[random.randint(len(VALUES))]}"
            case 3:
                return option.replace("--", "--no-")
        return option


def run(*words: str, stdin: str = "") -> str:
    """What a command says on stdout. It ends with 0 and says nothing of an error, or with one line and another status.

    Raises:
        UserError: The line.
    """
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode("utf-8", "surrogateescape")), "utf-8")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(words)
            status = 0
        except SystemExit as error:
            status = error.code or 0
        finally:
            sys.stdin = before
    said = err.getvalue()
    assert "Traceback" not in said, said
    assert "internal error" not in said, said
    if status:
        lines = [line for line in said.splitlines() if line.startswith("metalstm: ")]
        assert len(lines) == 1, said
        assert status in (1, 2), status
        raise UserError(lines[0])
    return out.getvalue()
