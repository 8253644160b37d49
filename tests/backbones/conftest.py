"""A small network in an ONNX file, and as a module."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metalstm.classifier import export

SIZE = 16
INPUT = {"size": SIZE, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}


@pytest.fixture(scope="session")
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return nn.Sequential(*layers).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def exported(net, tmp_path_factory) -> bytes:
    """The network as torch exports it."""
    pytest.importorskip("onnxscript")
    batch = ({0: torch.export.Dim.DYNAMIC},)
    with export._quiet():
        program = torch.onnx.export(
            net, (torch.zeros(2, 3, SIZE, SIZE),), dynamo=True, verbose=False, dynamic_shapes=batch
        )
    assert program is not None
    return program.model_proto.SerializeToString()


@pytest.fixture
def onnx_file(exported, tmp_path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(exported)
    path.with_suffix(".json").write_text(json.dumps(INPUT))
    return path


@pytest.fixture
def pixels() -> Any:
    return np.random.RandomState(0).randint(0, 256, (5, SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture
def colors() -> tuple[list[np.ndarray], list[str]]:
    """Twelve noisy images of three colors, and their names."""
    rng, images, labels = np.random.RandomState(1), [], []
    for name, color in {"red": (200, 40, 40), "green": (40, 190, 60), "blue": (40, 50, 200)}.items():
        for _ in range(4):
            images.append(np.clip(rng.randint(0, 60, (20, 24, 3)) + np.array(color), 0, 255).astype(np.uint8))
            labels.append(name)
    return images, labels
