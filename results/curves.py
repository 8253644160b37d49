"""Draw the pictures of this folder: `python results/curves.py RUNS`, where RUNS holds the run folders."""

import sys
from pathlib import Path

from metalstm import report

PICTURES = {
    "cifar-fs/curves-5w5s.png": {"best": "cifar5-best", "paper": "cifar5-paper"},
    "omniglot/curves-5w5s.png": {"best": "omni5-best", "paper": "omni5-paper"},
    "omniglot/curves-5w1s.png": {"best": "omni1-best", "paper": "omni1-paper"},
    "omniglot/clip.png": {"clip 10 (best)": "omni5-best", "clip 0.25": "omni5-clip"},
}

runs, here = Path(sys.argv[1]), Path(__file__).parent
for picture, labels in PICTURES.items():
    figure = report.meta_val_curves({label: runs / folder for label, folder in labels.items()})
    report.save(figure, here / picture)
