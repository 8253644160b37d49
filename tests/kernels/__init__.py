"""Tests of `metalstm.kernels`, file by file."""
