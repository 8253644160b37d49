"""Whether fine-tuning wants more inner steps than tuning offers: the chosen settings, followed further on meta-val.

    python tools/steps.py results/cifar-fs

The data root is METALSTM_DATA, as for `metalstm`.
"""

import json
import sys
from pathlib import Path

import torch

from metalstm import checkpoint, datasets, kernels
from metalstm.console import console
from metalstm.evaluation import Accuracy
from metalstm.methods import GradientMethod, Pretrained
from metalstm.optimizers import RULES
from metalstm.table import PRETRAINING, Budget, Table, select
from metalstm.tuning import READ_AT, Choice, curves

STEPS = (*READ_AT, 30, 40, 60)
EPISODES = range(100, 150)  # of meta-val; tuning took those before


def main(folder: Path) -> None:
    """Print the accuracy on meta-val at each number of steps, for each rule at 5 shots, and keep it."""
    torch.set_num_threads(1)
    kernels.build()
    table = Table(datasets.load(folder.name), folder, Budget(read_at=STEPS), precision="bf16")
    pretrained, config, _ = checkpoint.load_method(table.run(select("nearest-neighbor")[0], PRETRAINING))
    assert isinstance(pretrained, Pretrained)
    told = {}
    for rule in RULES:
        choice = Choice(**json.loads((folder / "choices" / f"finetune-{rule}-{rule}-5w5s.json").read_text()))
        method = table.untuned(PRETRAINING, config, pretrained)
        assert isinstance(method, GradientMethod)
        method.optimizer = RULES[rule](choice.lr, choice.decay)
        sampler = table.episodes("meta-val", PRETRAINING)
        read = curves(method, sampler.__getitem__, EPISODES, STEPS, f"{rule}, {STEPS[-1]} steps").accuracy
        told[rule] = {steps: str(Accuracy(read[:, k].tolist())) for k, steps in enumerate(STEPS)}
        console.print(f"{rule}, {choice.steps} steps chosen: {told[rule]}", soft_wrap=True)
    checkpoint.write(folder / "choices" / "more-steps.json", (json.dumps(told, indent=1) + "\n").encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
