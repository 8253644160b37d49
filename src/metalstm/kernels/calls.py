"""Calls of the compiled kernels: arguments by name, and every array checked.

The C++ files declare the type, name and shape of each argument, and export this list. A call names every argument, so
that their order does not matter.
"""

import ctypes
import struct
from collections.abc import Callable
from functools import cache, lru_cache
from math import prod
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalstm.kernels import compiler

LANES = 16  # the most channels in a vector: the kernels take multiples of it, whatever the CPU
_CHANNELS_LAST = "channels_last:"
# The type in which images are stored, and that of their arithmetic.
_NUMBERS = {torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.float32}


class Expected(NamedTuple):
    """What an array must be."""

    place: int  # among the arguments
    shape: torch.Size
    dtype: torch.dtype
    channels_last: bool  # otherwise contiguous


class Kernel:
    """A function of the compiled library.

    Example:
        kernel("cell_forward")(tasks=(2,), n=100, hidden=20, scale=10.0, weight_x=weight_x, ...)

    Attributes:
        names: All arguments, in the order of the C++ struct.
        sizes: The arguments that are integers.
        shapes: The shape of each array, in terms of the sizes.
        inputs: The arrays that are only read.
    """

    def __init__(self, name: str, function: Callable[[int, bytes, int], None], fields: list[tuple[str, str, str]]):
        """`fields` are the type, name and shape of each argument, in the order of the C++ struct."""
        self.name, self.names, self._function = name, tuple(name for _, name, _ in fields), function
        self.sizes = [name for type_, name, _ in fields if type_ == "int64_t"]
        self.shapes = {name: shape for type_, name, shape in fields if type_.endswith("*")}
        self.inputs = [name for type_, name, _ in fields if type_.startswith("const ")]
        self._types = [type_.removeprefix("const ") for type_, _, _ in fields if type_.endswith("*")]
        self._values, self._sizes, self._names = itemgetter(*self.names), itemgetter(*self.sizes), set(self.names)
        self._first = next(iter(self.shapes))  # the array whose type decides all types
        self._tasks = self.names.index("tasks") if "tasks" in self.names else None
        self._pack = struct.Struct("".join("d" if type_ == "double" else "q" for type_, _, _ in fields)).pack
        shapes = ", ".join(
            f"({shape.removeprefix(_CHANNELS_LAST)},)" if shape else "()" for shape in self.shapes.values()
        )
        self._shapes_of = eval(f"lambda {', '.join(self.sizes)}: ({shapes},)")
        self._expected = lru_cache(maxsize=256)(self._expect)

    def __call__(self, **arguments: Any) -> None:
        """Compute the outputs, which are arguments too.

        Args:
            **arguments: Sizes (`tasks` is a tuple), numbers, and tensors of the declared types, shapes and layouts.

        Raises:
            TypeError: If an argument is missing or unknown.
            ValueError: If a tensor has another type, shape, layout or device than declared.
        """
        if arguments.keys() != self._names:
            raise TypeError(f"{self.name}: missing or unknown arguments: {sorted(arguments.keys() ^ self._names)}")
        dtype = arguments[self._first].dtype
        values = list(self._values(arguments))
        for place, shape, kind, channels_last in self._expected(dtype, self._sizes(arguments)):
            array = values[place]
            fits = array.is_contiguous(memory_format=torch.channels_last) if channels_last else array.is_contiguous()
            if not (fits and array.shape == shape and array.dtype is kind and array.is_cpu):
                raise ValueError(
                    f"{self.name}: {self.names[place]} is {array.dtype} of shape {tuple(array.shape)} and strides "
                    f"{array.stride()} on {array.device}, but must be {kind} of shape {tuple(shape)}, "
                    f"{'channels-last' if channels_last else 'contiguous'}, on cpu"
                )
            values[place] = array.data_ptr()
        if self._tasks is not None:
            values[self._tasks] = prod(values[self._tasks])
        self._function(dtype.itemsize, self._pack(*values), torch.get_num_threads())

    def _expect(self, dtype: torch.dtype, sizes: tuple[Any, ...]) -> list[Expected]:
        if dtype not in _NUMBERS or (dtype == torch.bfloat16 and "T*" in self._types):
            raise ValueError(f"{self.name}: takes no {dtype}")
        types = {"T*": dtype, "S*": dtype, "N*": _NUMBERS[dtype], "uint8_t*": torch.uint8}
        return [
            Expected(self.names.index(name), torch.Size(shape), types[type_], declared.startswith(_CHANNELS_LAST))
            for (name, declared), shape, type_ in zip(
                self.shapes.items(), self._shapes_of(*sizes), self._types, strict=True
            )
        ]


def kernel(name: str) -> Kernel:
    """A kernel by its name; a build must be loaded."""
    library = compiler.library()
    assert library is not None
    return load(library)[name]


@cache
def load(library: ctypes.CDLL) -> dict[str, Kernel]:
    """All kernels of a library."""
    lines = []
    for file in ("cell", "blocks", "residual"):
        list_arguments = getattr(library, f"metalstm_{file}_arguments")
        list_arguments.restype = ctypes.c_char_p
        lines += list_arguments().decode().splitlines()
    fields: dict[str, list[tuple[str, str, str]]] = {}
    name = ""
    for line in lines:
        if ";" in line:
            type_, argument, shape = line.split(";")
            fields[name].append((type_, argument, shape.strip('"')))
        else:
            name = line
            fields[name] = []
    return {name: Kernel(name, getattr(library, f"metalstm_{name}"), fields[name]) for name in fields}


def can_read(*tensors: Tensor) -> bool:
    """Whether kernels can read these tensors: all of one type, plain values in this machine's memory, not traced."""
    return (
        compiler.available()
        and tensors[0].dtype in (torch.float32, torch.float64)
        and all(
            t.device.type == "cpu" and t.dtype == tensors[0].dtype and type(t) in (Tensor, torch.nn.Parameter)
            for t in tensors
        )
        and not torch._C._are_functorch_transforms_active()
        and not torch.compiler.is_compiling()
    )
