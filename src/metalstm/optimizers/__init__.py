"""Inner optimisers: update rules for a learner's parameters."""

from metalstm.optimizers.base import InnerOptimizer
from metalstm.optimizers.meta_lstm import MetaLSTM, MetaLSTMState
from metalstm.optimizers.rules import RULES, SGD, Adadelta, Adagrad, Adam, Momentum

__all__ = [
    "RULES",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "InnerOptimizer",
    "MetaLSTM",
    "MetaLSTMState",
    "Momentum",
]
