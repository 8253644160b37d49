"""Commands that are killed at random moments and given again: they end as if nothing had happened, bit for bit."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import helpers
from helpers import TINY, assert_same_tensors, flags, metrics
from metalstm.data import SPLITS

KINDS = {
    "train": 10,
    "resume": 10,
    "pre-training": 8,
    "report": 6,
    "table": 8,
    "adapt": 4,
    "cache": 4,
}  # shares of kills
TIMES = {"seconds", "made_in_seconds", "terms", "checkpoint_sha256"}  # of a row of a table


@dataclass(frozen=True)
class Job:
    """A command that is killed.

    Attributes:
        words: Gives what is to be run, for an output folder.
        begins: What changes in that folder when there is something to be killed.
        same: Compares the output folders of two of them.
        prepare: Fills the folder before it is run for the first time.
        module: What is run.
    """

    words: Callable[[Path], list[str]]
    begins: str
    same: Callable[[Path, Path], object]
    prepare: Callable[[Path], object] = lambda out: None
    module: str = "metalstm"

    def start(self, out: Path) -> Any:
        """The process, and when it began; its cache lies in the output folder."""
        place = out / self.begins
        (out / "cache").mkdir(parents=True, exist_ok=True)
        before = place.stat().st_mtime_ns if place.exists() else 0
        process = helpers.start(*self.words(out), cache=out / "cache", module=self.module)
        while process.poll() is None and (place.stat().st_mtime_ns if place.exists() else 0) == before:
            time.sleep(0.002)
        return process

    def finish(self, out: Path) -> float:
        """Run it to its end; gives the seconds since it began."""
        process = self.start(out)
        began = time.monotonic()
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, f"status {process.returncode}: {said[-1000:]}"
        return time.monotonic() - began

    def kill(self, out: Path, seconds: float) -> int:
        """Kill it some seconds after it began; 0 if it had ended before."""
        process = self.start(out)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return int(process.returncode == -signal.SIGKILL)


def kill(folder: Path, kind: str, number: int, seed: int = 0) -> dict[str, Any]:
    """Kill a job so often, at moments that the seed chooses.

    Returns:
        `cases`, the kills; `failures`, the ends that were not those of the whole job; `seconds`.
    """
    job, started, kills, failures = make_jobs(folder)[kind], time.monotonic(), 0, []
    whole, pieces = folder / f"{kind}-whole", folder / f"{kind}-pieces"
    job.prepare(whole)
    seconds = job.finish(whole)
    random = np.random.RandomState([seed, list(KINDS).index(kind)])
    while kills < number:
        shutil.rmtree(pieces, ignore_errors=True)
        job.prepare(pieces)
        before = kills
        try:
            for _ in range(min(random.randint(1, 4), number - kills)):
                kills += job.kill(pieces, seconds * random.rand())
            job.finish(pieces)
            job.same(whole, pieces)
        except AssertionError as error:
            failures.append(f"{kind}, seed {seed}, kills {before + 1} to {kills}: {str(error)[:1000]}")
            if len(failures) > 3:
                break
    return {"cases": kills, "failures": failures, "seconds": time.monotonic() - started}


def make_jobs(folder: Path) -> dict[str, Job]:
    """All jobs, on images that are made in the folder if they are not there."""
    data, large = folder / "images", folder / "large"
    if not data.exists():
        helpers.make_folder(data)
        helpers.make_folder(folder / "more", seed=1)
        classes = [*sorted(data.glob("class *")), *sorted((folder / "more").glob("class *"))][:15]
        for k, split in enumerate(SPLITS):
            names = [f"class {number}" for number in range(5 * k, 5 * k + 5)]
            for name, source in zip(names, classes[5 * k :], strict=False):
                (large / name).mkdir(parents=True)
                for copy in range(40):
                    shutil.copy(source / f"{copy % helpers.N_IMAGES}.png", large / name / f"{copy}.png")
            (large / f"{split}.txt").write_text("\n".join(names))

    def train(**options: object) -> Callable[[Path], list[str]]:
        more = {"data": f"folder:{data}", "val_every": 4, "val_episodes": 2, "threads": 1, "resume": True} | options
        return lambda out: ["train", *TINY, *flags(**more, out=out)]

    def half(out: Path) -> None:
        Job(train(episodes=40), ".lock", same_runs).finish(out)

    def unreported(out: Path) -> None:
        Job(train(episodes=8), ".lock", same_runs).finish(out)
        (out / "report.html").unlink()

    shipped = "meta-lstm-cifar-fs-5w5s"
    decode = ["evaluate", shipped, "--data", f"folder:{large}", *flags(split="all", episodes=2, threads=1)]
    adapt = ["adapt", str(data), "--threads", "1", "--checkpoint", shipped]
    return {
        "train": Job(train(episodes=80), ".lock", same_runs),
        "resume": Job(train(episodes=80), ".lock", same_runs, half),
        "pre-training": Job(train(episodes=20, pretrain=60), ".lock", same_runs),
        "report": Job(train(episodes=8), ".lock", same_runs, unreported),
        "table": Job(lambda out: [str(large), str(out)], "rows", same_tables, module="hostile.small_table"),
        "adapt": Job(lambda out: [*adapt, "--out", str(out / "c.safetensors")], "", same_files("*.safetensors")),
        "cache": Job(lambda out: decode, "cache", same_files("cache/folder-*")),
    }


def same_runs(one: Path, other: Path) -> None:
    """Whether two runs learned the same and reported the same, but for times."""
    for name in ("last.safetensors", "best.safetensors"):
        assert_same_tensors(one / name, other / name)
    assert metrics(one) == metrics(other), "other metrics"
    same_files("config.json")(one, other)
    for run in (one, other):
        assert (run / "report.html").read_text().rstrip().endswith("</html>"), "no whole report"
        left = [path.name for path in run.glob(".*.tmp")]
        assert not left, f"half a file is left: {left}"


def same_tables(one: Path, other: Path) -> None:
    """Whether two tables have the same results, but for times."""
    rows = [{path.name: _plain(path) for path in (table / "rows").glob("*.json")} for table in (one, other)]
    assert rows[0], "no rows"
    assert rows[0] == rows[1], "other rows"
    assert (other / "report.html").read_text().rstrip().endswith("</html>"), "no whole report"


def same_files(pattern: str) -> Callable[[Path, Path], None]:
    """Compares some files of two folders, byte by byte."""

    def compare(one: Path, other: Path) -> None:
        files = [{path.name: path.read_bytes() for path in folder.glob(pattern)} for folder in (one, other)]
        assert files[0], f"no {pattern}"
        assert files[0] == files[1], f"other {pattern}: {[list(each) for each in files]}"

    return compare


def _plain(path: Path) -> dict[str, Any]:
    return {name: value for name, value in json.loads(path.read_text()).items() if name not in TIMES}
