"""Put checkpoints into the package, with their calibration on meta-val.

`python tools/ship.py results/cifar-fs` takes the Meta-LSTMs of 5 ways from folders that `metalstm table` made. `python
tools/ship.py` calibrates anew the checkpoints that are in the package. METALSTM_DATA names the data.
"""

import sys
from pathlib import Path

from metalstm import checkpoint, data, kernels
from metalstm.classifier.calibration import background, calibrate
from metalstm.classifier.meta_learner import BACKGROUND, PRECISION
from metalstm.console import console

SHOTS = (1, 5)
EPISODES = 40  # of each way and shot, to fit on, and as many others to measure on


def ship(source: Path) -> None:
    """Write a checkpoint with its calibration into the package."""
    method, config, meta = checkpoint.load_method(source, PRECISION)
    splits = data.load(config.data, traits=config.traits).splits
    name = f"{config.method}-{config.data}-{config.n_way}w{config.n_shot}s"
    console.print(name)
    others = background(method, splits["meta-train"], config.n_way, config.n_shot)
    calibration, taken = calibrate(method, splits["meta-val"], episodes=EPISODES, backgrounds=(None, others))
    console.print("scores are less those of meta-train classes" if taken is not None else "scores are plain")
    for entry in calibration:
        console.print({key: value if isinstance(value, int) else round(value, 3) for key, value in entry.items()})
    folder = Path(checkpoint.__file__).parent / "checkpoints"
    tensors = checkpoint.method_tensors(method) | ({} if taken is None else {BACKGROUND: taken})
    checkpoint.save(folder / f"{name}.safetensors", tensors, meta | {"calibration": calibration})


if __name__ == "__main__":
    kernels.build()
    kernels.keep_memory()
    tables = [Path(table) for table in sys.argv[1:]]
    sources = [table / "checkpoints" / f"meta-lstm-5w{n_shot}s.safetensors" for table in tables for n_shot in SHOTS]
    for source in sources or checkpoint.shipped().values():
        ship(source)
