"""The outer loop: meta-training a method into a run folder."""

from metalstm.training.loop import meta_train_images, outer_optimizer, outer_step, step_seconds, train

__all__ = ["meta_train_images", "outer_optimizer", "outer_step", "step_seconds", "train"]
