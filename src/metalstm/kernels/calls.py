"""Calls of the compiled kernels: arguments by name, and every array checked.

`kernels.cpp` declares the type, name and shape of each argument, and exports this list. A call names every argument;
the order in which the C++ code takes them is nobody's business.
"""

import ctypes
import struct
from collections.abc import Callable
from functools import cache, lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from metalstm.kernels import compiler

_NUMBERS = {torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.float32}


class Kernel:
    """A function of the compiled library.

    Example:
        kernel("cell_forward")(tasks=(2,), n=100, hidden=20, scale=10.0, weight_x=weight_x, ...)
    """

    def __init__(self, name: str, function: Callable[[int, bytes, int], None], fields: list[tuple[str, str, str]]):
        """`fields` are the type, name and shape of each argument, in the order of the struct."""
        self.name, self.names, self._function = name, [name for _, name, _ in fields], function
        types = [type_.removeprefix("const ") for type_, _, _ in fields]
        self.sizes = [name for type_, name in zip(types, self.names, strict=True) if type_ == "int64_t"]
        self.shapes = {name: shape for type_, name, shape in fields if type_.endswith("*")}
        self.inputs = [name for type_, name, _ in fields if type_.startswith("const ")]
        self._pack = struct.Struct("".join("d" if type_ == "double" else "q" for type_ in types)).pack
        self._places = [place for place, type_ in enumerate(types) if type_.endswith("*")]
        self._types = [types[place] for place in self._places]
        layouts, shapes = [], []
        for shape in self.shapes.values():
            layout, _, dimensions = shape.rpartition(":")
            layouts.append(torch.channels_last if layout == "channels_last" else torch.contiguous_format)
            shapes.append(f"({dimensions},)" if dimensions else "()")
        self._layouts = layouts
        # From the sizes to the shapes of all arrays.
        self._shapes = eval(f"lambda {', '.join(self.sizes)}: ({', '.join(shapes)},)")
        self._expected = lru_cache(maxsize=256)(self._expect)

    def __call__(self, **arguments: Any) -> None:
        """Compute the outputs, which are arguments too.

        Args:
            **arguments: Sizes (`tasks` is a tuple), numbers, and tensors of the declared types, shapes and layouts.

        Raises:
            TypeError: If an argument is missing or unknown.
            ValueError: If a tensor has another type, shape, layout or device than declared.
        """
        if len(arguments) != len(self.names) or not all(name in arguments for name in self.names):
            wrong = sorted(set(arguments) ^ set(self.names))
            raise TypeError(f"{self.name}: missing or unknown arguments: {', '.join(wrong)}")
        values = [arguments[name] for name in self.names]
        dtype = values[self._places[0]].dtype
        for place, shape, kind, layout in self._expected(dtype, *[arguments[name] for name in self.sizes]):
            array = values[place]
            if (
                array.shape != shape
                or array.dtype != kind
                or not array.is_cpu
                or not array.is_contiguous(memory_format=layout)
            ):
                raise ValueError(
                    f"{self.name}: {self.names[place]} is {array.dtype} of shape {tuple(array.shape)} and strides "
                    f"{array.stride()} on {array.device}, but must be {kind} of shape {tuple(shape)}, "
                    f"{str(layout).removeprefix('torch.')}, on cpu"
                )
            values[place] = array.data_ptr()
        if "tasks" in arguments:
            values[self.names.index("tasks")] = prod(arguments["tasks"])
        self._function(dtype.itemsize, self._pack(*values), torch.get_num_threads())

    def _expect(self, dtype: torch.dtype, *sizes: Any) -> list[tuple[int, tuple[int, ...], torch.dtype, Any]]:
        """Place among the arguments, shape, type and layout of each array."""
        if dtype not in _NUMBERS or (dtype == torch.bfloat16 and "T*" in self._types):
            raise ValueError(f"{self.name}: takes no {dtype}")
        kinds = {"T*": dtype, "S*": dtype, "N*": _NUMBERS[dtype], "uint8_t*": torch.uint8}
        return [
            (place, torch.Size(shape), kinds[type_], layout)
            for place, shape, type_, layout in zip(
                self._places, self._shapes(*sizes), self._types, self._layouts, strict=True
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
    library.metalstm_arguments.restype = ctypes.c_char_p
    fields: dict[str, list[tuple[str, str, str]]] = {}
    name = ""
    for line in library.metalstm_arguments().decode().splitlines():
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
