"""The outer loop."""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.progress import TextColumn

from metalstm import checkpoint, distributed
from metalstm.console import console, progress
from metalstm.datasets import ImagesByClass, MetaSets
from metalstm.episodes import BatchSampler, EpisodeSampler
from metalstm.errors import Interrupted, UserError
from metalstm.evaluation import evaluate
from metalstm.methods import GradientMethod, HeadOnly, MatchingNet, Method, Pretrained, build
from metalstm.recipes import PretrainedSettings, RunConfig, Settings, TrainingSettings, named

S = TypeVar("S", bound=Settings)
LOG_EVERY = 50  # episodes between two lines of metrics.jsonl; the resume state is saved as often


def train(
    config: RunConfig,
    meta_sets: MetaSets,
    out: Path,
    resume: bool = False,
    device: torch.device | str = "cpu",
    pretrained: Path | None = None,
) -> None:
    """Meta-train a method, and leave a run folder.

    The folder holds `config.json`, `metrics.jsonl`, `best.safetensors` (the best by meta-val) and `last.safetensors`
    (the last iterate, with all that is needed to go on). Episodes are functions of the seed and their number, so that
    a resumed run ends with the very weights of an uninterrupted one, given the same machine, CPU threads and limits.

    In several processes, started by torchrun, each step's episodes are shared out and the gradient is the mean over all
    of them: the run is the same, whatever the number of processes, up to the rounding of sums. Process 0 alone writes.

    Args:
        config: What to train and how.
        meta_sets: The data.
        out: The run folder.
        resume: Go on with the run in `out`, if there is one.
        device: Where to train.
        pretrained: Run folder of the pre-training, for runs that share one; `out/pretrained` by default.

    Raises:
        UserError: `out` holds a run and `resume` is not set, or holds a run of another configuration; the loss is
            not finite; the disk is full; there are more processes than episodes in a step, or they differ.
        Interrupted: On Ctrl-C or SIGTERM, after saving.
    """
    settings = config.training
    _check_processes(config)
    method = build(config).to(device)
    parameters: dict[float, list[torch.nn.Parameter]] = {settings.lr: [], settings.optimizer_lr: []}
    for name, parameter in method.named_parameters():
        of_start = not name.startswith("optimizer.") and name != "log_scale"
        parameters[settings.lr if of_start else settings.optimizer_lr].append(parameter)
    optimizer = torch.optim.Adam({"params": group, "lr": lr, "initial_lr": lr} for lr, group in parameters.items())
    if not isinstance(config.settings, PretrainedSettings):
        _episodes(config, meta_sets.splits["meta-train"], "cpu")  # which refuses classes by the images that a user has
    val_sampler = _episodes(config, meta_sets.splits["meta-val"], device)
    at: dict[str, Any] = {"episode": 0, "seconds": 0.0, "best": -1.0, "best_episode": 0, "since_best": 0}
    path = out / "last.safetensors"
    state = None
    with distributed.together():
        if distributed.rank() == 0 and _can_resume(config, out, resume):
            state = checkpoint.load(path)
    if state := distributed.broadcast(state):
        tensors, meta = state
        try:
            checkpoint.restore_training_state(method, optimizer, tensors)
            at = {name: type(start)(meta["at"][name]) for name, start in at.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a state of this run ({error}): train anew with another --out") from error
        console.print(f"{out}: going on after episode {at['episode']:,}", soft_wrap=True)
    elif settings.pretrain:
        pretrained = pretrained or out / "pretrained"
        _pretrain(config, meta_sets, pretrained, device)
        start_from(method, checkpoint.load_method(pretrained)[0])
    if settings.episodes <= at["episode"] - settings.meta_batch:
        raise UserError(f"{out} is {at['episode']:,} episodes long already: pass at least as many --episodes")
    with distributed.together():
        if distributed.rank() == 0:
            for name in ("config.json", "metrics.jsonl", "best.safetensors", "last.safetensors"):
                for left in out.glob(f".{name}.*.tmp"):  # by a run that was killed while it wrote
                    left.unlink()
            checkpoint.write(out / "config.json", (json.dumps(config.to_dict(), indent=1) + "\n").encode())
            _forget_metrics_after(out / "metrics.jsonl", at["episode"])
    if _is_done(settings, at):
        return
    sampler = _sampler(config, meta_train_images(config, meta_sets), device)

    def save(name: str) -> None:
        meta = {"config": config.to_dict(), "at": at, "meta_val": at["best"], "episode": at["episode"]}
        tensors = checkpoint.training_state(method, optimizer)
        if name == "best.safetensors":
            tensors = {key: tensor for key, tensor in tensors.items() if key.startswith("method.")}
        checkpoint.save(out / name, tensors, meta)

    model = distributed.wrap(method, sampler[0])
    started = time.monotonic() - at["seconds"]
    losses: list[torch.Tensor] = []
    accuracies: list[torch.Tensor] = []
    logged = at["episode"], at["seconds"]
    stopping = 0.0
    with _signals() as stop, progress(TextColumn("{task.fields[status]}")) as bar:
        task = bar.add_task("meta-training", total=settings.episodes, completed=at["episode"], status="")
        while not _is_done(settings, at) and not stopping:
            numbers = range(at["episode"], at["episode"] + settings.meta_batch)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * (
                    _cosine(numbers.start / settings.episodes) if settings.lr_decay else 1
                )
            mine = distributed.share(numbers)
            torch.manual_seed(numbers.start + distributed.rank())  # of dropout, so that a resumed run has the same
            weight = len(mine) / len(numbers)
            loss, accuracy = model(sampler.batch(mine))
            # The gradient is the mean over the processes.
            norm = outer_step(loss * (weight * distributed.world_size()), method, optimizer, settings.clip)
            losses.append(loss.detach() * weight)
            accuracies.append(accuracy * weight)
            at["episode"] = numbers.stop
            # Read once: what comes later waits for the next step.
            at["seconds"], stopping = distributed.highest(time.monotonic() - started, float(len(stop)))

            bar.update(task, completed=at["episode"])

            validate = _crosses(numbers, settings.val_every) or _is_done(settings, at)
            if validate or _crosses(numbers, LOG_EVERY) or stopping:
                means = distributed.total(torch.stack([torch.stack(losses).mean(), torch.stack(accuracies).mean()]))
                line = {
                    "episode": at["episode"],
                    "seconds": round(at["seconds"], 3),
                    "loss": means[0].item(),
                    "accuracy": 100 * means[1].item(),
                    "episodes_per_second": (at["episode"] - logged[0]) / (at["seconds"] - logged[1]),
                    "grad_norm": norm.item(),
                }
                if not math.isfinite(line["loss"]) or not math.isfinite(line["grad_norm"]):
                    raise UserError(
                        f"the loss is no longer finite at episode {at['episode']:,} "
                        f"(loss {line['loss']}, gradient {line['grad_norm']}): lower --lr or --input-bias; "
                        f"{out} keeps the last good state"
                    )
                if validate:
                    bar.update(task, status="validating")
                    val = evaluate(method, val_sampler, settings.val_episodes).mean
                    (at["seconds"],) = distributed.highest(time.monotonic() - started)
                    line |= {"meta_val": val}
                    if val > at["best"]:
                        at |= {"best": val, "best_episode": at["episode"], "since_best": 0}
                    else:
                        at["since_best"] += 1
                with distributed.together():
                    if distributed.rank() == 0:
                        if at["best_episode"] == at["episode"]:
                            save("best.safetensors")
                        _append(out / "metrics.jsonl", json.dumps(line) + "\n")
                        save("last.safetensors")
                losses, accuracies = [], []
                logged = at["episode"], at["seconds"]
                status = f"{line['episodes_per_second']:.1f}/s loss {line['loss']:.2f} acc {line['accuracy']:.1f}"
                if at["best_episode"]:
                    status += f" val {at['best']:.1f}"
                bar.update(task, status=status, total=_expected_episodes(settings, at))
                if validate:
                    best = f"best {at['best']:.2f} % after {at['best_episode']:,}"
                    console.print(
                        f"episode {at['episode']:,}: meta-val {line['meta_val']:.2f} %, {best}", soft_wrap=True
                    )
    if stopping:
        raise Interrupted(f"saved after episode {at['episode']:,}")


def run_config(
    meta_sets: MetaSets,
    settings: S,
    training: TrainingSettings,
    method: str,
    recipe: str,
    n_way: int,
    n_shot: int,
    n_query: int = 15,
    seed: int = 0,
) -> RunConfig[S]:
    """The configuration of a run on a data set; arguments as the fields of `RunConfig`."""
    images = meta_sets.splits["meta-train"]
    return RunConfig(
        settings,
        training,
        method,
        recipe,
        meta_sets.name,
        meta_sets.digest,
        meta_sets.licence,
        images.image_shape,
        len(images.classes),
        n_way,
        n_shot,
        n_query,
        seed,
    )


def meta_train_images(config: RunConfig, meta_sets: MetaSets) -> ImagesByClass:
    """What a run is meta-trained on: the meta-train classes, with those images and classes that its settings add."""
    images = meta_sets.splits["meta-train"]
    if config.training.mirrors:
        images = images.mirrored()
    return images.rotated() if config.training.rotations else images


def pretraining(config: RunConfig) -> RunConfig[PretrainedSettings]:
    """The run that a method starts from: its network as a classifier of all meta-train classes.

    `training.pretrain` is the number of mini-batches.
    """
    own = config.settings
    settings, training = named("pretrained", config.recipe, config.data, config.n_shot)
    settings = replace(
        settings, filters=own.filters, conv_bias=own.conv_bias, unit_gamma=own.unit_gamma, precision=own.precision
    )
    training = replace(
        training,
        episodes=config.training.pretrain,
        rotations=config.training.rotations,
        mirrors=config.training.mirrors,
    )
    return replace(config, method="pretrained", settings=settings, training=training)


def _pretrain(config: RunConfig, meta_sets: MetaSets, out: Path, device: torch.device | str) -> None:
    """Make the run that a method starts from, if it is not there."""
    run, last = pretraining(config), out / "last.safetensors"
    if last.exists() and checkpoint.load(last)[1]["at"]["episode"] >= run.training.episodes:
        return
    if distributed.world_size() > 1:
        raise UserError(
            "pre-training runs in one process: start this command without torchrun until the pre-training is done, "
            "then with torchrun and --resume; or pass --pretrain 0"
        )
    train(run, meta_sets, out, resume=True, device=device)


def outer_step(
    loss: torch.Tensor, method: torch.nn.Module, optimizer: torch.optim.Optimizer, clip: float | None
) -> torch.Tensor:
    """Backward, clip and step; gives the norm of the meta-gradient before it was clipped."""
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(method.parameters(), clip or math.inf)
    optimizer.step()
    return norm


def step_seconds(config: RunConfig, meta_sets: MetaSets, device: torch.device | str = "cpu") -> float:
    """How long training takes for an episode, or a mini-batch of pre-training, roughly: by the second of two steps.

    Validations and saved states come on top.
    """
    method, sampler = build(config).to(device), _sampler(config, meta_sets.splits["meta-train"], device)
    optimizer = torch.optim.Adam(method.parameters())
    seconds = 0.0
    for number in range(2):
        start = time.perf_counter()
        loss, _ = method(sampler[number])
        outer_step(loss, method, optimizer, config.training.clip)
        seconds = time.perf_counter() - start
    return seconds


@torch.no_grad()
def start_from(method: Method, pretrained: Method) -> None:
    """Let a method start from a pre-trained network.

    It takes the body and the moments. A head starts at 0: in a few steps, what is drawn at random is not unlearned.

    Raises:
        UserError: The method has no network that is trained, or one of another shape.
    """
    assert isinstance(pretrained, Pretrained)
    if isinstance(method, (HeadOnly, MatchingNet)):
        method.body.copy_(pretrained.body)
        method.moments.copy_(pretrained.moments)
        if isinstance(method, HeadOnly):
            method.head.head_0.zero_()
        return
    if not isinstance(method, GradientMethod) or method.body_0.shape != pretrained.body.shape:
        raise UserError("this method cannot start from a pre-trained network, or not from one of this shape")
    method.body_0.copy_(pretrained.body)
    method.moments_0.copy_(pretrained.moments)
    method.head_0.zero_()


def _sampler(config: RunConfig, images: ImagesByClass, device: torch.device | str) -> EpisodeSampler | BatchSampler:
    """What a run is trained on, by number."""
    if isinstance(config.settings, PretrainedSettings):
        return BatchSampler(images, config.settings.batch_size, config.seed, device)
    return _episodes(config, images, device)


def _episodes(config: RunConfig, images: ImagesByClass, device: torch.device | str) -> EpisodeSampler:
    return EpisodeSampler(images, config.n_way, config.n_shot, config.n_query, config.seed, device)


def _check_processes(config: RunConfig) -> None:
    """Several processes can share a step only if it has an episode for each, and they are given the same run."""
    n, meta_batch = distributed.world_size(), config.training.meta_batch
    if meta_batch < n:
        raise UserError(
            f"--meta-batch {meta_batch}: {n} processes need an episode each in every step: pass --meta-batch {n} or "
            f"more, or start at most {meta_batch}"
        )
    first = distributed.broadcast(config)
    with distributed.together():
        if config != first:
            raise UserError(
                f"process {distributed.rank()} was given another run than process 0 ({_differences(first, config)}): "
                "start all with the same command, data and versions"
            )


def _can_resume(config: RunConfig, out: Path, resume: bool) -> bool:
    """Compare with the run that is there, if any; tells whether there is a state to go on from."""
    path, last = out / "config.json", out / "last.safetensors"
    if not path.exists() and not last.exists():
        return False
    if not resume:
        raise UserError(f"{out} already holds a run: pass --resume to go on with it, or another --out")
    try:
        values = json.loads(path.read_text()) if path.exists() else checkpoint.load(last)[1]["config"]
        there = RunConfig.from_dict(values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it, or train anew with another --out") from error
    if different := _differences(there, config):
        raise UserError(f"{out} holds another run ({different}): use its settings, or another --out")
    return last.exists()


def _differences(there: RunConfig, now: RunConfig) -> str:
    old, new = _flat(there), _flat(now)
    return "; ".join(f"{name} {old[name]!r} there, {new[name]!r} now" for name in new if old[name] != new[name])


def _flat(config: RunConfig) -> dict[str, Any]:
    """All values that must be the same when a run is gone on with; it may be made longer."""
    values = config.to_dict()
    values = {**values, **values["settings"], **values["training"]}
    return {
        name: value for name, value in values.items() if name not in ("settings", "training", "episodes", "minutes")
    }


def _forget_metrics_after(path: Path, episode: int) -> None:
    """Drop lines that a killed run wrote after its last saved state, and a line cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if not line.endswith("\n") or json.loads(line)["episode"] > episode:
                break
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged at {line[:40]!r}: remove that line") from error
        kept.append(line)
    checkpoint.write(path, "".join(kept).encode())


def _append(path: Path, line: str) -> None:
    try:
        with path.open("a") as file:
            file.write(line)
    except OSError as error:
        raise checkpoint.cannot_write(path, len(line), error) from error


def _is_done(settings: TrainingSettings, at: dict[str, Any]) -> bool:
    """Whether a run has had its episodes, its minutes, or its patience with meta-val."""
    out_of_time = settings.minutes is not None and at["seconds"] >= 60 * settings.minutes
    return (
        at["episode"] >= settings.episodes
        or out_of_time
        or (settings.patience is not None and at["since_best"] >= settings.patience)
    )


def _expected_episodes(settings: TrainingSettings, at: dict[str, Any]) -> int:
    """How long the run will be, should it go on at its pace and not lose patience."""
    if settings.minutes is None:
        return settings.episodes
    return min(settings.episodes, max(at["episode"], int(at["episode"] * 60 * settings.minutes / at["seconds"])))


def _cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine as progress goes from 0 to 1."""
    return (1 + math.cos(math.pi * progress)) / 2


def _crosses(numbers: range, every: int) -> bool:
    """Whether a multiple of `every` lies among the episodes just done."""
    return numbers.stop // every > numbers.start // every


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that fills when Ctrl-C or SIGTERM comes, so that the loop ends between two steps; twice ends at once."""
    received: list[int] = []

    def handle(number: int, _: object) -> None:
        if received:
            os.write(2, b"\x1b[?25h\n")  # the cursor, which the progress bar hid
            os._exit(130)
        received.append(number)
        if distributed.rank() == 0:
            # Not through rich, which may be in the middle of a line.
            os.write(2, b"\nstopping after this step; once more to stop at once\n")

    # Only the main thread may handle signals; in another one, whoever started it is in charge.
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
