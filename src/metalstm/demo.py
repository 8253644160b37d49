"""The demo: the whole idea in one run, on built-in data."""

from dataclasses import replace
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.table import Table

from metalstm import checkpoint, data, recipes, report
from metalstm.console import console
from metalstm.episodes import EpisodeSampler
from metalstm.evaluation import Accuracy, evaluate
from metalstm.methods import GradientMethod
from metalstm.methods.pixels import PixelNearestNeighbor
from metalstm.optimizers import SGD
from metalstm.training import train

N_WAY, N_SHOT = 5, 5
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
TUNING_EPISODES, TEST_EPISODES = 30, 100


def demo(out: Path, episodes: int, seed: int, device: str) -> None:
    """Meta-train on glyphs, compare on unseen scripts, and write `report.html` into the run folder.

    Args:
        out: Run folder. If it holds a run of the demo, that run is resumed.
        episodes: Meta-train episodes.
        seed: Seed of the weights and of the episodes.
        device: Where to compute.
    """
    meta_sets = data.load("glyphs")
    recipe = recipes.named("meta-lstm", "best", meta_sets.traits, N_SHOT)
    training = replace(recipe.training, episodes=episodes, val_every=100, val_episodes=30)
    recipe = replace(recipe, training=training)
    config = recipes.run_config(meta_sets, recipe, "meta-lstm", "best", N_WAY, N_SHOT, seed=seed)
    console.print(
        f"Meta-training the Meta-LSTM: {episodes} episodes of {N_WAY} characters, {N_SHOT} drawings each",
        soft_wrap=True,
    )
    train(config, meta_sets, out, resume=True, device=device)
    method = cast(GradientMethod, checkpoint.load_method(out)[0]).to(device)

    val, test = (
        EpisodeSampler(meta_sets.splits[split], N_WAY, N_SHOT, seed=seed, device=device)
        for split in ("meta-val", "meta-test")
    )
    rate, descent = best_descent(method, val)
    methods = {
        "nearest neighbor in pixels": PixelNearestNeighbor(),
        f"gradient descent from the Meta-LSTM's theta_0, best rate {rate:g}": descent,
        "Meta-LSTM": method,
    }
    rows = [("chance", f"{100 / N_WAY:.2f} %")]
    rows += [(name, str(evaluate(method, test, TEST_EPISODES, name))) for name, method in methods.items()]
    table = Table("method", "accuracy", title=f"Unseen scripts, {N_WAY}-way {N_SHOT}-shot, {TEST_EPISODES} episodes")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
    intro = (
        f"Each method learns from {N_SHOT} drawings of each of {N_WAY} characters, from scripts that meta-training did "
        f"not see. The table shows mean accuracy and 95 % interval over the same {TEST_EPISODES} meta-test episodes. "
        "Gradient descent starts from the Meta-LSTM's own theta_0. It has one rate, chosen on meta-val, in place of "
        "the learned optimizer."
    )
    report.write_run(out, "Meta-LSTM demo", meta_sets.splits["meta-test"], [intro, (("method", "accuracy"), rows)])
    console.print(f"Report: {out / 'report.html'}", soft_wrap=True)


def best_descent(method: GradientMethod, val_sampler: EpisodeSampler) -> tuple[float, GradientMethod]:
    """Plain gradient descent from the method's own theta_0, with the rate that is best on meta-val.

    The method and this rival differ in the optimizer alone, so that comparing them shows what the learned optimizer
    adds to the learned start.
    """
    tuned: dict[float, tuple[Accuracy, GradientMethod]] = {}
    for rate in RATES:
        rival = method.with_inner_loop(optimizer=SGD(rate))
        accuracy = evaluate(rival, val_sampler, TUNING_EPISODES, f"gradient descent, rate {rate:g}")
        tuned[rate] = accuracy, rival
    rate = max(tuned, key=lambda rate: tuned[rate][0].mean)
    return rate, tuned[rate][1]
