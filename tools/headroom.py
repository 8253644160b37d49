"""How much the choice of the rate can win where a head is trained on the features of a pre-trained network.

    python tools/headroom.py RUN

RUN is a run folder of `metalstm train --method pretrained`. Heads of zeros are trained on features of one length, for
tasks of many ways and shots. For each cell of a grid on meta-val it prints the accuracy of class means, of the best of
many fixed rules and of logistic regressions (chosen by these very episodes: a generous bound for choosing one rate for
the whole head), of one learned table of rates for all cells, of an LSTM that sees loss, gradient and
weights at each step and sets the rates, and of this LSTM with its rates replaced by their means. The table and the LSTM
are meta-trained on tasks of meta-train, of 2 to 20 classes with 1 to 50 images each. METALSTM_DATA names the data.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from metalstm import checkpoint, data, kernels
from metalstm.console import console, track
from metalstm.data import ImagesByClass
from metalstm.episodes import EpisodeSampler
from metalstm.methods import Method

LENGTH = math.sqrt(128)
STEPS = 20
META_STEPS = 1500
WAYS, SHOTS = (2, 3, 5, 7, 10, 13, 16, 20), (1, 2, 3, 5, 10, 20, 35, 50)
CELLS = [(n_way, n_shot) for n_way in (2, 5, 10, 16) for n_shot in (1, 2, 5, 10, 20, 50)]
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
    """The features of all images of a split, and tasks of them by number."""

    def __init__(self, method: Method, images: ImagesByClass):
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


class Rates(nn.Module):
    """Gradient descent with one learned rate for each step."""

    def __init__(self) -> None:
        super().__init__()
        self.log_rates = nn.Parameter(torch.full((STEPS,), math.log(0.1)))

    def log_rate(self, step: int, seen: Tensor) -> Tensor:
        """What the step takes."""
        return self.log_rates[step]

    def forward(self, task: Task) -> Tensor:
        """The head after all steps."""
        weight = task.x.new_zeros(task.n_way, task.x.shape[1])
        for step in range(STEPS):
            loss, grad = gradient(weight, task)
            sizes = [(grad.square().mean() + 1e-12).log() / 6, (weight.square().mean() + 1e-6).log() / 6]
            seen = torch.stack([loss / 2, (loss + 1e-5).log() / 3, *sizes])
            weight = weight - self.log_rate(step, seen).exp() * grad
        return weight


class LSTMRates(Rates):
    """The same table, times what an LSTM sets at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTMCell(4, 16), nn.Linear(16, 1)
        nn.init.zeros_(self.out.weight)
        self.state: tuple[Tensor, Tensor] | None = None
        self.means: list[Tensor] | None = None
        self.trace: list[list[Tensor]] = [[] for _ in range(STEPS)]

    def log_rate(self, step: int, seen: Tensor) -> Tensor:
        """What the step takes, which is kept in `trace`."""
        if self.means is not None:
            return self.means[step]
        h, _ = self.state = self.cell(seen[None], self.state if step else None)
        rate = self.log_rates[step] + self.out(h)[0, 0]
        if not torch.is_grad_enabled():
            self.trace[step].append(rate)
        return rate


def random_task(features: Features, number: int) -> Task:
    """A task of a random number of classes and images."""
    generator = torch.Generator().manual_seed(number)
    n_way, n_shot = (int(each[torch.randint(len(each), (1,), generator=generator)]) for each in (WAYS, SHOTS))
    return features.task(n_way, n_shot, number)


def meta_train(optimizer: Rates, features: Features) -> None:
    """Adam on the query loss of random tasks."""
    outer = torch.optim.Adam(optimizer.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(outer, META_STEPS)
    for number in track(range(META_STEPS), f"meta-training {type(optimizer).__name__}"):
        task = random_task(features, number)
        loss = F.cross_entropy(task.query_x @ optimizer(task).T, task.query_y)
        outer.zero_grad()
        loss.backward()
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


@torch.no_grad()
def grid(features: Features, episodes: int, of: Callable[[Task], dict[str, float]]) -> dict[str, list[float]]:
    """Mean accuracy in percent of each thing in each cell."""
    cells: dict[str, list[float]] = {}
    for n_way, n_shot in track(CELLS, "grid"):
        found = [of(features.task(n_way, n_shot, number)) for number in range(episodes)]
        for name in found[0]:
            cells.setdefault(name, []).append(100 * sum(each[name] for each in found) / episodes)
    return cells


def main() -> None:
    """Print the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--episodes", type=int, default=100)
    args = parser.parse_args()
    kernels.build()
    method, config, _ = checkpoint.load_method(args.run, {"precision": "fp32"})
    splits = data.load(config.data, traits=config.traits).splits
    with torch.no_grad():
        train, val = (Features(method, splits[name]) for name in ("meta-train", "meta-val"))
    rules = grid(val, args.episodes, fixed)
    shown = {"class means": rules["class means"]}
    shown["best rule for all cells"] = max(rules.values(), key=sum)
    shown["best rule for each cell"] = [max(cell) for cell in zip(*rules.values(), strict=True)]
    table, lstm = Rates(), LSTMRates()
    for optimizer, name in ((table, "learned rates"), (lstm, "LSTM")):
        torch.manual_seed(0)
        meta_train(optimizer, train)
        shown |= grid(
            val, args.episodes, lambda task, o=optimizer, n=name: {n: task.accuracy(task.query_x @ o(task).T)}
        )
    lstm.trace = [[] for _ in range(STEPS)]
    with torch.no_grad():
        for number in range(META_STEPS, META_STEPS + 300):
            lstm(random_task(train, number))
    lstm.means = [torch.stack(rates).mean() for rates in lstm.trace]
    shown |= grid(val, args.episodes, lambda task: {"LSTM, mean rates": task.accuracy(task.query_x @ lstm(task).T)})
    console.print("| | mean | " + " | ".join(f"{n_way}w{n_shot}s" for n_way, n_shot in CELLS) + " |", soft_wrap=True)
    for name, cells in shown.items():
        row = " | ".join(f"{cell:.1f}" for cell in cells)
        console.print(f"| {name} | {sum(cells) / len(cells):.2f} | {row} |", soft_wrap=True)


if __name__ == "__main__":
    main()
