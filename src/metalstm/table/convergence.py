"""The paper's first complaint, measured: how fast does an optimizer learn from a few images?"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from metalstm import checkpoint, files, recipes
from metalstm.ablation import ClassMeans, head_alone
from metalstm.evaluation import Accuracy, evaluate, plain
from metalstm.methods import METHODS, GradientMethod, Method, RunConfig, Tuning
from metalstm.methods.tuning import Choice, curves, tune_rule
from metalstm.optimizers import OPTIMIZERS, RULES
from metalstm.table.plan import Table
from metalstm.table.rows import Cell, TableRow, rows_of
from metalstm.training import record

FEW, MANY = 10, 30  # meta-val episodes of the two rounds in which a rule is tuned for a start
EPISODES = 100  # of meta-test, which the curves are means of
STARTS = {"random": "random weights", "pretrained": "pre-trained weights", "theta_0": "the learned theta_0"}
HEAD_ONLY, CLASS_MEANS = "sgd-head-only", "class-means"
LABELS = {
    **{name: optimizer.label for name, optimizer in OPTIMIZERS.items()},
    HEAD_ONLY: "SGD of the head alone",
    CLASS_MEANS: ClassMeans.label,
}


@dataclass(frozen=True)
class Learned:
    """A trained method whose inner optimizer is learned, as it was tested."""

    method: GradientMethod
    config: RunConfig
    cell: Cell


def learned_row(table: Table) -> TableRow | None:
    """The row whose learned inner optimizer is compared with others and taken apart, if the table has one.

    It is the first that is trained from several seeds, so that we know how much its trainings differ.
    """
    for row in rows_of(table.main_task):
        recipe = recipes.named(row.method, row.recipe, table.meta_sets.traits, table.main_task.n_shot)
        is_learned = recipe.optimizer not in ("", *RULES)
        if row.seeds and is_learned and issubclass(METHODS[row.method], GradientMethod):
            return row
    return None


def learned(table: Table) -> Learned | None:
    """What was tested for `learned_row`; None if it was not made yet."""
    row = learned_row(table)
    if row is None or not table.checkpoint(cell := Cell(row, table.main_task)).exists():
        return None
    method, config, _ = checkpoint.load_method(table.checkpoint(cell))
    return Learned(cast(GradientMethod, method.to(table.device)), config, cell)  # its optimizer has gates


def path(table: Table, name: str) -> Path:
    """A file of the comparison."""
    return table.out / "convergence" / f"{name}-{table.main_task}.json"


def kept(file: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is in a file; computed and written if there is none."""
    if not file.exists():
        files.write(file, (files.to_json(compute()) + "\n").encode())
    return json.loads(file.read_text())


def convergence(table: Table, learned: Learned) -> dict[str, Any]:
    """Losses and accuracy against inner steps, for every optimizer from each start.

    All rivals train the same learner from the same starts. Fixed rules are tuned on meta-val for each start, on the
    layers that the learned optimizer moves; if these are all layers, SGD on the head alone as well, since the learned
    one has a rate for each. The learned optimizer was trained for its own number of steps, and is drawn beyond it.

    Returns:
        `points`, the inner steps that are drawn; `episodes`; and for each start and optimizer, the learned one first,
        its `curves` (means), `choice`, and at its best step the query `accuracy`, `ci95` and `per_episode`.
    """
    episodes = min(EPISODES, table.budget.test_episodes)
    read_at = table.budget.search.read_at
    steps = learned.method.settings.epochs
    points = sorted({0, *read_at, steps})
    result: dict[str, Any] = {}
    for start, method in starts(table, learned).items():
        longest = method.with_inner_loop(epochs=points[-1], few_shot_epochs=None, batch_size=None)
        rivals: dict[str, Callable[[], dict[str, Any]]] = {
            learned.config.optimizer: lambda longest=longest: _followed(table, longest, points, steps, episodes),
            **{
                rule: lambda rule=rule, longest=longest: _tuned(table, longest, rule, points, episodes)
                for rule in RULES
            },
        }
        if method.settings.moves == "all":
            rivals[HEAD_ONLY] = lambda longest=longest: _tuned(table, head_alone(longest), "sgd", points, episodes)
        rivals[CLASS_MEANS] = lambda method=method: _without_steps(table, ClassMeans(method), episodes)
        result[start] = {
            name: kept(
                path(table, f"{start}-{name}"),
                lambda name=name, follow=follow, start=start: noted(table, f"convergence: {start}-{name}", follow()),
            )
            for name, follow in rivals.items()
        }
    return {"points": points, "episodes": episodes, "starts": result}


def starts(table: Table, learned: Learned) -> dict[str, GradientMethod]:
    """The trained method from other starts; its learner and its learned optimizer are the same in all.

    `random` weights, unless the head alone moves; the `pretrained` network that its training started from, where it
    did; its own `theta_0`. Only the last one separates the learned optimizer from the learned start.
    """
    own = at_random(learned)
    if learned.config.training.pretrain:
        network = checkpoint.load_method(table.trainings(learned.cell)[0].folder)[0].to(table.device).network()
        method = _fresh(learned)
        method.start_from(network)
        own["pretrained"] = method
    return {**own, "theta_0": learned.method}


def at_random(learned: Learned) -> dict[str, GradientMethod]:
    """The method with the weights that its training drew, before pre-training and meta-training, as `random`.

    There is none if the head alone moves: a head on the features of random weights learns next to nothing.
    """
    method = _fresh(learned)
    if method.settings.moves == "head":
        return {}
    if method.settings.keep_moments:  # those of the pre-training mean nothing to random weights
        method = method.with_inner_loop(keep_moments=False, query_norm="support")
    return {"random": method}


def _fresh(learned: Learned) -> GradientMethod:
    """The method as before its training, but with its learned optimizer."""
    fresh = cast(GradientMethod, recipes.build(learned.config)).to(learned.method.body_0.device).eval()
    return fresh.with_inner_loop(optimizer=learned.method.optimizer)


def tuned(table: Table, rule: str, method: GradientMethod, description: str) -> Choice:
    """Settings of a rule for a start, chosen on meta-val; the search is shorter than that of the table's rows."""
    search = table.budget.search
    search = replace(search, few=min(FEW, search.few), many=min(MANY, search.many))
    sampler = table.episodes("meta-val", table.main_task)
    return tune_rule(rule, method, Tuning(sampler.__getitem__, search, lambda _, compute: compute(), description))


def _tuned(table: Table, method: GradientMethod, rule: str, points: Sequence[int], episodes: int) -> dict[str, Any]:
    choice = tuned(table, rule, method, f"convergence, {table.main_task}")
    rival = method.with_inner_loop(optimizer=RULES[rule](choice.rate, choice.decay))
    return {**_followed(table, rival, points, choice.steps, episodes), "choice": asdict(choice)}


def _followed(table: Table, method: GradientMethod, points: Sequence[int], steps: int, episodes: int) -> dict[str, Any]:
    """The curves of a method on meta-test, and its accuracy after so many steps."""
    sampler = table.episodes("meta-test", table.main_task)
    read = curves(method, sampler.__getitem__, range(episodes), points, "convergence on meta-test")
    return {
        "choice": None,
        "steps": steps,
        **plain(Accuracy(read.accuracy[:, points.index(steps)].tolist())),
        "curves": {key: values.mean(0).tolist() for key, values in read._asdict().items()},
    }


def _without_steps(table: Table, method: Method, episodes: int) -> dict[str, Any]:
    sampler = table.episodes("meta-test", table.main_task)
    return {"choice": None, "steps": 0, **plain(evaluate(method, sampler, episodes)), "curves": None}


def noted(table: Table, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """What `plain` gave on meta-test, whose opening `run.json` of the table then has under a name."""
    task = {**asdict(table.main_task), "split": "meta-test", "seed": table.seed, "episodes": len(values["per_episode"])}
    record.opening(table.out, values | task, row=f"{name}-{table.main_task}")
    return values


def best_rule(entries: Mapping[str, Any], names: Sequence[str]) -> tuple[str, Choice]:
    """Of some rivals of one start, the one that is best on meta-val."""
    choices = {name: Choice(**entries[name]["choice"]) for name in names}
    best = max(choices, key=lambda name: choices[name].meta_val)
    return best, choices[best]
