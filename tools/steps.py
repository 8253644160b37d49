"""Whether tuned rows want more inner steps than tuning offers: the chosen settings, followed further on meta-val.

    python tools/steps.py results/cifar-fs

Takes the tuned checkpoints of a table at its main task, and writes `more-steps.json` beside it. METALSTM_DATA names the
data.
"""

import json
import sys
from pathlib import Path

import torch

from metalstm import checkpoint, data, files, kernels
from metalstm.console import console
from metalstm.evaluation import Accuracy
from metalstm.methods import GradientMethod
from metalstm.methods.tuning import curves
from metalstm.table import ROWS, Cell, Table

FURTHER = (30, 40, 60)  # steps, beside those that tuning read
EPISODES = range(100, 150)  # of meta-val; tuning took those before


def main(folder: Path) -> None:
    """Print the accuracy on meta-val at each number of steps, for each tuned row, and write it."""
    torch.set_num_threads(1)
    kernels.build()
    table = Table(data.load(folder.name), folder)
    points = (*table.budget.search.read_at, *FURTHER)
    sampler = table.episodes("meta-val", table.main_task)
    accuracies = {}
    for row in ROWS:
        path = table.checkpoint(Cell(row, table.main_task))
        if not path.exists():
            continue
        method, _, meta = checkpoint.load_method(path)
        if "chosen" not in meta or not isinstance(method, GradientMethod):
            continue
        longer = method.with_inner_loop(epochs=points[-1])
        read = curves(longer, sampler.__getitem__, EPISODES, points, f"{row.name}, {points[-1]} steps").accuracy
        accuracies[row.name] = {steps: str(Accuracy(read[:, k].tolist())) for k, steps in enumerate(points)}
        console.print(f"{row.name}, {meta['chosen']['steps']} steps chosen: {accuracies[row.name]}", soft_wrap=True)
    files.write(folder / "more-steps.json", (json.dumps(accuracies, indent=1) + "\n").encode())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python tools/steps.py FOLDER_OF_A_TABLE, named as its data set")
    main(Path(sys.argv[1]))
