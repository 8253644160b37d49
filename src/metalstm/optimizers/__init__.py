"""Inner optimizers: update rules for a learner's parameters."""

from metalstm.optimizers.alfa import Alfa
from metalstm.optimizers.base import InnerOptimizer
from metalstm.optimizers.layer_lstm import LayerLSTM
from metalstm.optimizers.learned_rates import LearnedRates
from metalstm.optimizers.meta_lstm import MetaLSTM, MetaLSTMState
from metalstm.optimizers.meta_sgd import MetaSGD
from metalstm.optimizers.rules import SGD, Adadelta, Adagrad, Adam, Momentum, Rule

# What `--optimizer` takes. A new one is a file in this folder and a line here.
OPTIMIZERS: dict[str, type[InnerOptimizer]] = {
    "meta-lstm": MetaLSTM,
    "layer-lstm": LayerLSTM,
    "learned-rates": LearnedRates,
    "meta-sgd": MetaSGD,
    "alfa": Alfa,
    "sgd": SGD,
    "momentum": Momentum,
    "adagrad": Adagrad,
    "adadelta": Adadelta,
    "adam": Adam,
}
# Those with a fixed rule, which have nothing to learn and are tuned instead.
RULES: dict[str, type[Rule]] = {name: kind for name, kind in OPTIMIZERS.items() if issubclass(kind, Rule)}

__all__ = [
    "OPTIMIZERS",
    "RULES",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "Alfa",
    "InnerOptimizer",
    "LayerLSTM",
    "LearnedRates",
    "MetaLSTM",
    "MetaLSTMState",
    "MetaSGD",
    "Momentum",
    "Rule",
]
