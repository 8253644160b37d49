"""How good pre-trained networks are as starts: class means on their features, over the same meta-val episodes.

    python tools/rate_starts.py RUN RUN ...

Each RUN is a run folder of `metalstm train --method pretrained`; differences are paired and to the first.
METALSTM_DATA names the data.
"""

import argparse
from dataclasses import replace

from metalstm import checkpoint, data, kernels, recipes
from metalstm.console import console
from metalstm.episodes import EpisodeSampler
from metalstm.evaluation import difference, evaluate


def main() -> None:
    """Print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--episodes", type=int, default=600)
    args = parser.parse_args()
    kernels.build()
    kernels.keep_memory()
    for n_way, n_shot in ((5, 1), (5, 5)):
        first = None
        for run in args.runs:
            start, config, _ = checkpoint.load_method(run, {"precision": "fp32"})
            images = data.load(config.data, traits=config.traits).splits["meta-val"]
            changes = {"normalize": "unit", "pretrain": 0, "episodes": 0}
            recipe = recipes.named("class-means", "best", config.traits, n_shot)
            own = replace(config, method="class-means", settings=recipe.settings)
            method = recipes.build(recipes.with_changes(own, changes)).eval()
            method.start_from(start.network())
            accuracy = evaluate(method, EpisodeSampler(images, n_way, n_shot), args.episodes)
            first = first or accuracy
            gap = difference(accuracy.per_episode, first.per_episode)
            console.print(
                f"{run} {n_way}-way {n_shot}-shot: {accuracy.mean:.2f} +- {accuracy.ci95:.2f} %; "
                f"{gap.mean:+.2f} +- {gap.ci95:.2f}",
                soft_wrap=True,
            )


if __name__ == "__main__":
    main()
