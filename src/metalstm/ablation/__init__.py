"""Ablation: a trained method with an inner loop, taken apart on the same episodes."""

from metalstm.ablation.means import Means, means
from metalstm.ablation.measuring import MEAN_TASKS, QUICK, SEARCH, ablate, openings
from metalstm.ablation.page import blocks, columns_of, write
from metalstm.ablation.parts import ClassMeans
from metalstm.ablation.variants import HEAD_RULE, RULE, WHOLE, head_alone, ruled, tune, variants

__all__ = [
    "HEAD_RULE",
    "MEAN_TASKS",
    "QUICK",
    "RULE",
    "SEARCH",
    "WHOLE",
    "ClassMeans",
    "Means",
    "ablate",
    "blocks",
    "columns_of",
    "head_alone",
    "means",
    "openings",
    "ruled",
    "tune",
    "variants",
    "write",
]
