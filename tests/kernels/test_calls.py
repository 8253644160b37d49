"""Arguments by name: checks of every array, and proof that no two arguments can change places unseen."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import pytest
import torch

from metalstm import kernels
from metalstm.kernels import blocks, calls, compiler
from metalstm.optimizers import meta_lstm

from .comparing import block_inputs, cell_inputs, close, gradients
from .test_blocks import check_features
from .test_residual import check_network

KERNELS = [
    "cell_forward",
    "cell_backward",
    "block_forward",
    "block_backward",
    "block_double_backward",
    "first_forward",
    "first_backward",
    "convolve",
    "convolve_weight",
    "sum_forward",
    "sum_backward",
]


def check_cell() -> None:
    inputs = cell_inputs(5, 9, (2, 3))
    actual, expected = list(kernels.step(10.0, *inputs)), list(meta_lstm._step(10.0, *inputs))
    actual += gradients(actual, inputs)
    expected += gradients(expected, inputs)
    close(actual, expected)


def check_blocks() -> None:
    shape = blocks.Shape(3, 2, 3, 16, True, 1e-3, torch.float64)
    check_features(shape, block_inputs(shape, 3, 10, 13))


def check_residual() -> None:
    check_network(1, 17, 18, second=False)


@contextmanager
def changed(name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[None]:
    """Let calls of a kernel pass changed arguments. Outputs hold NaN beforehand, so that none is right by chance."""
    call = calls.Kernel.__call__

    def changed_call(self: calls.Kernel, **arguments: Any) -> None:
        if self.name == name:
            read = set(self.inputs)
            if name in ("block_forward", "first_forward") and arguments["given"]:
                read |= {"mean", "var"}
            if name in ("block_backward", "first_backward") and not arguments["given"]:
                read |= {"d_mean", "d_var"}
            if name == "sum_backward" or (name == "sum_forward" and arguments["given"]):
                read |= {"moments"}
            if name == "sum_backward" and not arguments["given"]:
                read |= {"d_moments"}
            for output in set(self.shapes) - read:  # through NumPy, which autograd does not see
                array = arguments[output].detach().numpy()
                array[...] = 3 if array.dtype == "uint8" else float("nan")
            arguments = change(arguments)
        call(self, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls.Kernel, "__call__", changed_call)
        yield


@pytest.mark.parametrize("name", KERNELS)
def test_a_swap_of_two_arguments_is_seen(compiled_kernels: None, name: str):
    """For every pair: the call refuses arrays of other shapes; the comparison with PyTorch fails for the same shape."""
    check = {"cell": check_cell, "sum": check_residual}.get(name.split("_")[0], check_blocks)
    with changed(name, lambda arguments: arguments):
        check()
    kernel, unseen, compared = calls.kernel(name), [], 0
    types = dict(zip(kernel.shapes, kernel._types, strict=True))
    for one, other in combinations(kernel.shapes, 2):
        same = (kernel.shapes[one], types[one]) == (kernel.shapes[other], types[other])
        compared += same
        swap = {one: other, other: one}
        with changed(name, lambda args, swap=swap: {name: args[swap.get(name, name)] for name in args}):
            try:
                check()
            except ValueError as error:
                assert not same and str(error).startswith(f"{name}: "), (one, other)  # noqa: PT017, PT018
            except AssertionError:
                pass
            else:
                unseen.append((one, other))
    assert not unseen
    assert compared > 10 or name.startswith(("convolve", "sum"))  # whose arrays nearly all differ in shape


def arguments() -> dict[str, Any]:
    """Of block_backward."""
    z = torch.zeros(2, 16, 4, 6).contiguous(memory_format=torch.channels_last)
    small = z[:, :, :2, :3].contiguous(memory_format=torch.channels_last)
    one = torch.zeros(16)
    sizes = {"n": 2, "channels": 16, "height": 4, "width": 6, "given": False}
    saved = {
        "z": z,
        "gamma": one,
        "mean": one,
        "rstd": one,
        "pooled": small,
        "chosen": small.to(torch.uint8),
        "pool": 2,
    }
    outputs = {"d_mean": one, "d_var": one, "d_z": z.clone(), "d_gamma": one.clone(), "d_beta": one.clone()}
    return {**sizes, **saved, "d_y": small, **outputs}


def test_arguments_are_taken(compiled_kernels: None):
    calls.kernel("block_backward")(**arguments())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "gamma",
            torch.zeros(17),
            "block_backward: gamma is torch.float32 of shape (17,) and strides (1,) on cpu, "
            "but must be torch.float32 of shape (16,), contiguous, on cpu",
        ),
        (
            "mean",
            torch.zeros(16, dtype=torch.float64),
            "block_backward: mean is torch.float64 of shape (16,) and strides (1,) on cpu, "
            "but must be torch.float32 of shape (16,), contiguous, on cpu",
        ),
        (
            "d_y",
            torch.zeros(2, 16, 2, 3),
            "block_backward: d_y is torch.float32 of shape (2, 16, 2, 3) and strides (96, 6, 3, 1) on cpu, "
            "but must be torch.float32 of shape (2, 16, 2, 3), channels-last, on cpu",
        ),
        (
            "d_beta",
            torch.zeros(32)[::2],
            "block_backward: d_beta is torch.float32 of shape (16,) and strides (2,) on cpu, "
            "but must be torch.float32 of shape (16,), contiguous, on cpu",
        ),
        (
            "d_var",
            torch.zeros(16, device="meta"),
            "block_backward: d_var is torch.float32 of shape (16,) and strides (1,) on meta, "
            "but must be torch.float32 of shape (16,), contiguous, on cpu",
        ),
        ("z", torch.zeros(2, 16, 4, 6, dtype=torch.float16), "block_backward: takes no torch.float16"),
    ],
)
def test_a_wrong_array_is_refused(compiled_kernels: None, name: str, value: torch.Tensor, message: str):
    with pytest.raises(ValueError, match="block_backward") as error:
        calls.kernel("block_backward")(**arguments() | {name: value})
    assert str(error.value) == message


def test_missing_and_unknown_arguments_are_refused(compiled_kernels: None):
    given = arguments()
    del given["d_y"]
    with pytest.raises(TypeError) as error:
        calls.kernel("block_backward")(**given, d_x=given["z"])
    assert str(error.value) == "block_backward: missing or unknown arguments: ['d_x', 'd_y']"


def test_all_kernels_are_tested(compiled_kernels: None):
    library = compiler.library()
    assert library is not None
    assert list(calls.load(library)) == KERNELS
