"""Ways to learn from a support set."""

from metalstm.methods.anil import ANIL, BOIL
from metalstm.methods.base import Adapted, Method, Network, Recipe, Row, RunConfig, Search, Tuning, Watched
from metalstm.methods.baseline_pp import BaselinePlusPlus
from metalstm.methods.class_means import ClassMeans
from metalstm.methods.features import OnFeatures
from metalstm.methods.finetune import Finetune
from metalstm.methods.from_random import FromRandom
from metalstm.methods.gradient import GradientMethod, InnerLoop, Step
from metalstm.methods.logistic import Logistic
from metalstm.methods.lslr import ALFA, LSLR, MetaSGDMethod
from metalstm.methods.maml import FOMAML, MAML
from metalstm.methods.matching_net import MatchingNet, MatchingNetFCE
from metalstm.methods.meta_lstm import MetaLearnerLSTM
from metalstm.methods.pixels import PixelNearestNeighbor
from metalstm.methods.pretrained import Pretrained
from metalstm.methods.protonet import ProtoNet
from metalstm.methods.published import Published
from metalstm.methods.r2d2 import R2D2
from metalstm.methods.relation_net import RelationNet
from metalstm.methods.reptile import Reptile

# What `--method` takes, in the order of the table. A new one is a file in this folder and a line here.
METHODS: dict[str, type[Method]] = {
    "finetune": Finetune,
    "pixels": PixelNearestNeighbor,
    "pretrained": Pretrained,
    "class-means": ClassMeans,
    "logistic": Logistic,
    "baseline-pp": BaselinePlusPlus,
    "matching-net": MatchingNet,
    "matching-net-fce": MatchingNetFCE,
    "protonet": ProtoNet,
    "relation-net": RelationNet,
    "r2d2": R2D2,
    "maml": MAML,
    "fomaml": FOMAML,
    "anil": ANIL,
    "boil": BOIL,
    "reptile": Reptile,
    "meta-sgd": MetaSGDMethod,
    "lslr": LSLR,
    "alfa": ALFA,
    "meta-lstm": MetaLearnerLSTM,
    "from-random": FromRandom,
}

__all__ = [
    "METHODS",
    "Adapted",
    "FromRandom",
    "GradientMethod",
    "InnerLoop",
    "Method",
    "Network",
    "OnFeatures",
    "Published",
    "Recipe",
    "Row",
    "RunConfig",
    "Search",
    "Step",
    "Tuning",
    "Watched",
]
