"""Slow, obvious versions of what `metalstm` computes, written from the paper's equations."""
