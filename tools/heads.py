"""The learned optimizer as a head on frozen features, against logistic regression tuned by cross-validation.

    python tools/heads.py CHECKPOINT --json OUT

CHECKPOINT is one whose network gives the features. Besides the features themselves, random projections of them to 64
and 1,024 numbers are tested. The regression is scikit-learn's, on features of length 1, with the penalty that is best
in 5-fold cross-validation on the support set. All see the same episodes of meta-test. METALSTM_DATA names the data.
"""

import argparse
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from metalstm import backbones, data
from metalstm.classifier.choosing import on_features
from metalstm.classifier.cross_validation import folds
from metalstm.classifier.inputs import Examples
from metalstm.console import console, track
from metalstm.data import ImagesByClass
from metalstm.episodes import EpisodeSampler
from metalstm.images import Preprocessing
from metalstm.methods.logistic import Logistic

HEADS = "meta-lstm", "class-means"
PENALTIES = Logistic.choices["penalty"]  # the first where there is one image of each class
WAYS, SHOTS, N_QUERY = (2, 5, 10, 20), (1, 5, 20, 50), 15
PIXELS = Preprocessing(32, 3, drawing=False)  # not looked at: features are there
PROJECTIONS = {"features": None, "projected to 64": 64, "projected to 1,024": 1024}


def accuracies(features: np.ndarray, images: ImagesByClass, n_way: int, n_shot: int, number: int) -> list[float]:
    """The accuracy of each head in episode `number`, in percent."""
    support, y, query = EpisodeSampler(images, n_way, n_shot, N_QUERY)._draw(number)
    backbone: Any = SimpleNamespace(name="", sha256="", input=None, n_features=features.shape[1], preprocessing=PIXELS)
    known, asked = (features[rows][:, None, :, None] for rows in (support, query))
    query_y = np.arange(n_way).repeat(N_QUERY)
    found = []
    for head in HEADS:
        learner = on_features(backbone, Examples(known, y, [""] * len(y)), head, 0, "cpu")
        task = learner.task(known, y, 0)
        answers = learner.network(learner.method.adapt(task.support), task).answers(asked)[0]
        found.append(100 * float((answers.argmax(1) == query_y).mean()))
    unit, queries = (
        each / np.linalg.norm(each, axis=1, keepdims=True) for each in (features[support], features[query])
    )
    return [*found, 100 * tuned_regression(unit, y).score(queries, query_y)]


def tuned_regression(x: np.ndarray, y: np.ndarray) -> LogisticRegression:
    """A regression whose penalty has the best cross-validated accuracy."""
    fold, best = folds(y, 0), (0.0, PENALTIES[0])
    if fold.max() >= 0:
        right = dict.fromkeys(PENALTIES, 0.0)
        for penalty in PENALTIES:
            for k in range(fold.max() + 1):
                own = fold == k
                right[penalty] += float(own.sum() * regression(x[~own], y[~own], penalty).score(x[own], y[own]))
        best = max((value, penalty) for penalty, value in right.items())
    return regression(x, y, best[1])


def regression(x: np.ndarray, y: np.ndarray, penalty: float) -> LogisticRegression:
    """A regression that is fitted."""
    return LogisticRegression(C=1 / penalty, max_iter=300, tol=1e-3).fit(x, y)


def measure(
    features: np.ndarray, images: ImagesByClass, n_way: int, n_shot: int, episodes: int, seconds: float
) -> dict:
    """Mean accuracies over some episodes, and the paired difference with its 95 % interval."""
    end, rows = time.process_time() + seconds, []
    for number in range(episodes):
        if number > 3 and time.process_time() > end:
            break
        rows.append(accuracies(features, images, n_way, n_shot, number))
    table = np.array(rows)
    difference = table[:, 0] - table[:, -1]
    ci95 = 1.96 * difference.std(ddof=1) / len(table) ** 0.5
    means = dict(zip([*HEADS, "logistic"], table.mean(0).round(2).tolist(), strict=True))
    return {**means, "minus_logistic": round(difference.mean(), 2), "ci95": round(ci95, 2), "episodes": len(table)}


def main() -> None:
    """Print a line for each cell; write all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", default="cifar-fs")
    parser.add_argument("--split", default="meta-test")
    parser.add_argument("--episodes", type=int, default=100, help="of a cell, at most")
    parser.add_argument("--seconds", type=float, default=1e9, help="of processor time for a cell, after 4 episodes")
    parser.add_argument("--ways", type=int, nargs="*", default=WAYS)
    parser.add_argument("--shots", type=int, nargs="*", default=SHOTS)
    parser.add_argument("--only", nargs="*", default=list(PROJECTIONS), choices=list(PROJECTIONS))
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    backbone = backbones.load(args.checkpoint)
    images = data.load(args.data).splits[args.split]
    whole = np.zeros((len(images.images), backbone.n_features), np.float32)
    for start, stop in track(images.spans, "embedding"):
        whole[start:stop] = backbone.compute(np.asarray(images.images[start:stop]))
    results = []
    for name in args.only:
        size, features = PROJECTIONS[name], whole
        if size is not None:
            random = torch.randn(backbone.n_features, size, generator=torch.Generator().manual_seed(0)).numpy()
            features = whole @ (random / size**0.5)
        for n_way in args.ways:
            for n_shot in args.shots:
                cell = measure(features, images, n_way, n_shot, args.episodes, args.seconds)
                results.append({"features": name, "n_way": n_way, "n_shot": n_shot, **cell})
                console.print(json.dumps(results[-1]), soft_wrap=True)
                about = {"checkpoint": args.checkpoint, "data": args.data, "split": args.split}
                lines = ",\n".join(f"  {json.dumps(each)}" for each in results)
                args.json.write_text(f'{{"about": {json.dumps(about)}, "cells": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
