"""Put checkpoints into the package, with their calibration on meta-val.

`python tools/ship.py results/omniglot results/cifar-fs` takes the Meta-LSTMs of 64 filters from folders that
`metalstm table` made; `python tools/ship.py` calibrates those anew that are in the package. METALSTM_DATA names the
data.
"""

import sys
from pathlib import Path

from metalstm import checkpoint, datasets, kernels
from metalstm.calibration import calibrate
from metalstm.console import console
from metalstm.learners import set_precision

SHOTS = (1, 5)
EPISODES = 40  # of each way and shot, to fit on, and as many others to measure on


def ship(source: Path) -> None:
    """Write a checkpoint into the package; of its tensors those that the method has."""
    method, config, meta = checkpoint.load_method(source)
    tensors, _ = checkpoint.load(source)
    set_precision(method, bf16=False)  # as classifiers compute
    images = datasets.load(config.data).splits["meta-val"]
    name = f"{config.method}-{config.data}-{config.n_way}w{config.n_shot}s"
    console.print(name)
    calibration = calibrate(method, config, images, episodes=EPISODES)
    for entry in calibration:
        console.print({key: value if isinstance(value, int) else round(value, 3) for key, value in entry.items()})
    folder = Path(checkpoint.__file__).parent / "checkpoints"
    kept = {key: tensor for key, tensor in tensors.items() if key.startswith("method.")}
    checkpoint.save(folder / f"{name}.safetensors", kept, meta | {"calibration": calibration})


if __name__ == "__main__":
    kernels.build()
    kernels.keep_memory()
    tables = [Path(table) for table in sys.argv[1:]]
    sources = [table / "checkpoints" / f"meta-lstm-64-5w{n_shot}s.safetensors" for table in tables for n_shot in SHOTS]
    for source in sources or checkpoint.shipped().values():
        ship(source)
