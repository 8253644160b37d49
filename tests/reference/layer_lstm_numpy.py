"""One step of `LayerLSTM` for one task, layer by layer and number by number."""

from typing import Any

import numpy as np


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def rms(x: np.ndarray) -> float:
    return float(np.sqrt((x**2).mean() + 1e-16))


def start(n_layers: int, hidden: int) -> dict[str, Any]:
    """The state before the first step."""
    zeros = np.zeros(hidden)
    return {"t": 0, "log_loss": 0.0, "layers": [{"fast": 0.0, "slow": 0.0, "h": zeros, "c": zeros}] * n_layers}


def step(
    weights: dict[str, np.ndarray],
    start_rate: float,
    theta: list[np.ndarray],
    grad: list[np.ndarray],
    loss: float,
    state: dict[str, Any],
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """theta and grad are lists of layers."""
    t, log_loss = state["t"], np.log(loss + 1e-6)
    change = log_loss - state["log_loss"] if t else 0.0
    thetas, layers = [], []
    for k, (w, g, old) in enumerate(zip(theta, grad, state["layers"], strict=True)):
        fast = 0.5 * old["fast"] + 0.5 * g
        slow = 0.9 * old["slow"] + 0.1 * g
        cosines = [(g * other).mean() / (rms(g) * rms(other)) for other in (fast, slow, w)]
        seen = np.array([np.log(rms(w)) / 4, np.log(rms(g)) / 4, *cosines, log_loss / 4, change, np.log(t + 1) / 2])
        gates = weights["weight_x"] @ seen + weights["weight_h"] @ old["h"] + weights["bias"][k]
        i, f, g_, o = np.split(gates, 4)
        c = sigmoid(f + 1) * old["c"] + sigmoid(i) * np.tanh(g_)
        h = sigmoid(o) * np.tanh(c)
        said = weights["weight_out"] @ h + weights["bias_out"][k]
        rate = start_rate * np.exp(4 * np.tanh(said[0] / 4))
        mixture = np.exp(said[2:]) / np.exp(said[2:]).sum()
        direction = sum(share * each / rms(each) for share, each in zip(mixture, (g, fast, slow), strict=True))
        thetas.append((1 - rate * said[1]) * w - rate * np.sqrt(rms(w) ** 2 + 0.02**2) * direction)
        layers.append({"fast": fast, "slow": slow, "h": h, "c": c})
    return thetas, {"t": t + 1, "log_loss": log_loss, "layers": layers}
