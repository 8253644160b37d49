"""The inner loop on a CPU, in C++: the meta-learner's cell, and the learner's convolutional blocks.

Without a build, `optimizers/meta_lstm.py` and the learners compute the same in PyTorch. DERIVATION.md, beside this
file, derives every gradient that is written by hand.
"""

from metalstm.kernels.cell import can_step, step
from metalstm.kernels.compiler import available, build, disabled
from metalstm.kernels.memory import keep_memory, return_memory
from metalstm.kernels.norm_pool import can_block

__all__ = ["available", "build", "can_block", "can_step", "disabled", "keep_memory", "return_memory", "step"]
