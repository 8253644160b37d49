"""What is timed against each other: metalstm, its slow reference, and a public port, each in a process of its own.

A contender is a function `contender(turns, ...)` that trains one episode for each item of `turns`; `race` asks each of
them in turn for some episodes.
"""

import importlib
import logging
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from metalstm import kernels, recipes
from metalstm.data import ImagesByClass
from metalstm.episodes import Episode, EpisodeSampler
from metalstm.methods import GradientMethod, RunConfig
from metalstm.settings import Precision, Traits
from metalstm.training import outer_optimizer, outer_step

WARM_UP = 3  # episodes of a contender before the clock starts
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")

Contender = Callable[[Iterator[None]], None]


@dataclass(frozen=True)
class Task:
    """What is learned: 5-way, 15 queries a class."""

    shape: str
    n_shot: int
    n_way: int = 5
    n_query: int = 15

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of "84x84x3"."""
        height, width, channels = map(int, self.shape.split("x"))
        return channels, height, width

    def config(self, recipe: str, precision: Precision = "fp32") -> RunConfig:
        """The recipe's run on random images."""
        config = RunConfig(
            **vars(recipes.named("meta-lstm", recipe, Traits(), self.n_shot)),
            method="meta-lstm",
            recipe=recipe,
            data="random",
            image_shape=self.image_shape,
            n_way=self.n_way,
            n_shot=self.n_shot,
            n_query=self.n_query,
        )
        return recipes.with_changes(config, {"precision": precision})

    def sampler(self, small: bool = False) -> EpisodeSampler:
        """Episodes of random images in memory.

        There are as many as in meta-train: 64 classes of 600 images (mini-ImageNet, CIFAR-FS), and of gray images
        3,200 classes of 20 (Omniglot with rotations). If `small`, there are just enough.
        """
        channels, height, width = self.image_shape
        n_classes, n_images = (3200, 20) if channels == 1 else (64, 600)
        if small:
            n_classes, n_images = self.n_way, self.n_shot + self.n_query
        images = random_images(n_classes, n_images, (height, width, channels))
        return EpisodeSampler(images, self.n_way, self.n_shot, self.n_query)


def random_images(n_classes: int, n_images: int, shape: tuple[int, int, int]) -> ImagesByClass:
    """Random images in memory; `shape` is height, width and channels."""
    pixels = np.random.default_rng(0).integers(0, 256, (n_classes * n_images, *shape), np.uint8)
    starts = np.arange(n_classes) * n_images
    names = tuple(f"{k:04}" for k in range(n_classes))
    return ImagesByClass(pixels, names, np.stack([starts, starts + n_images], 1), "random")


def ready(config: RunConfig) -> GradientMethod:
    """The method, in a process that is prepared as `metalstm train` prepares it."""
    kernels.keep_memory()
    kernels.build()
    return build(config)


def build(config: RunConfig) -> GradientMethod:
    """The method of a recipe of the Meta-LSTM."""
    method = recipes.build(config)
    assert isinstance(method, GradientMethod)
    return method


def ours(turns: Iterator[None], task: Task, recipe: str, precision: Precision = "fp32", small: bool = False) -> None:
    """Train with metalstm, sampling included."""
    train(turns, task.config(recipe, precision), task.sampler(small))


def train(turns: Iterator[None], config: RunConfig, sampler: EpisodeSampler) -> None:
    """An episode a turn.

    Raises:
        ValueError: The loss is no longer finite, so that the times mean little.
    """
    method = ready(config)
    optimizer = outer_optimizer(method, config.training)
    loss = torch.zeros(())
    for number, _ in enumerate(turns):
        loss, _ = method(sampler.batch([number]))
        outer_step(loss, method, optimizer, config.training.clip)
    if not loss.isfinite():
        raise ValueError(f"the loss of recipe {config.recipe} is {loss.item()}")


def first_step() -> None:
    """One episode of 32x32x3, 5-shot, by recipe best."""
    ours(iter([None]), Task("32x32x3", 5), "best", small=True)


def reference(turns: Iterator[None], task: Task, small: bool = False) -> None:
    """Train with the slow versions that the tests compare with, in float32: what one writes from the paper.

    Stock modules for the learner, the meta-learner's step in plain tensor operations, autograd for all gradients.
    """
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    conv4 = importlib.import_module("reference.conv4")
    lstm = importlib.import_module("reference.meta_lstm_autograd")
    config = task.config("paper")
    loop, hidden_size = config.settings, config.optimizer_settings.hidden_size
    method = build(config)  # for its parameters only
    weights = dict(method.optimizer.named_parameters())
    learner = conv4.Conv4(task.image_shape, task.n_way, momentum=loop.norm_momentum).float()
    optimizer = outer_optimizer(method, config.training)
    sampler = task.sampler(small)

    def query_loss(episode: Episode) -> torch.Tensor:
        theta = method.theta_0(task.n_way)
        state = lstm.zeros(theta, hidden_size)
        support = episode.support
        for _ in range(loop.epochs):
            batches = support.x[0].split(loop.batch_size), support.y[0].split(loop.batch_size)
            for x, y in zip(*batches, strict=True):
                constant = theta.detach().requires_grad_()
                loss = F.cross_entropy(learner.logits(constant, x), y)
                (grad,) = torch.autograd.grad(loss, constant)
                theta, state = lstm.step(weights, theta, grad / len(y), loss.detach(), state)
        return F.cross_entropy(learner.logits(theta, episode.query.x[0]), episode.query.y[0])

    for number, _ in enumerate(turns):
        outer_step(query_loss(sampler.batch([number])), method, optimizer, config.training.clip)


def port(turns: Iterator[None], task: Task, directory: Path) -> None:
    """Train with the public port in `directory`: its own main(), with its flags for the paper's settings.

    Its image decoding is left out: a few episodes of random images, made before, come again and again.
    """
    channels, size, _ = task.image_shape
    shape = task.n_way, task.n_shot + task.n_query, channels, size, size
    pool = [(torch.randn(shape), torch.zeros(shape[:2])) for _ in range(8)]
    episodes = (pool[number % len(pool)] for number, _ in enumerate(turns))
    sys.modules["dataloader"] = SimpleNamespace(prepare_data=lambda _: (episodes, None, None))  # type: ignore[assignment]
    sys.path.insert(0, str(directory))
    main: Any = importlib.import_module("main")
    if channels != 3:  # its own network always has 3
        learner = main.Learner

        def gray(*args: Any) -> torch.nn.Module:
            network = learner(*args)
            network.model["features"].conv1 = torch.nn.Conv2d(channels, 32, 3, padding=1)
            return network

        main.Learner = gray
    epochs, batch_size, momentum = (8, 25, 0.95) if task.n_shot >= 5 else (12, 5, 0.9)
    flags = f"""--mode train --n-shot {task.n_shot} --n-eval {task.n_query} --n-class {task.n_way} --input-size 4
        --hidden-size 20 --lr 1e-3 --episode 50000 --episode-val 100 --epoch {epochs} --batch-size {batch_size}
        --image-size {size} --grad-clip 0.25 --bn-momentum {momentum} --bn-eps 1e-3 --data miniimagenet
        --val-freq 1000000000 --log-freq 1000000000 --seed 0 --cpu"""
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as logs:
        sys.argv = ["main.py", *flags.split(), "--save", f"{logs}/logs"]
        main.main()


def race(contenders: dict[str, Contender], rounds: int, seconds: float, threads: int) -> dict[str, list[float]]:
    """Seconds an episode of each contender and round: A B A B ..., so that noise hits all alike.

    Args:
        contenders: Each gets its own process, which lives for the whole race; one at a time is at work.
        rounds: Turns of each contender.
        seconds: Length of a turn, about; one episode at least.
        threads: CPU threads of each.
    """
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    processes: dict[str, Any] = {}
    counts: dict[str, int] = {}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for name, contender in contenders.items():
        connections[name], other = context.Pipe()
        processes[name] = context.Process(target=_contend, args=(other, contender, threads), daemon=True)
        processes[name].start()
        other.close()
        _episodes(connections[name], WARM_UP)
        counts[name] = max(1, round(seconds / _episodes(connections[name], 1)))
    for _ in range(rounds):
        for name, connection in connections.items():
            times[name].append(_episodes(connection, counts[name]))
    for name, process in processes.items():
        connections[name].send(0)
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{name} failed: see above")
    return times


def _episodes(connection: Connection, count: int) -> float:
    """Seconds an episode."""
    connection.send(count)
    return connection.recv() / count


def _contend(connection: Connection, contender: Contender, threads: int) -> None:
    torch.set_num_threads(threads)
    contender(_turns(connection))


def _turns(connection: Connection) -> Iterator[None]:
    """As many items as are asked for, and then the seconds they took, until none is."""
    while count := connection.recv():
        start = perf_counter()
        yield from [None] * count
        connection.send(perf_counter() - start)


def field(task: Task, names: tuple[str, ...], small: bool, port_directory: Path | None) -> dict[str, Contender]:
    """Contenders for a task: metalstm with each recipe and precision, the reference, and the port if there is one."""
    contenders: dict[str, Contender] = {
        f"{recipe} {precision}": partial(ours, task=task, recipe=recipe, precision=precision, small=small)
        for recipe in names
        for precision in PRECISIONS
    }
    contenders["reference"] = partial(reference, task=task, small=small)
    if port_directory:
        contenders["port"] = partial(port, task=task, directory=port_directory.resolve())
    return contenders
