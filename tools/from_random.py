"""Compare learned optimizers, meta-trained from random weights, with each other and with tuned fixed rules.

    python tools/from_random.py LSTM RIVAL...

Each is a run folder or checkpoint of `metalstm train --method from-random`. LSTM has `--optimizer layer-lstm`; of those
with the same optimizer and forget gate, the best after 10 steps on meta-val is compared. Fixed rules are tuned on
meta-val for each number of steps. Then meta-test is opened: accuracy of queries and loss of the support set after 5,
10 and 20 steps, from the same random weights for all. Results are kept file by file in `--out`, so that a run that was
stopped goes on, and `--only` computes a part. METALSTM_DATA names the data.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import sqrt
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from metalstm import checkpoint, data, files, kernels, recipes
from metalstm.console import console
from metalstm.episodes import Episode, EpisodeSampler
from metalstm.errors import UserError
from metalstm.methods import GradientMethod, RunConfig
from metalstm.methods.tuning import Curves, curves
from metalstm.optimizers import RULES, InnerOptimizer, LayerLSTM
from metalstm.optimizers.layer_lstm import LayerLSTMState
from metalstm.optimizers.learned_rates import at_step
from metalstm.report import figures

POINTS = 5, 10, 20
AFTER = 1000  # number of the first meta-val episode that is reported; tuning takes those from 0
BY = 10  # steps by which rivals are chosen
DECAYS = 0.0, 0.1
LSTM, MEANS, RULE = "LSTM of layers", "the same, what it says replaced by means", "best fixed rule"


@dataclass(frozen=True)
class Place:
    """Where optimizers are compared."""

    label: str
    n_shot: int = 5
    changes: tuple[tuple[str, Any], ...] = ()  # of settings, beside those of the training
    data: str | None = None  # other than that of the training
    points: tuple[int, ...] = POINTS
    share: float = 1.0  # of the episodes
    rules: bool = True  # whether fixed rules are tuned there


PLACES = {
    "5w5s": Place("5-way 5-shot"),
    "50-steps": Place("5-way 5-shot, 50 steps", points=(10, 50), share=1 / 2, rules=False),
    "5w20s": Place("5-way 20-shot", 20, share=1 / 3),
    "64-filters": Place("64 filters, trained with 32", changes=(("filters", 64),), share=1 / 2, rules=False),
    "omniglot": Place("Omniglot, trained on CIFAR-FS", data="omniglot", rules=False),
}


class Means(LayerLSTM):
    """An LSTM of layers that says the same in each task: for each layer and step, the mean of what another said."""

    table: Float[Tensor, "n_steps n_layers 5"]

    def say(self, seen: Tensor, state: LayerLSTMState) -> tuple[Tensor, Tensor, Tensor]:
        """The row of the step; beyond the table, its last one."""
        return at_step(self.table, state.t), state.h, state.c


class Comparison:
    """All that is computed, each part once, kept as a file in `out`."""

    def __init__(self, lstm: str, rivals: Sequence[str], out: Path, split: str, episodes: int, val_episodes: int):
        self.out, self.split, self.n, self.n_val = out, split, episodes, val_episodes
        self.paths = [lstm, *rivals]
        self.loaded = {path: checkpoint.load_method(path)[:2] for path in self.paths}
        for path, (_, config) in self.loaded.items():
            if config.method != "from-random":
                raise UserError(f"{path} is of {config.method}: pass runs of metalstm train --method from-random")
        if self.loaded[lstm][1].optimizer != "layer-lstm":
            raise UserError(f"{lstm} has --optimizer {self.loaded[lstm][1].optimizer}: pass one of layer-lstm first")
        self.sets = cache(lambda name: data.load(name))

    def kept(self, name: str, compute: Callable[[], Any]) -> Any:
        """What is in a file; computed and written if there is none."""
        if not (file := self.out / f"{name}.json").exists():
            console.print(f"{name} ...")
            files.write(file, (files.to_json(compute()) + "\n").encode())
        return json.loads(file.read_text())

    def method(self, path: str, place: Place, optimizer: InnerOptimizer | None = None) -> GradientMethod:
        """A trained optimizer at another place, or any other in its stead."""
        trained, config = self.loaded[path]
        images = self.images(config, place, "meta-val")
        config = replace(config, image_shape=images.image_shape)
        method = cast(GradientMethod, recipes.build(recipes.with_changes(config, dict(place.changes))))
        method.optimizer.load_state_dict(cast(GradientMethod, trained).optimizer.state_dict())
        return method.with_inner_loop(optimizer, epochs=max(place.points), few_shot_epochs=None, batch_size=None)

    def images(self, config: RunConfig, place: Place, split: str) -> data.ImagesByClass:
        """Of a split of the place's data."""
        return self.sets(place.data or config.data).splits[split]

    def episodes(self, place: Place, split: str) -> Callable[[int], Episode]:
        """By number, as batches of one task."""
        config = self.loaded[self.paths[0]][1]
        return EpisodeSampler(self.images(config, place, split), config.n_way, place.n_shot).__getitem__

    def follow(self, method: GradientMethod, place: Place, split: str, numbers: range, points: Sequence[int]) -> Curves:
        """Accuracy and losses of some episodes."""
        method = method.with_inner_loop(epochs=points[-1])
        return curves(method, self.episodes(place, split), numbers, points, f"{place.label}, {split}")

    def test(self, method: GradientMethod, place: Place, points: Sequence[int]) -> dict[str, Any]:
        """Episode by episode, on the split that is reported."""
        first = 0 if self.split == "meta-test" else AFTER
        numbers = range(first, first + round(self.n * place.share))
        read = self.follow(method, place, self.split, numbers, points)
        rounded = {"accuracy": read.accuracy, "support_loss": read.support_loss}
        return {"split": self.split, "seed": 0, "first": first, "points": list(points)} | {
            name: [[float(f"{value:.5g}") for value in row] for row in values.T.tolist()]
            for name, values in rounded.items()
        }

    def chosen(self) -> dict[str, str]:
        """For each kind of optimizer, the path of the one that is best on meta-val at 5-way 5-shot."""
        place = PLACES["5w5s"]

        def choose() -> dict[str, Any]:
            found: dict[str, Any] = {}
            for path in self.paths:
                config = self.loaded[path][1]
                f = getattr(config.optimizer_settings, "forget_gate", False)
                label = self.loaded[path][0].optimizer.label + (" with f" if f else "")  # pyright: ignore
                label = label.replace("learned rates", "learned rates (LSLR)")
                read = self.follow(self.method(path, place), place, "meta-val", range(self.n_val), (BY,))
                entry = {"path": str(path), "optimizer_lr": config.training.optimizer_lr}
                found.setdefault(label, []).append(entry | {"meta_val": read.accuracy.mean().item()})
            return found

        tried = self.kept("chosen", choose)
        return {label: max(each, key=lambda entry: entry["meta_val"])["path"] for label, each in tried.items()}

    def means(self, path: str) -> Means:
        """An optimizer that says at each step what the LSTM at `path` says on the mean of meta-train tasks."""
        place = replace(PLACES["5w5s"], points=(self.loaded[path][1].settings.epochs,))
        method, episodes = self.method(path, place), self.episodes(place, "meta-train")
        lstm = cast(LayerLSTM, method.optimizer)
        with torch.no_grad():
            said = [
                torch.stack([step.state.said for step in method.trajectory(episodes(number).support)])
                for number in range(50)
            ]
        means = Means(method.learner, lstm.hidden_size, lstm.start_rate)
        means.load_state_dict(lstm.state_dict())
        means.table = torch.cat(said, 1).mean(1)
        return means

    def tuned(self, place_name: str) -> dict[str, Any]:
        """For each fixed rule, what it reaches on meta-val with each rate and decay: accuracy and support loss."""
        place = PLACES[place_name]
        few, many = (max(2, round(n * place.share)) for n in (self.n_val // 2, self.n_val))

        def tune(rule: str) -> list[dict[str, Any]]:
            def follow(rate: float, decay: float, n: int) -> dict[str, Any]:
                method = self.method(self.paths[0], place, RULES[rule](rate, decay))
                read = self.follow(method, place, "meta-val", range(n), place.points)
                means = {"accuracy": read.accuracy, "support_loss": read.support_loss.nan_to_num(99.0)}
                return {"rate": rate, "decay": decay, "episodes": n} | {k: v.mean(0).tolist() for k, v in means.items()}

            def best(found: list[dict[str, Any]]) -> set[float]:
                """The rates that are best at some number of steps, by accuracy or by support loss."""
                return {
                    max(found, key=lambda each: sign * each[by][k])["rate"]
                    for k in range(len(place.points))
                    for by, sign in (("accuracy", 1), ("support_loss", -1))
                }

            found = [follow(10 ** (k / 2), 0.0, few) for k in RULES[rule].half_decades]
            while (edge := {each["rate"] for each in (min(found, key=_rate), max(found, key=_rate))}) & best(found):
                ends = [(min(edge), 10**-0.5), (max(edge), 10**0.5)]
                found += [follow(rate * by, 0.0, few) for rate, by in ends if rate in best(found)]
            return [follow(rate, decay, many) for rate, decay in product(sorted(best(found)), DECAYS)]

        return {rule: self.kept(f"{place_name}-tuned-{rule}", lambda rule=rule: tune(rule)) for rule in RULES}

    def best_rules(self, place_name: str) -> dict[tuple[str, int], dict[str, Any]]:
        """For accuracy and support loss and each number of steps, the rule, rate and decay that is best on meta-val."""
        place, tried = PLACES[place_name], self.tuned(place_name)
        return {
            (by, steps): max(
                ({"rule": rule, **each} for rule, found in tried.items() for each in found),
                key=lambda each: sign * each[by][k],
            )
            for by, sign in (("accuracy", 1), ("support_loss", -1))
            for k, steps in enumerate(place.points)
        }

    def measured(self, place_name: str) -> dict[str, Any]:
        """By optimizer, what was measured at a place; the best fixed rule is another one at each number of steps."""
        place, chosen = PLACES[place_name], self.chosen()
        found = {
            label: self.kept(
                f"{self.split}-{place_name}-{_slug(label)}",
                lambda p=path: self.test(self.method(p, place), place, place.points),
            )
            for label, path in chosen.items()
        }
        if place_name == "5w5s":
            path = chosen[LSTM]
            found[MEANS] = self.kept(
                f"{self.split}-{place_name}-means",
                lambda: self.test(self.method(path, place, self.means(path)), place, place.points),
            )
        if place.rules:
            found[RULE] = {"points": list(place.points), "accuracy": [], "support_loss": [], "which": []}
            for (by, steps), best in self.best_rules(place_name).items():
                rule, rate, decay = best["rule"], best["rate"], best["decay"]

                def test(rule: str = rule, rate: float = rate, decay: float = decay) -> dict[str, Any]:
                    method = self.method(self.paths[0], place, RULES[rule](rate, decay))
                    upto = max(s for (_, s), b in self.best_rules(place_name).items() if _same(b, (rule, rate, decay)))
                    return self.test(method, place, [p for p in place.points if p <= upto])

                of = self.kept(f"{self.split}-{place_name}-rule-{rule}-{rate:.3g}-{decay:g}", test)
                found[RULE][by].append(of[by][of["points"].index(steps)])
                found[RULE]["which"].append(f"{by} after {steps}: {rule}, rate {rate:.3g}, decay {decay:g}")
        return found


def _same(best: dict[str, Any], setting: tuple[str, float, float]) -> bool:
    return (best["rule"], best["rate"], best["decay"]) == setting


def _rate(entry: dict[str, Any]) -> float:
    return entry["rate"]


def _slug(label: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in label.lower()).strip("-")


def difference(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Mean and half of the 95 % interval of paired differences."""
    apart = torch.tensor(one, dtype=torch.double) - torch.tensor(other, dtype=torch.double)
    return apart.mean().item(), 1.96 * apart.std().item() / sqrt(len(apart))


def page(places: dict[str, dict[str, Any]]) -> str:
    """All tables, as Markdown."""
    command = " ".join(["python", *sys.argv])
    lines = ["# From random weights", "", "```", command, "```", ""]
    for name, found in places.items():
        lstm, place = found[LSTM], PLACES[name]
        n = len(lstm["accuracy"][0])
        lines += [
            f"## {place.label}",
            "",
            f"{n} {lstm['split']} episodes. Query accuracy in percent, with its 95 % interval.",
            "",
        ]
        lines += _table(found, "accuracy", "{:.2f} ± {:.2f}")
        lines += ["", "Accuracy of the LSTM of layers minus another's, paired.", ""]
        lines += _table({k: v for k, v in found.items() if k != LSTM}, "accuracy", "{:+.2f} ± {:.2f}", lstm)
        lines += ["", "Loss of the support set in nats.", ""]
        lines += _table(found, "support_loss", "{:.3f} ± {:.3f}")
        if RULE in found:
            lines += ["", "The LSTM of layers, minus the best fixed rule with more steps, paired.", ""]
            lines += ["| steps | accuracy | support loss |", "|---|---|---|"]
            for few, more in [pair for pair in ((5, 10), (10, 20)) if pair[1] in place.points]:
                a, b = (place.points.index(steps) for steps in (few, more))
                cells = [difference(lstm[by][a], found[RULE][by][b]) for by in ("accuracy", "support_loss")]
                words = "{:+.2f} ± {:.2f} | {:+.3f} ± {:.3f}".format(*cells[0], *cells[1])
                lines.append(f"| {few}, rule {more} | {words} |")
            lines += ["", "Chosen on meta-val: " + "; ".join(found[RULE]["which"]) + "."]
        lines.append("")
    return "\n".join(lines)


def _table(found: dict[str, Any], by: str, cell: str, minus: dict[str, Any] | None = None) -> list[str]:
    points = next(iter(found.values()))["points"]
    rows = [f"| | {' | '.join(f'{steps} steps' for steps in points)} |", "|---" * (len(points) + 1) + "|"]
    for label, each in found.items():
        if minus is None:
            cells = [cell.format(*difference(values, [0.0] * len(values))) for values in each[by]]
        else:
            cells = [cell.format(*difference(minus[by][k], values)) for k, values in enumerate(each[by])]
        rows.append(f"| {label} | {' | '.join(cells)} |")
    return rows


def picture(places: dict[str, dict[str, Any]]) -> Figure:
    """Accuracy and support loss against steps, a column for each place."""
    figure = Figure(figsize=(3.2 * len(places), 6), layout="constrained")
    axes = figure.subplots(2, len(places), squeeze=False, sharex="col")
    for column, (name, found) in zip(axes.T, places.items(), strict=True):
        column[0].set_title(PLACES[name].label, fontsize=9)
        for label, each in found.items():
            for row, by in zip(column, ("accuracy", "support_loss"), strict=True):
                means, bars = zip(*(difference(values, [0.0] * len(values)) for values in each[by]), strict=True)
                style = {"color": "black", "linestyle": ":"} if label == RULE else {}
                row.errorbar(each["points"], means, bars, label=label, marker="o", markersize=3, capsize=2, **style)
        for row in column:
            row.set(xscale="log", xticks=PLACES[name].points, xticklabels=PLACES[name].points)
            row.minorticks_off()
            row.grid(alpha=0.3)
        column[1].set(yscale="log", xlabel="inner steps")
    axes[0][0].set_ylabel("query accuracy (%)")
    axes[1][0].set_ylabel("support loss (nats)")
    axes[0][0].legend(fontsize=7)
    return figure


def main() -> None:
    """Compute what is missing, then write README.md and from-random.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lstm", metavar="LSTM")
    parser.add_argument("rivals", metavar="RIVAL", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("results/from-random"))
    parser.add_argument("--split", choices=("meta-val", "meta-test"), default="meta-test", help="that is reported")
    parser.add_argument("--episodes", type=int, default=600, help="that are reported; fewer where steps cost more")
    parser.add_argument("--val-episodes", type=int, default=40, help="of meta-val, for each setting of a rule")
    parser.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES))
    parser.add_argument("--only", choices=("tuned", "measured"), help="compute these parts, write no page")
    args = parser.parse_args()
    torch.set_num_threads(1)
    kernels.build()
    comparison = Comparison(args.lstm, args.rivals, args.out, args.split, args.episodes, args.val_episodes)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.only == "tuned":
        for name in args.places:
            if PLACES[name].rules:
                comparison.tuned(name)
        return
    places: dict[str, Any] = {}
    for name in args.places:
        places[name] = comparison.measured(name)
        if not args.only:
            files.write(args.out / "README.md", page(places).encode())
            figures.save(picture(places), args.out / "from-random.png")
    if args.only:
        return
    for label, path in comparison.chosen().items():
        kept = args.out / "checkpoints" / f"{_slug(label)}.safetensors"
        kept.parent.mkdir(exist_ok=True)
        shutil.copy(checkpoint.find(path), kept)


if __name__ == "__main__":
    main()
