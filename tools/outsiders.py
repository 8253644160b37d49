"""How well "none of these" works on classes of meta-test: AUROC, and the shares kept and turned away.

`python tools/outsiders.py` measures the shipped checkpoints on tasks as they were trained for; names of others may
follow. METALSTM_DATA names the data. The queries of an episode stand against as many images of other classes.
"""

import sys

from metalstm import checkpoint, data, kernels
from metalstm.classifier.calibration import measure, nearest
from metalstm.classifier.meta_learner import BACKGROUND, PRECISION
from metalstm.console import console
from metalstm.episodes import EpisodeSampler

EPISODES = 600


def outsiders(name: str) -> None:
    """Print a line for a calibrated checkpoint."""
    path = checkpoint.find(name)
    method, config, meta = checkpoint.load_method(path, PRECISION)
    images = data.load(config.data, traits=config.traits).splits["meta-test"]
    entry = nearest(meta["calibration"], config.n_way, config.n_shot)
    sampler = EpisodeSampler(images, config.n_way, config.n_shot, config.n_query)
    found = measure(method, sampler, range(EPISODES), entry, checkpoint.load(path)[0].get(BACKGROUND))
    console.print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in found.items()), soft_wrap=True)


if __name__ == "__main__":
    kernels.build()
    kernels.keep_memory()
    for each in sys.argv[1:] or checkpoint.shipped():
        outsiders(each)
