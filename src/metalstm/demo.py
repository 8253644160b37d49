"""The demo: the whole idea in one run, on built-in data."""

import copy
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from metalstm import checkpoint, datasets, recipes, report
from metalstm.console import console
from metalstm.episodes import EpisodeSampler
from metalstm.evaluation import Accuracy, evaluate
from metalstm.methods import GradientMethod, PixelNearestNeighbor
from metalstm.optimizers import SGD
from metalstm.training import run_config, train

N_WAY, N_SHOT = 5, 5
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
TUNING_EPISODES, TEST_EPISODES = 30, 100


def demo(out: Path, episodes: int, seed: int, device: str) -> None:
    """Meta-train on glyphs, compare on scripts never seen, and write `report.html` into the run folder.

    Args:
        out: Run folder.
        episodes: Meta-train episodes.
        seed: Of everything.
        device: Where to compute.
    """
    meta_sets = datasets.load("glyphs")
    settings, training = recipes.named("meta-lstm", "best", "glyphs", N_SHOT)
    training = replace(training, episodes=episodes, val_every=100, val_episodes=30)
    config = run_config(meta_sets, settings, training, "meta-lstm", "best", N_WAY, N_SHOT, seed=seed)
    console.print(
        f"Meta-training the Meta-LSTM: {episodes} episodes of {N_WAY} characters, {N_SHOT} drawings each",
        soft_wrap=True,
    )
    train(config, meta_sets, out, resume=True, device=device)
    method, _, _ = checkpoint.load_method(out)
    assert isinstance(method, GradientMethod)
    method = method.to(device)

    def sampler(split: str) -> EpisodeSampler:
        return EpisodeSampler(meta_sets.splits[split], N_WAY, N_SHOT, seed=seed, device=device)

    rate, descent = best_descent(method, sampler("meta-val"))
    rivals = {
        "nearest neighbour in pixels": PixelNearestNeighbor(),
        f"gradient descent from the Meta-LSTM's theta_0, best rate {rate:g}": descent,
        "Meta-LSTM": method,
    }
    results = {name: evaluate(rival, sampler("meta-test"), TEST_EPISODES, name) for name, rival in rivals.items()}
    rows = [("chance", f"{100 / N_WAY:.2f} %"), *((name, str(accuracy)) for name, accuracy in results.items())]
    table = Table("method", "accuracy", title=f"Unseen scripts, {N_WAY}-way {N_SHOT}-shot, {TEST_EPISODES} episodes")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
    intro = (
        f"A learner trained from {N_SHOT} drawings each of {N_WAY} characters of scripts that meta-training never saw: "
        f"mean accuracy and 95 % interval over the same {TEST_EPISODES} meta-test episodes. Gradient descent starts "
        "from the Meta-LSTM's own theta_0: it lacks the learned optimiser alone."
    )
    report.write_run(out, "Meta-LSTM demo", meta_sets.splits["meta-test"], [intro, (("method", "accuracy"), rows)])
    console.print(f"Report: {out / 'report.html'}", soft_wrap=True)


def best_descent(method: GradientMethod, val_sampler: EpisodeSampler) -> tuple[float, GradientMethod]:
    """Plain gradient descent from the method's own theta_0, with the rate that is best on meta-val.

    It tells the learned start and the learned optimiser apart.
    """
    tuned: dict[float, tuple[Accuracy, GradientMethod]] = {}
    for rate in RATES:
        rival = copy.deepcopy(method)
        rival.optimizer = SGD(rate)
        accuracy = evaluate(rival, val_sampler, TUNING_EPISODES, f"gradient descent, rate {rate:g}")
        tuned[rate] = accuracy, rival
    rate = max(tuned, key=lambda rate: tuned[rate][0].mean)
    return rate, tuned[rate][1]
