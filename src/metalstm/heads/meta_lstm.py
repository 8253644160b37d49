"""The learned optimizer on features of any network."""

from dataclasses import replace
from functools import cache
from math import log

import torch

from metalstm import checkpoint
from metalstm.heads.base import Head, describe
from metalstm.learners.convolutional import Convolutional
from metalstm.methods import Method, RunConfig

SOURCE = "meta-lstm-cifar-fs-5w5s"  # the shipped checkpoint whose optimizer is taken
# Inner steps by the number of images of a class, chosen on meta-val of CIFAR-FS at 5 and 16 classes.
STEPS = {1: 5, 5: 12, 20: 60, 50: 200}


class MetaLSTMHead(Head):
    """A linear head of zeros, trained by the optimizer that a shipped checkpoint has learned.

    Each coordinate of the head is a cell of its own with the same weights, so that any number of features will do.
    Features get the length that they had when the optimizer was learned. More images are worth more steps.
    """

    label = "the learned optimizer"

    def candidates(self, n_features: int, n_way: int, n_shot: int) -> list[RunConfig]:
        """One: few images say less about the best number of steps than others' tasks do."""
        _, source = _source()
        nearest = min(STEPS, key=lambda measured: abs(log(measured / n_shot)))
        config = describe(
            "meta-lstm",
            n_features,
            source.n_way,  # gradients are scaled by the ratio of the classes to it
            n_shot,
            Convolutional.length,
            settings=replace(source.settings, epochs=STEPS[nearest]),
            optimizer=source.optimizer,
            optimizer_settings=source.optimizer_settings,
        )
        return [config]

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
