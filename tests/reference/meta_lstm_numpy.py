"""The Meta-Learner LSTM, one coordinate and one unit at a time (Ravi & Larochelle 2017, section 3)."""

from dataclasses import dataclass
from math import copysign, exp, log, tanh

import numpy as np

P = 10.0


@dataclass
class State:
    """What every coordinate carries from step to step; f and i are the gates before the sigmoid."""

    h: np.ndarray  # (n_params, hidden)
    c: np.ndarray  # (n_params, hidden)
    f: np.ndarray  # (n_params,)
    i: np.ndarray  # (n_params,)

    @classmethod
    def zeros(cls, n_params: int, hidden: int) -> "State":
        return cls(np.zeros((n_params, hidden)), np.zeros((n_params, hidden)), np.zeros(n_params), np.zeros(n_params))


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + exp(-x))


def preprocess(x: float) -> tuple[float, float]:
    """Section 3.2: `(log|x| / p, sign x)` where `|x| >= e^-p`, else `(-1, e^p x)`."""
    if abs(x) >= exp(-P):
        return log(abs(x)) / P, copysign(1.0, x)
    return -1.0, exp(P) * x


def lstm_unit(weights: dict[str, np.ndarray], inputs: list[float], h: np.ndarray, c: np.ndarray):
    """An ordinary LSTM for one coordinate: `c = f c + i g`, `h = o tanh(c)`."""
    hidden = len(h)
    new_h, new_c = np.zeros(hidden), np.zeros(hidden)
    for unit in range(hidden):
        row = {"input": unit, "forget": hidden + unit, "cell": 2 * hidden + unit, "output": 3 * hidden + unit}
        total = {}
        for gate, r in row.items():
            total[gate] = weights["bias"][r]
            for j, x in enumerate(inputs):
                total[gate] += weights["weight_x"][r, j] * x
            for j in range(hidden):
                total[gate] += weights["weight_h"][r, j] * h[j]
        new_c[unit] = sigmoid(total["forget"]) * c[unit] + sigmoid(total["input"]) * tanh(total["cell"])
        new_h[unit] = sigmoid(total["output"]) * tanh(new_c[unit])
    return new_h, new_c


def gate(weight: np.ndarray, bias: float, h: np.ndarray, theta: float, previous: float) -> float:
    """`W . [h_t, theta_{t-1}, gate_{t-1}] + b`, before the sigmoid (section 3.1)."""
    total = bias
    for unit in range(len(h)):
        total += weight[unit] * h[unit]
    return total + weight[len(h)] * theta + weight[len(h) + 1] * previous


def step(weights: dict[str, np.ndarray], theta: np.ndarray, grad: np.ndarray, loss: float, state: State):
    """`theta_t = f_t theta_{t-1} - i_t grad_t` for every coordinate; returns theta_t and the new state."""
    new_theta, new = np.zeros(len(theta)), State.zeros(len(theta), state.h.shape[1])
    for k in range(len(theta)):
        inputs = [*preprocess(grad[k]), *preprocess(loss)]
        new.h[k], new.c[k] = lstm_unit(weights, inputs, state.h[k], state.c[k])
        new.f[k] = gate(weights["weight_f"], float(weights["bias_f"]), new.h[k], theta[k], state.f[k])
        new.i[k] = gate(weights["weight_i"], float(weights["bias_i"]), new.h[k], theta[k], state.i[k])
        new_theta[k] = sigmoid(new.f[k]) * theta[k] - sigmoid(new.i[k]) * grad[k]
    return new_theta, new
