"""How much the choice of the rate can win where a head is trained on the features of a pre-trained network.

    python tools/headroom.py RUN [--cross-fit FOLDER]

RUN is a run folder of `metalstm train --method pretrained`. Heads of zeros are trained on features of one length, for
tasks of many ways and shots. For each cell of a grid on meta-val it prints the accuracy of class means, of the best of
many fixed rules and of logistic regressions (chosen by these very episodes: a generous bound for choosing one rate for
the whole head), of one learned table for all cells (a rate and a share to forget for each step), of an LSTM that sees
loss, gradient and weights at each step and sets both, and of this LSTM with what it sets replaced by its means. The
table and the LSTM are meta-trained on tasks of meta-train, of 2 to 20 classes with 1 to 50 images each.

With --cross-fit, they learn from features of classes that the network has not seen, as the classes of a user are not:
three networks are pre-trained on two thirds of the classes each, in FOLDER, and each embeds the last third. An
interrupted command goes on when it is given again. METALSTM_DATA names the data.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from metalstm import checkpoint, data, kernels
from metalstm.console import console, track
from metalstm.data import ImagesByClass, MetaSets
from metalstm.episodes import EpisodeSampler
from metalstm.methods import Method, RunConfig
from metalstm.training import train

LENGTH = math.sqrt(128)
STEPS = 20
META_STEPS, META_BATCH = 1500, 2
FOLDS, FOLD_EPISODES = 3, 8000
DECAY = 0.02  # weight decay of which a table or an LSTM sets the multiple
WAYS, SHOTS = (2, 3, 5, 7, 10, 13, 16, 20), (1, 2, 3, 5, 10, 20, 35, 50)
CELLS = [(n_way, n_shot) for n_way in (2, 5, 10, 16) for n_shot in (1, 2, 5, 10, 20, 50)]
OUTER_RATES = 3e-3, 1e-2  # the better one is taken, in episodes that are not printed
RATES, READ_AT, PENALTIES = (0.03, 0.1, 0.3, 1.0), (5, 10, 20, 40), (1000.0, 100.0, 10.0, 1.0)


@dataclass
class Task:
    """Features of a support set and of queries, with their labels."""

    x: Tensor
    y: Tensor
    query_x: Tensor
    query_y: Tensor
    n_way: int

    def accuracy(self, scores: Tensor) -> float:
        """The share of queries whose own class has the highest score."""
        return (scores.argmax(-1) == self.query_y).float().mean().item()


class Features:
    """The features of all images of a set of classes, and tasks of them by number."""

    def __init__(self, method: Method, images: ImagesByClass):
        images = images.compact()
        self.images, embed = images, getattr(method, "embed")  # noqa: B009
        parts = [
            embed(torch.tensor(images.images[rows.numpy()]).movedim(-1, -3).float() / 255)
            for rows in track(torch.arange(len(images.images)).split(400), f"embedding {images.name}")
        ]
        self.features = F.normalize(torch.cat(parts), dim=-1) * LENGTH

    def task(self, n_way: int, n_shot: int, number: int) -> Task:
        """Task `number`, with the images of the episode of that number."""
        support, y, query = EpisodeSampler(self.images, n_way, n_shot)._draw(number)
        query_y = torch.arange(n_way).repeat_interleave(15)
        return Task(self.features[support], torch.from_numpy(y), self.features[query], query_y, n_way)


def gradient(weight: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the support set, and its gradient."""
    log_p = (task.x @ weight.T).log_softmax(-1)
    residual = log_p.exp() - F.one_hot(task.y, task.n_way)
    return F.nll_loss(log_p, task.y), residual.T @ task.x / len(task.y)


class Table(nn.Module):
    """Gradient descent with weight decay: a learned rate and a learned decay for each step."""

    def __init__(self) -> None:
        super().__init__()
        self.log_rates, self.decays = (
            nn.Parameter(torch.full((STEPS,), math.log(0.1))),
            nn.Parameter(torch.zeros(STEPS)),
        )

    def coefficients(self, step: int, seen: Tensor) -> Tensor:
        """Logarithm of the rate, and decay."""
        return torch.stack([self.log_rates[step], self.decays[step]])

    def forward(self, task: Task) -> Tensor:
        """The head after all steps."""
        weight = task.x.new_zeros(task.n_way, task.x.shape[1])
        last = None
        for step in range(STEPS):
            loss, grad = gradient(weight, task)
            log_loss = (loss + 1e-6).log()
            sizes = (grad.square().mean() + 1e-12).log() / 8 + 1, (weight.square().mean() + 1e-8).log() / 8
            change = log_loss - (log_loss if last is None else last)
            seen = torch.stack([loss / 2, log_loss / 4, change, *sizes])
            log_rate, decay = self.coefficients(step, seen)
            weight = (1 - log_rate.exp() * DECAY * decay) * weight - log_rate.exp() * grad
            last = log_loss
        return weight


class LSTM(Table):
    """The same table, changed by what an LSTM says at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTMCell(5, 16), nn.Linear(16, 2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.state: tuple[Tensor, Tensor] | None = None
        self.means: list[Tensor] | None = None
        self.trace: list[list[Tensor]] = [[] for _ in range(STEPS)]

    def coefficients(self, step: int, seen: Tensor) -> Tensor:
        """What the step takes, which is kept in `trace`; its mean if there are means."""
        if self.means is not None:
            return self.means[step]
        h, _ = self.state = self.cell(seen[None], self.state if step else None)
        said = super().coefficients(step, seen) + self.out(h)[0]
        if not torch.is_grad_enabled():
            self.trace[step].append(said)
        return said


def cross_fitted(config: RunConfig, sets: MetaSets, folder: Path) -> list[Features]:
    """Features of all classes of meta-train, a third of them at a time, by networks that have not seen these."""
    images = sets.splits["meta-train"]
    names, found = np.random.RandomState(0).permutation(images.classes), []
    short = replace(config.training, episodes=FOLD_EPISODES, val_every=FOLD_EPISODES, pretrain=0, generations=1)
    for k in range(FOLDS):
        held_out = set(names[k::FOLDS])
        rest = images.subset(set(images.classes) - held_out)
        run = folder / f"fold-{k}"
        if not (run / "best.safetensors").exists():
            fold = replace(config, n_classes=len(rest.classes), training=short)
            train(fold, replace(sets, splits={**sets.splits, "meta-train": rest}), run, resume=run.exists())
        method, _, _ = checkpoint.load_method(run, {"precision": "fp32"})
        with torch.no_grad():
            found.append(Features(method, images.subset(held_out)))
    return found


def random_task(parts: list[Features], number: int) -> Task:
    """A task of a random number of classes and images, all from one part."""
    random = np.random.RandomState(number)
    part = parts[random.randint(len(parts))]
    return part.task(random.choice(WAYS), random.choice(SHOTS), number)


def meta_train(optimizer: Table, parts: list[Features], lr: float) -> None:
    """Adam on the query loss of random tasks."""
    outer = torch.optim.Adam(optimizer.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(outer, META_STEPS)
    for step in track(range(META_STEPS), f"meta-training {type(optimizer).__name__}"):
        outer.zero_grad()
        for number in range(META_BATCH * step, META_BATCH * (step + 1)):
            task = random_task(parts, number)
            (F.cross_entropy(task.query_x @ optimizer(task).T, task.query_y) / META_BATCH).backward()
        nn.utils.clip_grad_norm_(optimizer.parameters(), 1.0)
        outer.step()
        schedule.step()


def fixed(task: Task) -> dict[str, float]:
    """Accuracies of class means, fixed rules and logistic regressions."""
    sums = torch.zeros(task.n_way, task.x.shape[1]).index_add(0, task.y, task.x)
    found = {"class means": task.accuracy(task.query_x @ F.normalize(sums, dim=-1).T)}
    for rate in RATES:
        weight = torch.zeros_like(sums)
        for step in range(1, READ_AT[-1] + 1):
            weight = weight - rate * gradient(weight, task)[1]
            if step in READ_AT:
                found[f"rate {rate}, {step} steps"] = task.accuracy(task.query_x @ weight.T)
    for penalty in PENALTIES:
        fit = LogisticRegression(C=1 / penalty, max_iter=300).fit(task.x.numpy(), task.y.numpy())
        scores = torch.from_numpy(fit.decision_function(task.query_x.numpy()))
        scores = scores if scores.ndim == 2 else torch.stack([-scores, scores], -1)
        found[f"logistic regression, penalty {penalty}"] = task.accuracy(scores)
    return found


G = TypeVar("G", bound=Table)
Grid = dict[str, np.ndarray]  # accuracies in percent, (cells, episodes)


@torch.no_grad()
def grid(features: Features, numbers: range, of: Callable[[Task], dict[str, float]]) -> Grid:
    """The accuracy of each thing in each cell, in the episodes with these numbers."""
    found: dict[str, list[list[float]]] = {}
    for n_way, n_shot in track(CELLS, "grid"):
        rows = [of(features.task(n_way, n_shot, number)) for number in numbers]
        for name in rows[0]:
            found.setdefault(name, []).append([100 * row[name] for row in rows])
    return {name: np.array(rows) for name, rows in found.items()}


def accuracies(optimizer: Table, features: Features, numbers: range) -> np.ndarray:
    """Of the heads that an optimizer trains, as in `grid`."""
    return grid(features, numbers, lambda task: {"": task.accuracy(task.query_x @ optimizer(task).T)})[""]


def best_of(kind: type[G], parts: list[Features], features: Features, numbers: range) -> G:
    """The one of several meta-trained with different outer rates that is best in some episodes."""
    tried = []
    for lr in OUTER_RATES:
        torch.manual_seed(0)
        tried.append(kind())
        meta_train(tried[-1], parts, lr)
    return max(tried, key=lambda each: accuracies(each, features, numbers).mean())


def differences(one: np.ndarray, other: np.ndarray) -> str:
    """The paired difference of two means over the grid, with its 95 % interval."""
    each = (one - other).mean(0)
    return f"{each.mean():+.2f} ± {1.96 * each.std(ddof=1) / len(each) ** 0.5:.2f}"


def main() -> None:
    """Print the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--cross-fit", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    kernels.build()
    method, config, _ = checkpoint.load_method(args.run, {"precision": "fp32"})
    sets = data.load(config.data, traits=config.traits)
    with torch.no_grad():
        val = Features(method, sets.splits["meta-val"])
        parts = [] if args.cross_fit else [Features(method, sets.splits["meta-train"])]
    parts = parts or cross_fitted(config, sets, args.cross_fit)
    printed, chosen_by = range(args.episodes), range(1000, 1000 + args.episodes // 2)
    rules = grid(val, printed, fixed)
    shown = {"class means": rules["class means"]}
    shown["best rule for all cells"] = max(rules.values(), key=np.mean)
    shown["best rule for each cell"] = np.stack([max(cell, key=np.mean) for cell in zip(*rules.values(), strict=True)])
    table, lstm = best_of(Table, parts, val, chosen_by), best_of(LSTM, parts, val, chosen_by)
    shown |= {"learned table": accuracies(table, val, printed), "LSTM": accuracies(lstm, val, printed)}
    lstm.trace = [[] for _ in range(STEPS)]
    with torch.no_grad():
        for number in range(META_BATCH * META_STEPS, META_BATCH * META_STEPS + 300):
            lstm(random_task(parts, number))
    lstm.means = [torch.stack(said).mean(0) for said in lstm.trace]
    shown["LSTM, replaced by its means"] = accuracies(lstm, val, printed)
    cells = " | ".join(f"{n_way}w{n_shot}s" for n_way, n_shot in CELLS)
    console.print(f"| | mean | less the LSTM | {cells} |", soft_wrap=True)
    for name, rows in shown.items():
        row = " | ".join(f"{cell:.1f}" for cell in rows.mean(1))
        console.print(f"| {name} | {rows.mean():.2f} | {differences(rows, shown['LSTM'])} | {row} |", soft_wrap=True)


if __name__ == "__main__":
    main()
