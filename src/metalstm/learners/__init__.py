"""Learners: the networks that are trained on a support set."""

from metalstm.learners.base import Layout, Learner, LearnerSettings, each_task, set_precision
from metalstm.learners.conv4 import Conv4
from metalstm.learners.head_only import HeadOnly
from metalstm.learners.linear import Linear
from metalstm.learners.module import FromModule
from metalstm.learners.resnet12 import ResNet12
from metalstm.learners.wrapped import FixedOnce, Wrapped

# What `--learner` takes. A new one is a file in this folder and a line here.
LEARNERS: dict[str, type[Learner]] = {
    "conv4": Conv4,
    "linear": Linear,
    "resnet12": ResNet12,
}

__all__ = [
    "LEARNERS",
    "Conv4",
    "FixedOnce",
    "FromModule",
    "HeadOnly",
    "Layout",
    "Learner",
    "LearnerSettings",
    "Linear",
    "ResNet12",
    "Wrapped",
    "each_task",
    "set_precision",
]
