"""Measures what `predict --crops` does to "none of these" (`--reject`), on a folder of photos.

    python tools/crops_and_outsiders.py FOLDER

FOLDER holds a folder of square photos for each class. Each trial learns from 5 classes, 10 photos of each, and asks
about 15 others of each and as many photos of other classes. Photos are made wide as in `tools/whole_photos.py`: each
lies on another one, blurred; or its middle half fills a wide photo. The score of an image is the mean over its crops,
their largest or that of the middle one, and is compared with the threshold of the classifier.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from on_folder import files_by_class
from PIL import Image
from whole_photos import SIDE, WIDTH, photo

from metalstm import Classifier, kernels
from metalstm.classifier.calibration import auroc
from metalstm.console import console, track

WAY, SHOT, QUERY, CROPS = 5, 10, 15, 5
SHAPES = ("square", "in the middle", "anywhere", "as wide as the photo")
ROWS = {  # which crops count, and how their scores become one
    "1 crop": ([2], np.mean),
    "3 crops, mean": ([0, 2, 4], np.mean),
    "3 crops, largest": ([0, 2, 4], np.max),
    "5 crops, mean": ([0, 1, 2, 3, 4], np.mean),
    "5 crops, largest": ([0, 1, 2, 3, 4], np.max),
}


def shaped(path: Path, behind: Path, shape: str, random: np.random.Generator) -> Image.Image:
    """A photo as one of `SHAPES`; `behind` is what a wide one is put on."""
    image = Image.open(path).convert("RGB")
    if shape == "square":
        return image
    if shape == "as wide as the photo":
        large = image.resize((WIDTH, WIDTH), Image.Resampling.BICUBIC)
        return large.crop((0, (WIDTH - SIDE) // 2, WIDTH, (WIDTH + SIDE) // 2))
    left = (WIDTH - SIDE) // 2 if shape == "in the middle" else int(random.integers(WIDTH - SIDE + 1))
    return photo(np.asarray(image), np.asarray(Image.open(behind).convert("RGB")), left)


def trial(classes: dict[str, list[Path]], shape: str, seed: list[int]) -> list[tuple[float, float, float]]:
    """For each of `ROWS`: AUROC, the share of known images that are kept and of outsiders that are turned away."""
    random = np.random.default_rng(seed)
    own, others = np.split(random.permutation(list(classes)), [WAY])
    drawn = {name: random.permutation(np.array(classes[name]))[: SHOT + QUERY] for name in own}
    outside = [random.choice(np.array(classes[name])) for name in random.choice(others, WAY * QUERY)]

    def made(paths: list[Path]) -> list[Image.Image]:
        return [shaped(path, random.choice(np.array(classes[random.choice(others)])), shape, random) for path in paths]

    support = made([path for paths in drawn.values() for path in paths[:SHOT]])
    asked = made([*(path for paths in drawn.values() for path in paths[SHOT:]), *outside])
    classifier = Classifier().fit(support, np.repeat(own, SHOT))
    views = np.concatenate([classifier.preprocessing.views(image, CROPS) for image in asked])
    scores = classifier.network.answers(views)[1].reshape(-1, CROPS)
    found = []
    for crops, merge in ROWS.values():
        known, outsiders = np.split(merge(scores[:, crops], axis=1), [WAY * QUERY])
        kept, away = (known >= classifier.threshold()).mean(), (outsiders < classifier.threshold()).mean()
        found.append((auroc(torch.from_numpy(known), torch.from_numpy(outsiders)), float(kept), float(away)))
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    kernels.build()
    kernels.keep_memory()
    classes = files_by_class(args.folder)
    for number, shape in enumerate(SHAPES):
        trials = [trial(classes, shape, [number, k]) for k in track(range(args.trials), shape)]
        mean, spread = np.mean(trials, 0), 1.96 * np.std(trials, 0, ddof=1) / len(trials) ** 0.5
        for name, (area, kept, away), (h_area, h_kept, h_away) in zip(ROWS, mean, spread, strict=True):
            console.print(
                f"| {shape} | {name} | {area:.3f} ± {h_area:.3f} | {100 * kept:.1f} ± {100 * h_kept:.1f} "
                f"| {100 * away:.1f} ± {100 * h_away:.1f} |",
                soft_wrap=True,
            )


if __name__ == "__main__":
    main()
