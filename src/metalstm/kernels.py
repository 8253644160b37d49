"""The two inner steps that cost most beside the convolutions, compiled for this machine's CPU.

`kernels.cpp` is compiled once, by whatever C++ compiler there is, and kept in METALSTM_CACHE or else the user cache
directory. Where there is no build, plain PyTorch does the same: `optimizers/meta_lstm.py` and `learners.py` hold it.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from platformdirs import user_cache_path
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-fPIC",
    "-shared",
)
_LANES = 16  # channels come in vectors of so many
_log = logging.getLogger(__name__)


# The library ----------------------------------------------------------------------------------------------------------


def build() -> bool:
    """Compile the kernels for this machine, unless that has been done; tells whether they are there.

    It takes some seconds, once; nothing else ever waits for them.
    """
    if library() is None and _compile(_path()):
        library.cache_clear()
        if library() is None:
            _log.info("the kernels were compiled into %s, but do not load: training runs in plain PyTorch", _path())
    return library() is not None


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, if there is a build for this machine."""
    try:
        return ctypes.CDLL(str(_path()))
    except OSError:  # none, or none that loads here: `build` makes it anew
        return None


def keep_memory() -> None:
    """Have the C library keep the memory that tensors give back, for the next ones: for the whole process.

    Otherwise large tensors are mapped and unmapped each time, and the kernel zeroes every page anew: up to half of the
    time of an episode of 84x84 images. Does nothing but on glibc.
    """
    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if libc is not None:
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 2**26)


def _path() -> Path:
    """Where the build for this source and this kind of CPU lies."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    kind = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    key = hashlib.sha256(_source().read_bytes() + repr((_FLAGS, platform.machine(), kind)).encode()).hexdigest()[:16]
    root = Path(os.environ.get("METALSTM_CACHE") or user_cache_path("metalstm", appauthor=False))
    return root / "kernels" / f"{platform.system().lower()}-{key}.so"


def _source() -> Path:
    return Path(__file__).with_name("kernels.cpp")


@cache
def _compile(path: Path) -> bool:
    """Compile into `path`, whole or not at all; tries and tells once."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))), None)
    if compiler is None:
        _log.info("no C++ compiler (c++, g++, clang++) is here: training runs in plain PyTorch, which is slower")
        return False
    _log.info("compiling kernels for this machine; once, some seconds")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            for threads in (["-fopenmp"], []):
                command = [compiler, *_FLAGS, *threads, str(_source()), "-o", str(made)]
                result = subprocess.run(command, capture_output=True, text=True)
                if result.returncode == 0:
                    with made.open("rb") as file:
                        os.fsync(file.fileno())
                    os.replace(made, path)
                    if not threads:
                        _log.info("%s has no OpenMP: the kernels use one thread", compiler)
                    return True
        lines = result.stderr.strip().splitlines() or [f"status {result.returncode}"]
        reason = f"{compiler} cannot compile them: {next((line for line in lines if 'error' in line), lines[0])}"
    except OSError as error:
        reason = f"they cannot be kept in {path.parent} ({error}): set METALSTM_CACHE to another folder"
    _log.info("no kernels, training runs in plain PyTorch, which is slower; %s", reason)
    return False


def _call(name: str, kind: Tensor, sizes: tuple[int, ...], *arrays: Tensor, extra: Any = ()) -> None:
    """Call a function of the library on the addresses of contiguous arrays."""
    lib = library()
    assert lib is not None
    addresses = (ctypes.c_void_p * len(arrays))(*(array.data_ptr() for array in arrays))
    function = getattr(lib, f"metalstm_{name}")
    function(kind.element_size(), (ctypes.c_int64 * len(sizes))(*sizes), *extra, addresses, torch.get_num_threads())


def _real(*tensors: Tensor) -> bool:
    """Whether these tensors are of one type, with numbers in this machine's memory, and not wrapped or traced."""
    return (
        library() is not None
        and tensors[0].dtype in (torch.float32, torch.float64)
        and all(
            t.device.type == "cpu" and t.dtype == tensors[0].dtype and type(t) in (Tensor, torch.nn.Parameter)
            for t in tensors
        )
        and not torch._C._are_functorch_transforms_active()
        and not torch.compiler.is_compiling()
    )


# The meta-learner's cell ----------------------------------------------------------------------------------------------


def can_step(*inputs: Tensor) -> bool:
    """Whether `step` takes these inputs."""
    weight_h, grad, loss, theta, h, c, f, i = inputs[1], *inputs[7:]
    hidden = *theta.shape[:-1], weight_h.shape[1], theta.shape[-1]
    fits = grad.shape == theta.shape == f.shape == i.shape and loss.shape == theta.shape[:-1]
    return fits and h.shape == c.shape == hidden and theta.numel() > 0 and _real(*inputs)


def step(scale: float, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `meta_lstm._step` does with the same arguments; differentiable once in all but `scale`."""
    return _Step.apply(scale, *inputs)  # pyright: ignore[reportReturnType]


class _Step(Function):
    @staticmethod
    def forward(ctx: Any, scale: float, *inputs: Tensor) -> tuple[Tensor, ...]:
        inputs = tuple(tensor.contiguous() for tensor in inputs)
        theta, h, c, f, i = inputs[9:]
        outputs = tuple(torch.empty_like(tensor) for tensor in (theta, h, c, f, i))
        ctx.scale, ctx.sizes = scale, (theta.numel() // theta.shape[-1], theta.shape[-1], h.shape[-2])
        _call("cell_forward", theta, ctx.sizes, *inputs, *outputs, extra=[ctypes.c_double(scale)])
        ctx.save_for_backward(*inputs, *outputs[3:])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved = ctx.saved_tensors
        given = tuple(tensor.contiguous() for tensor in given)
        outputs = tuple(torch.empty_like(tensor) for tensor in saved[:14])
        _call("cell_backward", saved[9], ctx.sizes, *saved, *given, *outputs, extra=[ctypes.c_double(ctx.scale)])
        return None, *outputs


# Batch normalisation, max-pool, ReLU ----------------------------------------------------------------------------------


class Block(NamedTuple):
    """What the backward pass of a block's normalisation, max-pool and ReLU reads; images are channels-last."""

    x: Float[Tensor, "n channels height width"]  # float32, float64 or bfloat16; the rest of its shape is of that type
    gamma: Float[Tensor, " channels"]
    mean: Float[Tensor, " channels"]
    rstd: Float[Tensor, " channels"]  # 1 / standard deviation
    pooled: Float[Tensor, "n channels half_height half_width"]  # the pixels taken, normalised
    chosen: UInt8[Tensor, "n channels half_height half_width"]  # which of four they are


def can_block(theta: Tensor, others: Sequence[Tensor], images: torch.dtype, channels: int) -> bool:
    """Whether the functions below take so many channels, images of this type, and all else like theta."""
    takes = images == theta.dtype or (images, theta.dtype) == (torch.bfloat16, torch.float32)
    return channels % _LANES == 0 and takes and not torch.is_autocast_enabled("cpu") and _real(theta, *others)


def block_forward(
    x: Tensor, gamma: Tensor, beta: Tensor, moments: Tensor, eps: float, given: bool
) -> tuple[Tensor, Block]:
    """Normalise, pool, rectify; `moments` (2, channels), mean and biased variance, are read if `given`, or written."""
    n, channels, height, width = x.shape
    y = x.new_empty(n, height // 2, width // 2, channels).permute(0, 3, 1, 2)
    block = Block(
        x, gamma, moments[0], torch.empty_like(gamma), torch.empty_like(y), torch.empty_like(y, dtype=torch.uint8)
    )
    extra = [int(given), ctypes.c_double(eps)]
    _call("block_forward", x, (n, height, width, channels), *block, beta, y, moments[1], extra=extra)
    return y, block


def block_backward(
    block: Block, d_y: Tensor, d_gamma: Tensor, d_beta: Tensor, d_moments: Tensor, given: bool
) -> Float[Tensor, "n channels height width"]:
    """Gradient in x; writes those in gamma and beta; `d_moments` are written if the moments were given, else read."""
    n, channels, height, width = block.x.shape
    d_x = torch.empty_like(block.x)
    outputs = d_x, d_gamma, d_beta, d_moments[0], d_moments[1]
    _call("block_backward", d_x, (n, height, width, channels), *block, d_y, *outputs, extra=[int(given)])
    return d_x


def block_double_backward(
    block: Block,
    d_y: Tensor,
    d_moments: Tensor,
    v_x: Tensor,
    v_gamma: Tensor,
    v_beta: Tensor,
    out_gamma: Tensor,
    given: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward of `block_backward`: v are the cotangents of its outputs; moments that were given are constants.

    Returns:
        The gradients in d_y, x and, if the moments were not given, d_moments; that in gamma is written.
    """
    n, channels, height, width = block.x.shape
    out_d_y, out_x, out_moments = torch.empty_like(d_y), torch.empty_like(block.x), torch.empty_like(d_moments)
    outputs = out_d_y, out_x, out_gamma, out_moments[0], out_moments[1]
    arrays = d_y, d_moments[1], v_x, v_gamma, v_beta
    _call("block_double_backward", v_x, (n, height, width, channels), *block, *arrays, *outputs, extra=[int(given)])
    return out_d_y, out_x, out_moments
