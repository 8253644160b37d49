"""Inner optimisers: update rules for a learner's parameters."""

from metalstm.optimizers.base import InnerOptimizer
from metalstm.optimizers.meta_lstm import MetaLSTM, MetaLSTMState
from metalstm.optimizers.rules import SGD

OPTIMIZERS = {"meta-lstm": MetaLSTM, "sgd": SGD}

__all__ = ["OPTIMIZERS", "SGD", "InnerOptimizer", "MetaLSTM", "MetaLSTMState"]
