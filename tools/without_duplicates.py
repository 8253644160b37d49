"""What images that are in two splits do to an accuracy: the same meta-test episodes, with and without them.

    python tools/without_duplicates.py meta-lstm-cifar-fs-5w5s

In each episode that holds such an image, the next image of its class takes its place. All other episodes are the same
by construction, so only those are evaluated. METALSTM_DATA names the data.
"""

import argparse

import torch

from metalstm import checkpoint, data, kernels
from metalstm.console import console, track
from metalstm.data.duplicates import across_splits, replaced
from metalstm.episodes import Episode, EpisodeSampler
from metalstm.evaluation import difference
from metalstm.methods import Method

SPLIT = "meta-test"


def main() -> None:
    """Print the paired difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a shipped checkpoint's name, a run folder or a file")
    parser.add_argument("--episodes", type=int, default=600, help="meta-test episodes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    kernels.build()
    kernels.keep_memory()
    method, config, _ = checkpoint.load_method(args.checkpoint, {"precision": "fp32"})
    splits = data.load(config.data).splits
    rows = [place.row for group in across_splits(splits) for place in group if place.split == SPLIT]
    with_them, without = (
        EpisodeSampler(images, config.n_way, config.n_shot, config.n_query, config.seed)
        for images in (splits[SPLIT], replaced(splits[SPLIT], rows))
    )
    before, after, concerned = [], [], 0
    for number in track(range(args.episodes), "evaluating"):
        one, other = with_them[number], without[number]
        if torch.equal(one.support.x, other.support.x) and torch.equal(one.query.x, other.query.x):
            before.append(0.0)
            after.append(0.0)
        else:
            concerned += 1
            before.append(accuracy(method, one))
            after.append(accuracy(method, other))
    gap = difference(after, before)
    console.print(
        f"{args.checkpoint}: {concerned} of {args.episodes} episodes hold one of {len(rows)} images; "
        f"without them minus with them: {gap.mean:+.3f} ± {gap.ci95:.3f} points",
        soft_wrap=True,
    )


def accuracy(method: Method, episode: Episode) -> float:
    """Percent of the queries that are classified correctly."""
    with torch.no_grad():
        predicted = method.logits(method.adapt(episode.support), episode.query.x).argmax(-1)
    return 100 * (predicted == episode.query.y).double().mean().item()


if __name__ == "__main__":
    main()
