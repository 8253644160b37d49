"""What the LSTM of a trained Meta-LSTM does: its gates replaced by simpler things, without training anew.

    python tools/without_lstm.py meta-lstm-cifar-fs-5w5s

Replacements, each with means taken on meta-train tasks: mean gates of each coordinate and step, of each layer and step,
of each layer; one rate for all; no step at all. Prints the accuracy of each on meta-test and the paired difference from
the whole method, with 95 % intervals. METALSTM_DATA names the data.
"""

import argparse
import os
from pathlib import Path

import torch

from metalstm import checkpoint, data, kernels
from metalstm.console import console
from metalstm.episodes import EpisodeSampler
from metalstm.errors import UserError
from metalstm.evaluation import Accuracy, difference, evaluate
from metalstm.methods import GradientMethod
from metalstm.table import rivals

MEAN_TASKS = 100  # meta-train tasks that the means of the gates are taken over


def main() -> None:
    """Test all variants, and print them as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a shipped checkpoint's name, a run folder or a file")
    parser.add_argument("--episodes", type=int, default=600, help="meta-test episodes")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kernels.build()
    kernels.keep_memory()
    method, config, _ = checkpoint.load_method(args.checkpoint, {"precision": "fp32"})
    if not isinstance(method, GradientMethod) or not any(True for _ in method.optimizer.parameters()):
        raise UserError(f"{args.checkpoint} has no learned inner optimizer")
    root = os.environ.get("METALSTM_DATA")
    splits = data.load(config.data, Path(root) if root else None, traits=config.traits).splits
    train, test = (
        EpisodeSampler(splits[split], config.n_way, config.n_shot, config.n_query, config.seed)
        for split in ("meta-train", "meta-test")
    )
    variants = rivals.simpler(method, map(train.__getitem__, range(MEAN_TASKS)), config.n_way)
    whole = evaluate(method, test, args.episodes, "whole")
    console.print(f"{args.checkpoint}: {args.episodes} meta-test episodes, {config.n_way}-way {config.n_shot}-shot")
    print("| gates | accuracy | minus the whole |\n| --- | --- | --- |")  # noqa: T201
    print(f"| the trained LSTM's | {_figure(whole)} | |")  # noqa: T201
    for name, variant in variants.items():
        accuracy = evaluate(variant, test, args.episodes, name)
        gap = difference(accuracy.per_episode, whole.per_episode)
        print(f"| {name} | {_figure(accuracy)} | {gap.mean:+.2f} ± {gap.ci95:.2f} |", flush=True)  # noqa: T201


def _figure(accuracy: Accuracy) -> str:
    return f"{accuracy.mean:.2f} ± {accuracy.ci95:.2f}"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"without_lstm.py: {error}") from error
