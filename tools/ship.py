"""Put checkpoints into the package, with their calibration on meta-val.

`python tools/ship.py results/cifar-fs` takes the Meta-LSTMs of 5 ways from folders that `metalstm table` made. `python
tools/ship.py` calibrates anew the checkpoints that are in the package. Run folders and files of checkpoints are taken
too. METALSTM_DATA names the data.
"""

import argparse
from pathlib import Path

from metalstm import checkpoint, data, kernels
from metalstm.classifier.calibration import background, calibrate
from metalstm.classifier.meta_learner import BACKGROUND, PRECISION
from metalstm.console import console

SHOTS = (1, 5)


def ship(source: Path, half: bool, episodes: int) -> None:
    """Write a checkpoint with its calibration into the package."""
    method, config, meta = checkpoint.load_method(source, PRECISION)
    tensors = checkpoint.method_tensors(method)
    if half:
        tensors = checkpoint.halved(tensors)
        method.load_state_dict(checkpoint.method_state(tensors))  # what is calibrated is what is shipped
    splits = data.load(config.data, traits=config.traits).splits
    learner = "" if config.learner == "conv4" else f"{config.learner}-"
    name = f"{config.method}-{config.data}-{learner}{config.n_way}w{config.n_shot}s"
    console.print(name)
    others = background(method, splits["meta-train"], config.n_way, config.n_shot)
    calibration, taken = calibrate(method, splits["meta-val"], episodes=episodes, backgrounds=(None, others))
    console.print("scores are less those of meta-train classes" if taken is not None else "scores are plain")
    for entry in calibration:
        console.print({key: value if isinstance(value, int) else round(value, 3) for key, value in entry.items()})
    folder = Path(checkpoint.__file__).parent / "checkpoints"
    if taken is not None:
        tensors[BACKGROUND] = taken
    checkpoint.save(folder / f"{name}.safetensors", tensors, meta | {"calibration": calibration})


if __name__ == "__main__":
    kernels.build()
    kernels.keep_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="*")
    parser.add_argument("--half", action="store_true", help="keep large tensors in bfloat16")
    parser.add_argument("--episodes", type=int, default=40, help="of each way and shot, to fit on, and as many to test")
    args = parser.parse_args()
    for path in args.sources or checkpoint.shipped().values():
        is_table = (path / "checkpoints").is_dir()
        names = [f"checkpoints/meta-lstm-5w{n_shot}s.safetensors" for n_shot in SHOTS] if is_table else [""]
        for name in names:
            ship(path / name, args.half, args.episodes)
