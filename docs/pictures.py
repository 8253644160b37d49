"""Draw the pictures of the guides from a shipped checkpoint and built-in drawings: python docs/pictures.py [FOLDER]."""

import io
import sys
from itertools import chain
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from metalstm import checkpoint, data, demo, files, kernels, recipes, report
from metalstm.episodes import EpisodeSampler
from metalstm.evaluation import difference, evaluate
from metalstm.methods import GradientMethod
from metalstm.methods.pixels import PixelNearestNeighbor
from metalstm.methods.tuning import Curves, curves

CHECKPOINT = "meta-lstm-omniglot-5w5s"
EPISODES = 200
PATHS = 30  # tasks whose theta is followed
OUT = Path(__file__).parent / "pictures"


def main(out: Path = OUT) -> None:
    """Compare optimizers on scripts that no training saw, and draw what they do."""
    kernels.build()
    method, config, _ = checkpoint.load_method(CHECKPOINT)
    untrained = recipes.build(config)
    assert isinstance(method, GradientMethod)
    assert isinstance(untrained, GradientMethod)
    # The moments of the pre-training mean nothing to random weights.
    untrained = untrained.with_inner_loop(keep_moments=False, query_norm="support")
    meta_sets = data.load("glyphs")
    val, test = (EpisodeSampler(meta_sets.splits[split], 5, config.n_shot) for split in ("meta-val", "meta-test"))
    save(report.episode_picture(test[0], meta_sets.traits.drawing), out / "episode.png")

    rate, descent = demo.best_descent(method, val)
    random_rate, random_descent = demo.best_descent(untrained, val)
    methods = {
        "Meta-LSTM": method,
        f"descent from its theta_0, rate {rate:g}": descent,
        f"descent from random weights, rate {random_rate:g}": random_descent,
    }
    print(f"glyphs meta-test, 5-way {config.n_shot}-shot, {EPISODES} episodes, {CHECKPOINT}")  # noqa: T201
    accuracies = {
        name: evaluate(each, test, EPISODES, name)
        for name, each in {"nearest neighbor in pixels": PixelNearestNeighbor(), **methods}.items()
    }
    for name, accuracy in accuracies.items():
        print(f"{name}: {accuracy}")  # noqa: T201
    learned, plain = (accuracies[name].per_episode for name in list(methods)[:2])
    gain = difference(learned, plain)
    print(f"Meta-LSTM minus descent from its theta_0, paired: {gain.mean:+.2f} +- {gain.ci95:.2f}")  # noqa: T201

    followed = {}
    for name, each in methods.items():
        longer = each.with_inner_loop(epochs=2 * method.settings.epochs)
        steps = range(longer.settings.epochs + 1)
        followed[name] = curves(longer, test.__getitem__, range(EPISODES), steps, name)
    save(inner_loop(method, followed, test), out / "inner-loop.png")


def inner_loop(method: GradientMethod, followed: dict[str, Curves], sampler: EpisodeSampler) -> Figure:
    """Draw accuracy over the inner steps, how far each layer moves, and theta's paths in two dimensions."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name, curve in followed.items():
        left.plot(curve.accuracy.mean(0), "o-", markersize=3, label=name)
    left.axvline(method.settings.epochs, color="0.6", linestyle=":", linewidth=1)
    left.set(xlabel="inner step", ylabel="query accuracy (%)", ylim=(0, 100))
    left.legend(fontsize=6.5, loc="lower right")

    paths = follow(method, sampler)  # (n_tasks, n_steps, n_params)
    start = paths[0, 0]
    for layer, place in method.learner.layers(sampler.n_way).items():
        moved = (paths - start)[..., place].norm(dim=-1).mean(0) / start[place].norm()
        middle.plot(100 * moved, "o-", markersize=3, label=layer)
    middle.set(xlabel="inner step", ylabel="distance from theta_0 (% of its norm)")
    middle.legend(fontsize=7)

    flat = (paths - start).flatten(0, 1)
    _, scale, directions = torch.pca_lowrank(flat, q=8, center=False)
    share = (scale[:2] ** 2).sum() / flat.square().sum()
    cosine = torch.cosine_similarity(directions[:, 0], start, dim=0).abs()
    print(f"cosine of theta_0 with the first direction of theta's paths: {cosine:.2f}")  # noqa: T201
    for path in ((paths - start) @ directions[:, :2]).unbind():
        right.plot(*path.T, "-", color="C0", alpha=0.6, linewidth=0.8)
        right.plot(*path[-1], "o", color="C0", markersize=3)
    right.plot(0, 0, "*", color="black", markersize=12)
    right.set(xlabel="first principal direction", ylabel="second")
    right.set_title(
        f"theta of {PATHS} tasks, from theta_0 (star);\n{100 * share:.0f} % of the squared distance", size=8
    )
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    for axes in (left, middle):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def follow(method: GradientMethod, sampler: EpisodeSampler) -> Tensor:
    """Theta of some tasks after each inner step, 0 first: (n_tasks, n_steps + 1, n_params)."""
    paths = []
    with torch.no_grad():
        for number in range(PATHS):
            support = sampler[number].support
            steps = chain([method.start(support)], method.trajectory(support))
            paths.append(torch.stack([step.theta[0] for step in steps]))
    return torch.stack(paths)


def save(figure: Figure, path: Path) -> None:
    """Write a picture in few colors, which takes a third of the bytes."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(report.png(figure))).convert("RGB").quantize(64).save(buffer, "png", optimize=True)
    files.write(path, buffer.getvalue())


if __name__ == "__main__":
    torch.manual_seed(0)
    main(*map(Path, sys.argv[1:2]))
