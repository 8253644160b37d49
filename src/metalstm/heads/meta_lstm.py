"""The learned optimizer on features of any network."""

from dataclasses import replace
from functools import cache
from math import sqrt

import torch

from metalstm import checkpoint
from metalstm.heads.base import Head, describe
from metalstm.learners.convolutional import Convolutional
from metalstm.methods import Method, RunConfig

SOURCE = "meta-lstm-cifar-fs-5w5s"  # the shipped checkpoint whose optimizer is taken
STEPS = (5, 15, 50)  # inner steps
RATES = (1.0, 0.25)  # times the learned ones


class MetaLSTMHead(Head):
    """A linear head of zeros, trained by the optimizer that a shipped checkpoint has learned.

    Each coordinate of the head is a cell of its own with the same weights, so that any number of features will do.
    Features get the length that they had when the optimizer was learned. Another length is another rate: at twice the
    length the logits follow the gradient four times as fast.
    """

    label = "the learned optimizer"

    def candidates(self, n_features: int, n_way: int, n_shot: int) -> list[RunConfig]:
        """One for each number of steps and rate."""
        _, source = _source()
        return [
            describe(
                "meta-lstm",
                n_features,
                source.n_way,  # gradients are scaled by the ratio of the classes to it
                n_shot,
                Convolutional.length * sqrt(rate),
                settings=replace(source.settings, epochs=steps),
                optimizer=source.optimizer,
                optimizer_settings=source.optimizer_settings,
            )
            for rate in RATES
            for steps in STEPS
        ]

    def build(self, config: RunConfig) -> Method:
        """The method, with the weights of the learned optimizer."""
        method = super().build(config)
        learned = {name: each for name, each in _source()[0].state_dict().items() if name.startswith("optimizer.")}
        method.load_state_dict(method.state_dict() | learned)
        with torch.no_grad():
            getattr(method, "head_0").zero_()  # noqa: B009
        return method


@cache
def _source() -> tuple[Method, RunConfig]:
    method, config, _ = checkpoint.load_method(SOURCE)
    return method, config
