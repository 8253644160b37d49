"""Heads: what learns the classes from the features of a frozen network. Nothing is trained anew before."""

from metalstm.heads.base import Head, describe
from metalstm.heads.class_means import ClassMeansHead
from metalstm.heads.logistic import LogisticHead
from metalstm.heads.meta_lstm import MetaLSTMHead
from metalstm.heads.tip_adapter import TipAdapterHead

# What `--head` takes beside `auto`. A new one is a file in this folder and a line here. Of heads that do equally well,
# the first is taken.
HEADS: dict[str, Head] = {
    "meta-lstm": MetaLSTMHead(),
    "logistic": LogisticHead(),
    "class-means": ClassMeansHead(),
    "tip-adapter": TipAdapterHead(),
}

__all__ = ["HEADS", "Head", "describe"]
