"""Measures what the framing of wide photos does to the accuracy of `adapt` and `predict`.

Each photo is made of a CIFAR-FS image of a meta-test class. The image lies on a wide canvas whose background is another
image, blurred, in the middle or anywhere; or its middle half fills a wide photo. All framings see the same photos.

    python tools/whole_photos.py --data-root ../shared/data --trials 20
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from metalstm import Classifier, data
from metalstm.geometry import Cropped

SIDE, WIDTH = 64, 128  # height of a photo, which is that of its object, and width
WAY, SHOT, QUERY = 5, 5, 15
CHECKPOINT = "meta-lstm-cifar-fs-5w5s"
ROWS = {  # framing and crops; None for boxes around the objects
    "crop": ("crop", 1),
    "crop, 3 crops": ("crop", 3),
    "crop, 5 crops": ("crop", 5),
    "letterbox": ("letterbox", 1),
    "squeeze": ("squeeze", 1),
    "boxes": (None, 1),
}
WHERE = ("in the middle", "anywhere", "as wide as the photo")


def photo(pixels: np.ndarray, behind: np.ndarray, left: int) -> Image.Image:
    """An object on a wide canvas."""
    canvas = Image.fromarray(behind).resize((WIDTH, SIDE)).filter(ImageFilter.GaussianBlur(6))
    canvas.paste(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, 0))
    return canvas


def trial(images, rng: np.random.RandomState, where: str) -> dict[str, float]:
    """The accuracy of each framing in percent, with objects there."""
    chosen = rng.permutation(len(images.classes))
    parts, labels = [], []
    for number in chosen[:WAY]:
        start, stop = images.spans[number]
        for k in start + rng.permutation(stop - start)[: SHOT + QUERY]:
            labels.append(images.classes[number])
            if where == "as wide as the photo":
                large = Image.fromarray(images.images[k]).resize((WIDTH, WIDTH), Image.Resampling.BICUBIC)
                wide = large.crop((0, (WIDTH - SIDE) // 2, WIDTH, (WIDTH + SIDE) // 2))
                parts.append(Cropped(wide, (0, 0, WIDTH, SIDE)))
                continue
            left = (WIDTH - SIDE) // 2 if where == "in the middle" else rng.randint(WIDTH - SIDE + 1)
            other = images.images[images.spans[rng.choice(chosen[WAY:])][0] + rng.randint(100)]
            parts.append(Cropped(photo(images.images[k], other, left), (left, 0, left + SIDE, SIDE)))
    is_support = np.arange(len(parts)) % (SHOT + QUERY) < SHOT
    found = {}
    for name, (framing, crops) in ROWS.items():
        shown = parts if framing is None else [part.image for part in parts]
        support, query = ([shown[k] for k in np.flatnonzero(rows)] for rows in (is_support, ~is_support))
        classifier = Classifier(CHECKPOINT, framing=framing).fit(support, np.array(labels)[is_support])
        found[name] = 100 * float((classifier.predict(query, crops) == np.array(labels)[~is_support]).mean())
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--where", nargs="+", choices=WHERE, default=WHERE)
    options = parser.parse_args()
    images = data.load("cifar-fs", options.data_root).splits["meta-test"]
    print("| the object is | " + " | ".join(ROWS) + " |")  # noqa: T201
    for where in options.where:
        rng = np.random.RandomState(0)
        trials = [trial(images, rng, where) for _ in range(options.trials)]
        table = np.array([list(each.values()) for each in trials])
        half = 1.96 * table.std(0, ddof=1) / len(table) ** 0.5
        cells = [f"{mean:.1f} +- {h:.1f}" for mean, h in zip(table.mean(0), half, strict=True)]
        print(f"| {where} | " + " | ".join(cells) + " |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
