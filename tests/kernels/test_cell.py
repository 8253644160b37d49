"""The cell's kernel against the same step in PyTorch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalstm import kernels
from metalstm.optimizers import meta_lstm

from .comparing import cell_inputs, close, gradients, torch_threads


@settings(max_examples=25, deadline=None)
@given(
    hidden=st.sampled_from([1, 2, 3, 8, 20]),
    n=st.sampled_from([1, 15, 16, 127, 128, 129, 400]),
    tasks=st.sampled_from([(), (1,), (3,), (2, 2)]),
    threads=st.integers(1, 3),
)
def test_cell(compiled_kernels: None, hidden: int, n: int, tasks: tuple[int, ...], threads: int):
    inputs = cell_inputs(hidden, n, tasks)
    with torch_threads(threads):
        actual = list(kernels.step(10.0, *inputs))
        actual += gradients(actual, inputs)
    expected = list(meta_lstm._step(10.0, *inputs))
    expected += gradients(expected, inputs)
    close(actual, expected)


def test_cell_in_float32(compiled_kernels: None):
    inputs = cell_inputs(20, 5000, (2,), torch.float32)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    actual, expected = list(kernels.step(10.0, *inputs)), list(meta_lstm._step(10.0, *exact))
    close([tensor.double() for tensor in actual], expected, 2e-6)


def test_cell_saturated(compiled_kernels: None):
    """Gates far beyond where exp overflows or sigmoid is 1 to the last bit."""
    inputs = [tensor.detach() * 1000 for tensor in cell_inputs(3, 50, (2,), torch.float32)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    actual, expected = list(kernels.step(10.0, *inputs)), list(meta_lstm._step(10.0, *inputs))
    close(actual, expected, 1e-5)
    assert all(grad.isfinite().all() for grad in gradients(actual[1:3], inputs))


@pytest.mark.parametrize("where", [7, 9, 10, 11, 12, 13])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_cell_does_not_hide_what_diverged(compiled_kernels: None, where: int, bad: float):
    inputs = cell_inputs(3, 40, (), torch.float32)
    with torch.no_grad():
        inputs[where][..., 7] = bad
        theta = kernels.step(10.0, *inputs)[0]
        expected = meta_lstm._step(10.0, *inputs)[0]
    assert theta[torch.arange(40) != 7].isfinite().all()
    if not expected[7].isfinite():
        assert not theta[7].isfinite()


def test_what_the_cell_does_not_take(compiled_kernels: None):
    inputs = cell_inputs(3, 40, (2,))
    assert kernels.can_step(*inputs)
    with kernels.disabled():
        assert not kernels.can_step(*inputs)
    assert not kernels.can_step(*inputs[:-1], inputs[-1].float())
    assert not kernels.can_step(*inputs[:-1], inputs[-1][0])
    assert not kernels.can_step(*(tensor.to("meta") for tensor in inputs))
    with pytest.raises(ValueError, match="cell_forward: weight_x is "):
        kernels.step(10.0, inputs[0][1:], *inputs[1:])
