"""The accuracy and speed of classifiers made from image files, beside `evaluate`; see README.md beside this file."""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import cache, partial
from math import hypot
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image

import record
from metalstm import data, files
from metalstm.classifier import Classifier
from metalstm.classifier.network import to_x
from metalstm.console import track
from metalstm.evaluation import Accuracy, evaluate_checkpoint

N_WAY, N_QUERY = 5, 15


def main(
    out: Path = Path("results/classifier/adapt_predict.json"),
    trials: int = 50,
    commands: int = 3,
    episodes: int = 600,
    threads: int = 2,
) -> None:
    """Measure, print a line for each task, and write `out`. METALSTM_DATA names the data.

    Args:
        out: The result.
        trials: Classifiers for each data set and number of shots: 5 classes of meta-test, 15 other images of each.
        commands: How many of these also go through the real commands.
        episodes: Number of episodes of `evaluate`, for comparison.
        threads: CPU threads.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    result = record.circumstances(threads) | {"tasks": []}
    for name in ("omniglot", "cifar-fs"):
        meta_sets = data.load(name)
        for n_shot in (1, 5):
            with tempfile.TemporaryDirectory() as scratch:
                task = measure(meta_sets, n_shot, Path(scratch), trials, commands)
            evaluated = evaluate_checkpoint(
                task["checkpoint"], meta_sets, "meta-test", N_WAY, n_shot, N_QUERY, episodes
            )
            task |= {"evaluate": evaluated["accuracy"], "evaluate_ci95": evaluated["ci95"]}
            difference = abs(task["accuracy"] - task["evaluate"])
            task["agrees"] = bool(difference <= hypot(task["ci95"], task["evaluate_ci95"]))
            result["tasks"].append(task)
            print(json.dumps({key: value for key, value in task.items() if key != "per_trial"}))  # noqa: T201
    files.write(out, (json.dumps(result, indent=1) + "\n").encode())


def measure(meta_sets: data.MetaSets, n_shot: int, scratch: Path, trials: int, commands: int) -> dict[str, Any]:
    """Accuracy over trials from image files, and times."""
    accuracies, fits, by_command = [], [], []
    classifier, new = Classifier(), []
    for trial in track(range(trials), f"{meta_sets.name} {n_shot}-shot"):
        folder = scratch / str(trial)
        write_images(meta_sets, n_shot, trial, folder)
        photos, new = (sorted((folder / part).rglob("*.png")) for part in ("photos", "new"))
        start = time.perf_counter()
        classifier = Classifier().fit(photos, [path.parent.name for path in photos])
        fits.append(time.perf_counter() - start)
        read, probabilities, _ = classifier.predict_files(new)
        right = classifier.classes_[probabilities.argmax(1)] == np.array([path.parent.name for path in read])
        accuracies.append(100 * right.mean())
        if trial < commands:
            by_command.append(through_commands(folder))
    return {
        "data": meta_sets.name,
        "n_shot": n_shot,
        "checkpoint": classifier.checkpoint_,
        "accuracy": Accuracy(accuracies).mean,
        "ci95": Accuracy(accuracies).ci95,
        "by_command": by_command,
        "same_by_command": accuracies[:commands],
        "adapt_seconds": median(fits),
        **speeds(classifier, new),
        "one_image_seconds": seconds(partial(one_image, classifier, new[0], scratch)),
        "per_trial": accuracies,
    }


def write_images(meta_sets: data.MetaSets, n_shot: int, trial: int, folder: Path) -> None:
    """Write images of 5 classes: `n_shot` of each to `photos/`, and others to `new/`."""
    images = meta_sets.splits["meta-test"]
    rng = np.random.RandomState([n_shot, trial])
    for k in rng.choice(len(images.classes), N_WAY, replace=False):
        rows = rng.choice(np.arange(*images.spans[k]), n_shot + N_QUERY, replace=False)
        for number, row in enumerate(rows):
            path = folder / ("photos" if number < n_shot else "new") / images.classes[k].replace("/", " ")
            path.mkdir(parents=True, exist_ok=True)
            (path / f"{number}.png").write_bytes(content(meta_sets.name, images, k, row))


def speeds(classifier: Classifier, paths: list[Path]) -> dict[str, float]:
    """Images per second of the bare network, from pixels and from files."""
    pixels = np.stack([classifier.preprocessing(path) for path in paths])
    x = to_x(torch.from_numpy(pixels), classifier.preprocessing.drawing)

    @torch.no_grad()
    def bare() -> None:
        classifier.method.logits(classifier.network.adapted, x)

    return {
        "bare_network_images_per_second": len(paths) / seconds(bare),
        "pixels_images_per_second": len(paths) / seconds(partial(classifier.probabilities, pixels)),
        "files_images_per_second": len(paths) / seconds(partial(classifier.predict_files, paths)),
    }


def content(name: str, images: data.ImagesByClass, k: int, row: int) -> bytes:
    """An image as a PNG file; of Omniglot the original one, black on white."""
    if name == "omniglot":
        archive, members = omniglot()
        return archive.read(members[images.classes[k]][row - images.spans[k, 0]])
    file = io.BytesIO()
    Image.fromarray(images.images[row]).save(file, "png")
    return file.getvalue()


@cache
def omniglot() -> tuple[zipfile.ZipFile, dict[str, list[str]]]:
    """The archive of the evaluation alphabets, and its files by class, in order."""
    archive = zipfile.ZipFile(data.default_data_root() / "omniglot" / "images_evaluation.zip")
    members: dict[str, list[str]] = {}
    for member in sorted(archive.namelist()):
        if member.endswith(".png"):
            members.setdefault("/".join(member.split("/")[1:-1]), []).append(member)
    return archive, members


def through_commands(folder: Path) -> float:
    """Accuracy in percent by `metalstm adapt` and `metalstm predict`."""
    for words in (["adapt", "photos"], ["predict", "photos.safetensors", "new", "--json", "answers.json"]):
        subprocess.run([sys.executable, "-m", "metalstm", *words], cwd=folder, check=True, capture_output=True)
    answers = json.loads((folder / "answers.json").read_text())
    return 100 * float(np.mean([answer["class"] == Path(answer["image"]).parent.name for answer in answers]))


def one_image(classifier: Classifier, path: Path, scratch: Path) -> None:
    """`metalstm predict` of one image, process start included."""
    classifier.save(scratch / "classifier.safetensors")
    words = ["predict", scratch / "classifier.safetensors", path, "--csv", "-"]
    subprocess.run([sys.executable, "-m", "metalstm", *words], check=True, capture_output=True)


def seconds(run: Callable[[], object], rounds: int = 5) -> float:
    """Median time of a few runs."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)


if __name__ == "__main__":
    tyro.cli(main)
