"""Logs, episodes and pixels for the tests of the report."""

import io
import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from metalstm import report
from metalstm.episodes import Episode, Query, Support

N_WAY, N_SHOT, N_QUERY = 3, 2, 4


def pixels(figure: Figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(report.png(figure))).convert("RGB"))


def write_metrics(path: Path, n: int) -> Path:
    """A log of n lines; every second one has a meta-val accuracy."""
    lines = [
        {
            "episode": 50 * k,
            "seconds": 60.0 * k,
            "loss": 1.5 / k,
            "accuracy": 20.0 + k,
            **({"meta_val": 30.0 + k} if k % 2 == 0 else {}),
        }
        for k in range(1, n + 1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def episode(n_tasks: int, channels: int = 1) -> Episode:
    x = torch.rand(n_tasks, N_WAY * (N_SHOT + N_QUERY), channels, 16, 16, generator=torch.Generator().manual_seed(0))
    y = torch.arange(N_WAY).repeat(N_SHOT + N_QUERY).expand(n_tasks, -1)
    n = N_WAY * N_SHOT
    return Episode(Support(x[:, :n], y[:, :n], N_WAY), Query(x[:, n:], y[:, n:]))
