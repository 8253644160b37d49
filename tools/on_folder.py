"""Compare checkpoints on images of your own: learn from a few images of some classes, predict others of them.

    python tools/on_folder.py FOLDER NAME NAME ...

FOLDER holds a folder of images for each class. Each trial draws classes and images to learn from, the same for all
checkpoints, and predicts up to 20 other images of each class, as `metalstm adapt` and `metalstm predict` do.
Differences are to the first checkpoint, paired by trial.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from metalstm import kernels
from metalstm.classifier import Classifier
from metalstm.console import console, track
from metalstm.evaluation import Accuracy, difference

N_QUERY = 20  # images of a class to predict


def files_by_class(folder: Path) -> dict[str, list[Path]]:
    """The files in each class folder."""
    return {path.name: sorted(path.iterdir()) for path in sorted(folder.iterdir()) if path.is_dir()}


def main() -> None:
    """Print the accuracies and their differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("checkpoints", nargs="+", help="names of shipped checkpoints, run folders or files")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--way", type=int, default=5)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    kernels.build()
    kernels.keep_memory()
    classes = files_by_class(args.folder)
    for n_shot in args.shots:
        accuracies = {name: [] for name in args.checkpoints}
        for number in track(range(args.trials), f"{n_shot} of a class"):
            random = np.random.default_rng([args.seed, n_shot, number])
            drawn = {
                str(name): random.permutation(classes[str(name)])[: n_shot + N_QUERY]
                for name in random.choice(list(classes), args.way, replace=False)
            }
            support = [(path, name) for name, paths in drawn.items() for path in paths[:n_shot]]
            query = [(path, name) for name, paths in drawn.items() for path in paths[n_shot:]]
            for checkpoint, found in accuracies.items():
                classifier = Classifier(checkpoint).fit(*zip(*support, strict=True))
                paths, labels = zip(*query, strict=True)
                found.append(100 * float(np.mean(classifier.predict(paths) == np.array(labels))))
        for checkpoint, found in accuracies.items():
            all_of_it, gap = Accuracy(found), difference(found, accuracies[args.checkpoints[0]])
            less = "" if checkpoint == args.checkpoints[0] else f", {gap.mean:+.2f} ± {gap.ci95:.2f}"
            line = f"{n_shot} of a class: {checkpoint} {all_of_it.mean:.2f} ± {all_of_it.ci95:.2f}{less}"
            console.print(line, soft_wrap=True)


if __name__ == "__main__":
    main()
