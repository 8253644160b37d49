"""The outer loop."""

import contextlib
import math
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import TextColumn
from torch import nn

from metalstm import checkpoint, devices, distributed, recipes
from metalstm.augmentation import augmented
from metalstm.console import console, progress
from metalstm.data import ImagesByClass, MetaSets
from metalstm.episodes import EpisodeSampler
from metalstm.errors import Interrupted, UserError, unknown
from metalstm.evaluation import evaluate
from metalstm.methods import METHODS, Method, RunConfig, Search, Tuning
from metalstm.settings import TrainingSettings
from metalstm.training import record, signals
from metalstm.training.run_folder import Progress, RunFolder

LEARNING_RATES = ("lr", "optimizer_lr")  # of TrainingSettings, which groups of parameters name
LOG_EVERY = 50  # episodes between two lines of metrics.jsonl; the resume state is saved as often


def train(
    config: RunConfig,
    meta_sets: MetaSets,
    out: Path,
    resume: bool = False,
    device: torch.device | str = "cpu",
    pretrained: Path | None = None,
    search: Search = Search(),
    wait: bool = False,
) -> None:
    """Train a method, tune it if it wants that, and leave a run folder.

    The folder holds `config.json`, `metrics.jsonl`, `best.safetensors` (the best by meta-val, tuned),
    `last.safetensors` (the last iterate, with all that is needed to go on) and `run.json` (what made it all, and each
    time that meta-test was opened). Episodes are functions of the seed and their number, so that a resumed run ends
    with the very weights of an uninterrupted one, given the same machine, CPU threads and limits. One process at a time
    can write into a folder.

    In several processes, started by torchrun, each step's episodes are shared out and the gradient is the mean over all
    of them: the run is the same, whatever the number of processes, up to the rounding of sums. Process 0 alone writes.

    Args:
        config: What to train and how.
        meta_sets: The data.
        out: The run folder.
        resume: Go on with the run in `out`, if there is one.
        device: Where to train.
        pretrained: Run folder of the pre-training, for runs that share one; `out/pretrained` by default.
        search: How thorough tuning is.
        wait: For another process that writes into `out`, if there is one; otherwise it is an error.

    Raises:
        UserError: `out` holds a run and `resume` is not set, or holds a run of another configuration; another process
            writes into it; a setting is out of its bounds; the loss is not finite; the disk is full; there are more
            processes than episodes in a step, or they differ.
        Interrupted: On Ctrl-C or SIGTERM, after saving.
    """
    with contextlib.ExitStack() as stack:
        with distributed.all_fail_together():
            recipes.check(config)
            device = devices.usable(device)
            if distributed.rank() == 0:
                stack.enter_context(RunFolder(out, config).locked(wait))
        _train(config, meta_sets, out, resume, device, pretrained, search)


def _train(
    config: RunConfig,
    meta_sets: MetaSets,
    out: Path,
    resume: bool,
    device: torch.device,
    pretrained: Path | None,
    search: Search,
) -> None:
    """`train` in a folder that is locked."""
    _check_processes(config)
    if config.training.episodes and not METHODS[config.method].meta_trained:
        raise UserError(
            f"--episodes {config.training.episodes}: {config.method} is not meta-trained: pass --episodes 0"
        )
    folder = RunFolder(out, config)
    method = recipes.build(config).to(device)
    optimizer = outer_optimizer(method, config.training)
    # Complain about classes by the images that a user has, before mirror images and rotations are added.
    METHODS[config.method].sampler(meta_sets.splits["meta-train"], config, "cpu")
    task = config.n_way, config.n_shot, config.n_query
    val_sampler = EpisodeSampler(meta_sets.splits["meta-val"], *task, config.seed, device, config.training.within_group)
    state = None
    with distributed.all_fail_together():
        if distributed.rank() == 0:
            folder.check(resume)
            record.read(out)
            state = folder.state()
    at = Progress()
    if state := distributed.broadcast(state):
        at = folder.restore(state, method, optimizer)
        console.print(f"{out}: going on after {method.unit[0]} {at.episode:,}", soft_wrap=True)
    elif config.training.pretrain:
        at.seconds = _start_from_pretraining(method, config, meta_sets, folder, pretrained, device)
    if not state:
        method.look_at(meta_sets.splits["meta-train"])
    if config.training.episodes <= at.episode - config.training.meta_batch:
        raise UserError(f"{out} is {at.episode:,} episodes long already: pass at least as many --episodes")
    is_done = _is_done(config.training, at)
    with distributed.all_fail_together():
        if distributed.rank() == 0:
            is_finished = is_done and folder.best.exists()
            folder.begin(at, is_done)
            if not is_finished:
                record.start(out, config, device)
    if not is_done:
        _meta_train(config, meta_sets, folder, method, optimizer, val_sampler, at, device)
    _finish(config, folder, method, optimizer, val_sampler, at, search)


def _meta_train(
    config: RunConfig,
    meta_sets: MetaSets,
    folder: RunFolder,
    method: Method,
    optimizer: torch.optim.Optimizer,
    val_sampler: EpisodeSampler,
    at: Progress,
    device: torch.device | str,
) -> None:
    """Outer steps until the run is done; `at` and the folder are kept up to date."""
    settings = config.training
    started = time.monotonic() - at.seconds
    sampler = method.sampler(meta_train_images(config, meta_sets), config, device)
    model = distributed.wrap(method, sampler[0])
    one, many = method.unit
    losses: list[torch.Tensor] = []
    accuracies: list[torch.Tensor] = []
    logged = at.episode, at.seconds
    stopping = 0.0
    with signals.caught() as stop, progress(TextColumn("{task.fields[status]}")) as bar:
        task = bar.add_task(method.phase, total=settings.episodes, completed=at.episode, status="", unit=many)
        while not _is_done(settings, at) and not stopping:
            numbers = range(at.episode, at.episode + settings.meta_batch)
            for group in optimizer.param_groups:
                decay = _cosine(numbers.start / settings.episodes) if settings.lr_decay else 1
                group["lr"] = group["initial_lr"] * decay
            mine = distributed.share(numbers)
            torch.manual_seed(
                numbers.start + distributed.rank()
            )  # of dropout and augmentation, which a resumed run repeats
            weight = len(mine) / len(numbers)
            loss, accuracy = model(augmented(sampler.batch(mine), settings))
            # The gradient is the mean over the processes.
            norm = outer_step(loss * (weight * distributed.world_size()), method, optimizer, settings.clip)
            losses.append(loss.detach() * weight)
            accuracies.append(accuracy * weight)
            at.episode = numbers.stop
            # Read once: what comes later waits for the next step.
            at.seconds, stopping = distributed.highest(time.monotonic() - started, float(len(stop)))
            bar.update(task, completed=at.episode)

            validate = _crosses(numbers, settings.val_every) or _is_done(settings, at)
            if validate or _crosses(numbers, LOG_EVERY) or stopping:
                means = distributed.total(torch.stack([torch.stack(losses).mean(), torch.stack(accuracies).mean()]))
                line = {
                    "episode": at.episode,
                    "seconds": round(at.seconds, 3),
                    "loss": means[0].item(),
                    "accuracy": 100 * means[1].item(),
                    "episodes_per_second": (at.episode - logged[0]) / (at.seconds - logged[1]),
                    "grad_norm": norm.item(),
                }
                _check_finite(line, method, folder)
                if validate:
                    bar.update(task, status="validating")
                    line["meta_val"] = _validate(method, val_sampler, settings, at)
                    (at.seconds,) = distributed.highest(time.monotonic() - started)
                with distributed.all_fail_together():
                    if distributed.rank() == 0:
                        if at.best_episode == at.episode:
                            folder.save_best(method, at)
                        folder.log(line)
                        folder.save_last(method, optimizer, at)
                losses, accuracies = [], []
                logged = at.episode, at.seconds
                status = f"{line['episodes_per_second']:.1f}/s loss {line['loss']:.2f} acc {line['accuracy']:.1f}"
                if at.best_episode:
                    status += f" val {at.best:.1f}"
                bar.update(task, status=status, total=_expected_episodes(settings, at))
                if validate:
                    best = f"best {at.best:.2f} % after {at.best_episode:,}"
                    said = f"{method.phase}, {one} {at.episode:,}: meta-val {line['meta_val']:.2f} %, {best}"
                    console.print(said, soft_wrap=True)
    if stopping:
        raise Interrupted(f"saved after {one} {at.episode:,}")


def _finish(
    config: RunConfig,
    folder: RunFolder,
    method: Method,
    optimizer: torch.optim.Optimizer,
    val_sampler: EpisodeSampler,
    at: Progress,
    search: Search,
) -> None:
    """Validate what had no episodes to be trained on, or lost its best; tune what wants to be tuned."""
    if not at.best_episode and not folder.best.exists():
        accuracy = _validate(method, val_sampler, config.training, at)
        if distributed.rank() == 0:
            folder.log({"episode": at.episode, "seconds": round(at.seconds, 3), "meta_val": accuracy})
            folder.save_best(method, at)
            if at.episode:
                folder.save_last(method, optimizer, at)
    if distributed.rank() > 0 or "chosen" in (meta := checkpoint.load(folder.best)[1]):
        return
    best, _, _ = checkpoint.load_method(folder.best)
    tuning = Tuning(val_sampler.__getitem__, search, folder.keep, f"tuning {folder.path.name}")
    changes = best.to(val_sampler.device).tune(tuning)
    if changes:
        chosen = changes.pop("chosen")
        at = Progress.from_dict(meta["at"])
        facts = {"chosen": chosen, "meta_val": chosen["meta_val"]}
        folder.save_best(best, at, replace(config, **changes), facts)


def meta_train_images(config: RunConfig, meta_sets: MetaSets) -> ImagesByClass:
    """What a run is meta-trained on: the meta-train classes, with those images and classes that its settings add."""
    images = meta_sets.splits["meta-train"]
    if config.training.mirrors:
        images = images.mirrored()
    return images.rotated() if config.training.rotations else images


def outer_step(
    loss: torch.Tensor, method: nn.Module, optimizer: torch.optim.Optimizer, clip: float | None
) -> torch.Tensor:
    """Backward, clip and step.

    Returns:
        The norm of the meta-gradient before it was clipped.
    """
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(method.parameters(), clip or math.inf)
    optimizer.step()
    return norm


def step_seconds(config: RunConfig, meta_sets: MetaSets, device: torch.device | str = "cpu") -> float:
    """How long training takes for an episode, or a mini-batch of pre-training, roughly: the second of two steps.

    Validations and saved states come on top.
    """
    if not config.training.episodes:
        return 0.0
    method = recipes.build(config).to(device)
    sampler = method.sampler(meta_sets.splits["meta-train"], config, device)
    optimizer = outer_optimizer(method, config.training)
    seconds = 0.0
    for number in range(2):
        start = time.perf_counter()
        loss, _ = method(sampler[number])
        outer_step(loss, method, optimizer, config.training.clip)
        seconds = time.perf_counter() - start
    return seconds


def outer_optimizer(method: Method, settings: TrainingSettings) -> torch.optim.Optimizer:
    """The outer optimizer, of every trained parameter, each with the learning rate that the method names for it.

    Raises:
        UserError: The method's groups miss a parameter, or have it twice, or name an unknown learning rate; or there is
            nothing to train.
    """
    named = method.parameter_groups()
    groups: list[dict[str, Any]] = [
        {"params": parameters, "lr": (lr := _learning_rate(settings, name)), "initial_lr": lr}
        for name, parameters in named.items()
    ]
    times = Counter(id(parameter) for parameters in named.values() for parameter in parameters)
    trained = {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}
    if wrong := [name for name, parameter in trained.items() if times[id(parameter)] != 1]:
        raise UserError(
            f"parameter_groups of {type(method).__name__} must have each trained parameter once, but misses or repeats "
            f"{', '.join(wrong)}"
        )
    if method.meta_trained and settings.episodes and not any(parameter.numel() for parameter in trained.values()):
        raise UserError(f"{method.label} has nothing to train with this learner: pass another --learner")
    if not trained:
        groups = [{"params": [nn.Parameter(torch.zeros(0))], "lr": settings.lr, "initial_lr": settings.lr}]
    if settings.outer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay)
    return torch.optim.Adam(groups, weight_decay=settings.weight_decay)


def _learning_rate(settings: TrainingSettings, name: str) -> float:
    """The learning rate that a group of parameters names.

    Raises:
        UserError: There is none of this name.
    """
    if name not in LEARNING_RATES:
        raise unknown("learning rate of parameter_groups", name, LEARNING_RATES)
    return getattr(settings, name)


def _start_from_pretraining(
    method: Method,
    config: RunConfig,
    meta_sets: MetaSets,
    run: RunFolder,
    shared: Path | None,
    device: torch.device,
) -> float:
    """Make the run that a method starts from, if it is not there, and start from it.

    Returns:
        The seconds of it that count as the run's own: none where runs share it.
    """
    folder = shared or run.path / "pretrained"
    pretraining = recipes.pretraining(config)
    start = RunFolder(folder, pretraining)
    if not _is_long_enough(start):
        if distributed.world_size() > 1:
            raise UserError(
                "pre-training runs in one process: start this command without torchrun until the pre-training is "
                "done, then with torchrun and --resume; or pass --pretrain 0"
            )
        with start.locked(wait=True):
            if not _is_long_enough(start):  # another run that shares it may have made it meanwhile
                run.write_configuration()
                run.best.unlink(missing_ok=True)  # of a shorter pre-training
                n, minutes = pretraining.training.episodes, pretraining.training.minutes
                most = f"{n:,} mini-batches" + (f" or {minutes:g} minutes" if minutes else "")
                console.print(f"{folder}: pre-training, {most} at the most", soft_wrap=True)
                _train(pretraining, meta_sets, folder, True, device, None, Search())
    method.start_from(checkpoint.load_method(folder)[0].to(device).network())
    at = start.progress()
    return 0.0 if shared or not at else at.seconds  # with the last validation, which its metrics do not count


def _is_long_enough(folder: RunFolder) -> bool:
    at = folder.progress()
    if at is None and folder.best.exists() and not folder.last.exists():  # its minutes ended before its first step
        at = Progress.from_dict(checkpoint.load(folder.best)[1]["at"])
    return at is not None and _is_done(folder.config.training, at)


def _validate(method: Method, sampler: EpisodeSampler, settings: TrainingSettings, at: Progress) -> float:
    """Accuracy on meta-val; notes in `at` whether it is the best so far."""
    accuracy = evaluate(method, sampler, settings.val_episodes).mean
    if accuracy > at.best:
        at.best, at.best_episode, at.since_best = accuracy, at.episode, 0
    else:
        at.since_best += 1
    return accuracy


def _check_finite(line: dict[str, Any], method: Method, folder: RunFolder) -> None:
    """Stop before a state that cannot be gone on with is saved.

    Raises:
        UserError: The loss, its gradient or a weight is not finite.
    """
    try:
        checkpoint.check_finite(method.state_dict())
        weights = "finite"
    except ValueError:
        weights = "not finite"
    if math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]) and weights == "finite":
        return
    kept = f"{folder.path} keeps the last good state" if folder.last.exists() else "nothing was saved yet"
    raise UserError(
        f"the loss is no longer finite at episode {line['episode']:,} (loss {line['loss']}, gradient "
        f"{line['grad_norm']}, weights {weights}): lower --lr or --input-bias; {kept}"
    )


def _check_processes(config: RunConfig) -> None:
    """Several processes can share a step only if it has an episode for each, and they are given the same run."""
    n, meta_batch = distributed.world_size(), config.training.meta_batch
    if meta_batch < n:
        raise UserError(
            f"--meta-batch {meta_batch}: {n} processes need an episode each in every step: pass --meta-batch {n} or "
            f"more, or start at most {meta_batch}"
        )
    first = distributed.broadcast(config)
    with distributed.all_fail_together():
        if config != first:
            raise UserError(
                f"process {distributed.rank()} was given another run than process 0 "
                f"({recipes.differences(first, config)}): start all with the same command, data and versions"
            )


def _is_done(settings: TrainingSettings, at: Progress) -> bool:
    """Whether a run has had its episodes, its minutes, or its patience with meta-val."""
    out_of_time = settings.minutes is not None and at.seconds >= 60 * settings.minutes
    out_of_patience = settings.patience is not None and at.since_best >= settings.patience
    return at.episode >= settings.episodes or out_of_time or out_of_patience


def _expected_episodes(settings: TrainingSettings, at: Progress) -> int:
    """How long the run will be if it keeps its pace and does not lose patience."""
    if settings.minutes is None:
        return settings.episodes
    return min(settings.episodes, max(at.episode, int(at.episode * 60 * settings.minutes / at.seconds)))


def _cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine as progress goes from 0 to 1."""
    return (1 + math.cos(math.pi * progress)) / 2


def _crosses(numbers: range, every: int) -> bool:
    """Whether a multiple of `every` lies among the episodes just done."""
    return numbers.stop // every > numbers.start // every
