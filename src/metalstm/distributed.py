"""Many processes, started by torchrun: each computes its share of the episodes, and all take the same decisions.

In one process each of these functions does nothing.
"""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from metalstm.console import console
from metalstm.episodes import Episode, Labeled
from metalstm.errors import UserError
from metalstm.methods import Method

T = TypeVar("T")


def join(device: str) -> str:
    """Join the other processes, which torchrun's environment variables name.

    Args:
        device: What to compute on; of `cuda` each process of a machine takes its own GPU.

    Returns:
        The device of this process.
    """
    if device.startswith("cuda:"):
        raise UserError(f"--device {device}: got {os.environ['WORLD_SIZE']} processes for it: pass --device cuda")
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    store, number, size = next(rendezvous("env://"))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo",  # decisions, on CPU, never wait for a GPU
        store=PrefixStore(_name_of_start(store, number, size), store),
        rank=number,
        world_size=size,
    )
    console.quiet = rank() > 0
    return device


def _name_of_start(store: Store, number: int, size: int) -> str:
    """A name that these processes share, and no earlier ones.

    When torchrun starts all processes again, its store still holds the addresses of those that have ended, and gloo
    would take them for the new ones.
    """
    me = str(uuid.uuid4())
    if number > 0:
        store.set(f"process {number}", me)
        name = store.get(me).decode()
        store.set(f"{name} {number}", "")
        return name
    while not store.check([f"{me} {other}" for other in range(1, size)]):
        for other in range(1, size):
            store.set(store.get(f"process {other}").decode(), me)  # it may be an old one: hence again and again
        time.sleep(0.02)
    return me


def rank() -> int:
    """The number of this process. Process 0 writes all files and speaks for all."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(numbers: range) -> range:
    """This process's part of some episodes."""
    return numbers[rank() :: world_size()]


def wrap(method: Method, batch: Episode | Labeled) -> nn.Module:
    """The method with gradients that are the mean over all processes, and its weights those of process 0.

    Args:
        method: What to wrap.
        batch: Any batch to be meta-trained on.
    """
    if world_size() == 1:
        return method
    model = DistributedDataParallel(method)
    if world_size() > 2:
        # After its first backward pass it sorts gradients anew, and sums of more than two round otherwise from then on.
        # Thrown away, that pass makes a resumed run sum as an uninterrupted one does.
        state = {name: tensor.clone() for name, tensor in method.state_dict().items()}
        model(batch)[0].backward()
        method.load_state_dict(state)
    return model


def total(tensor: Tensor) -> Tensor:
    """The sum over all processes."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def highest(*values: float) -> list[float]:
    """The highest of each value in any process, so that all of them decide alike."""
    tensor = torch.tensor(values, dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def broadcast(value: T) -> T:
    """The value that process 0 has."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


@contextmanager
def all_fail_together() -> Iterator[None]:
    """Let a user's mistake that shows in one process end all of them, so that none waits for one that has ended.

    Raises:
        UserError: That of the first process that has one.
    """
    errors: list[UserError | None] = [None] * world_size()
    try:
        yield
    except UserError as error:
        errors[rank()] = error
    if world_size() > 1:
        dist.all_gather_object(errors, errors[rank()])
    for error in errors:
        if error:
            raise error


def is_loss_of_process(error: Exception) -> bool:
    """Whether this is what the others get when a process ends before its time."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
