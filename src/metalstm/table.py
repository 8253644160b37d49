"""Table 1: every row trained, tuned on meta-val, and tested on the same meta-test episodes."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from metalstm import checkpoint, recipes
from metalstm.console import console
from metalstm.datasets import MetaSets
from metalstm.episodes import Episode, EpisodeSampler
from metalstm.errors import UserError, unknown
from metalstm.evaluation import EPISODES, allow_tf32, evaluate, evaluate_checkpoint, measured
from metalstm.methods import GradientMethod, HeadOnly, Method, PixelNearestNeighbor, Pretrained, build
from metalstm.optimizers import InnerOptimizer
from metalstm.recipes import FinetuneSettings, Precision, RunConfig
from metalstm.training import run_config, start_from, step_seconds, train
from metalstm.tuning import FEW, MANY, READ_AT, Choice, tune

PATIENCE = 10  # validations without gain that end a training


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: Of its files, and for `--only`.
        label: What a reader sees.
        method: What is trained for it; "pixels" needs nothing.
        recipe: Of that training.
        rules: What fine-tunes; the best on meta-val is taken.
        head_only: Whether fine-tuning leaves all but the head as it was.
        filters: Of the learner; None for the recipe's own.
        paper: The paper's figure and its interval at 1 and at 5 shots, for mini-ImageNet.
    """

    name: str
    label: str
    method: str
    recipe: str = "best"
    rules: tuple[str, ...] = ()
    head_only: bool = False
    filters: int | None = None
    paper: tuple[tuple[float, float], ...] = ()


_FINETUNE = ((28.86, 0.54), (49.79, 0.79))
ROWS = (
    Row("finetune-sgd", "Fine-tuning, SGD", "pretrained", rules=("sgd",), paper=_FINETUNE),
    Row("finetune-momentum", "Fine-tuning, momentum", "pretrained", rules=("momentum",)),
    Row("finetune-adagrad", "Fine-tuning, Adagrad", "pretrained", rules=("adagrad",)),
    Row("finetune-adadelta", "Fine-tuning, Adadelta", "pretrained", rules=("adadelta",)),
    Row("finetune-adam", "Fine-tuning, Adam", "pretrained", rules=("adam",)),
    Row("finetune-head", "Fine-tuning, head only", "pretrained", rules=recipes.RULES, head_only=True),
    Row("nearest-neighbor-pixels", "Nearest neighbour, pixels", "pixels"),
    Row("nearest-neighbor", "Nearest neighbour", "pretrained", paper=((41.08, 0.70), (51.04, 0.65))),
    Row("matching-net", "Matching Network", "matching-net", paper=((43.40, 0.78), (51.09, 0.71))),
    Row("matching-net-fce", "Matching Network FCE", "matching-net-fce", paper=((43.56, 0.84), (55.31, 0.73))),
    Row("meta-lstm-paper", "Meta-LSTM, paper", "meta-lstm", "paper", paper=((43.44, 0.77), (60.60, 0.71))),
    Row("meta-lstm", "Meta-LSTM, best", "meta-lstm"),
    Row("meta-lstm-64", "Meta-LSTM, best, 64 filters", "meta-lstm", filters=64),
)
AT_20_WAY = ("nearest-neighbor", "matching-net", "meta-lstm")  # rows of the tasks of 20 classes


@dataclass(frozen=True)
class Task:
    """A column of the table."""

    n_way: int
    n_shot: int

    def __str__(self) -> str:
        return f"{self.n_way}w{self.n_shot}s"


@dataclass(frozen=True)
class Budget:
    """How much work goes into a table."""

    train_episodes: int | None = None  # at the most; the recipe's own by default
    train_minutes: float | None = None  # at the most, of each training
    val_every: int | None = None
    val_episodes: int | None = None
    few: int = FEW
    many: int = MANY
    read_at: tuple[int, ...] = READ_AT
    test_episodes: int = EPISODES


PRETRAINING = Task(5, 5)  # one for all: it has no shots, but for its validation
QUICK = Budget(train_episodes=200, val_every=100, val_episodes=20, few=3, many=8, read_at=(1, 4, 10), test_episodes=50)


def tasks(data: str) -> tuple[Task, ...]:
    """The columns of a data set's table."""
    return (Task(5, 1), Task(5, 5), *([Task(20, 1)] if data == "omniglot" else []))


def rows(task: Task) -> list[Row]:
    """The lines of a column."""
    return [row for row in ROWS if task.n_way == 5 or row.name in AT_20_WAY]


@dataclass(frozen=True)
class Table:
    """A table in the making; what is in its folder already is not made again.

    Attributes:
        meta_sets: The data.
        out: Folder of the table: `runs/` with a run folder each, `checkpoints/` with what is tested, `rows/` with the
            results.
        budget: How much work goes into it.
        seed: Of weights and episodes.
        device: Where to compute.
        precision: Of training and tuning; tests are in fp32.
    """

    meta_sets: MetaSets
    out: Path
    budget: Budget = Budget()
    seed: int = 0
    device: str = "cpu"
    precision: Precision = "fp32"

    def make(self, row: Row, task: Task, seed: int | None = None) -> dict[str, Any]:
        """Train, tune and test a row at a task, as far as that is still to do; gives its result.

        Args:
            row: The line.
            task: The column.
            seed: Of another training than the table's own; the test episodes stay the same.
        """
        path = self.result(row, task, seed)
        name = path.stem
        if there := self.read(path):
            return there
        started = time.monotonic()
        if row.method == "pixels":
            result: dict[str, Any] = self._test_pixels(task)
        else:
            run = self.train(row, task, seed)
            file = self.checkpoint(row, task, seed)
            facts = self._choose(row, task, run, file)
            facts["train_seconds"] = sum(_last_line(part)["seconds"] for part, _ in self.trainings(row, task, seed))
            console.print(f"{name}: chosen on meta-val: {facts['chosen']}; now meta-test is opened", soft_wrap=True)
            result = evaluate_checkpoint(
                file,
                self.meta_sets,
                "meta-test",
                task.n_way,
                task.n_shot,
                episodes=self.budget.test_episodes,
                seed=self.seed,
                device=self.device,
            )
            result |= facts
        result |= {"row": row.name, "label": row.label, "made_in_seconds": time.monotonic() - started}
        checkpoint.write(path, (json.dumps(result) + "\n").encode())
        console.print(f"{name}: {result['accuracy']:.2f} +- {result['ci95']:.2f} %", soft_wrap=True)
        return result

    def result(self, row: Row, task: Task, seed: int | None = None) -> Path:
        """The file of a result."""
        return self.out / "rows" / f"{_named(row.name, task, seed)}.json"

    def checkpoint(self, row: Row, task: Task, seed: int | None = None) -> Path:
        """The file of what is tested."""
        return self.out / "checkpoints" / f"{_named(row.name, task, seed)}.safetensors"

    def read(self, path: Path) -> dict[str, Any] | None:
        """A result, if it is there.

        Raises:
            UserError: It is of another table: other data, other or fewer episodes.
        """
        if not path.exists():
            return None
        result = json.loads(path.read_text())
        mine = {"data": self.meta_sets.name, "episodes": self.budget.test_episodes, "seed": self.seed}
        if different := {key: result[key] for key, value in mine.items() if result[key] != value}:
            asked = ", ".join(f"{key} {mine[key]}" for key in different)
            raise UserError(
                f"{path} was made with {', '.join(f'{key} {value}' for key, value in different.items())}, but this "
                f"table is of {asked}: pass another --out"
            )
        return result

    def seconds(self, run: Path, config: RunConfig) -> float:
        """How long a training will take at the most, by a step of it and what its run has done already."""
        done = _last_line(run)["episode"] if (run / "metrics.jsonl").exists() else 0
        left = step_seconds(config, self.meta_sets, self.device) * max(0, config.training.episodes - done)
        minutes = config.training.minutes
        return left if minutes is None else min(left, 60 * minutes)

    def train(self, row: Row, task: Task, seed: int | None = None) -> Path:
        """The run folder of a row, which is trained, or gone on with, if that has not ended yet."""
        allow_tf32(self.precision)
        out = None
        for out_of_next, config in self.trainings(row, task, seed):
            train(config, self.meta_sets, out_of_next, resume=True, device=self.device, pretrained=out)
            out = out_of_next
        assert out is not None
        return out

    def trainings(self, row: Row, task: Task, seed: int | None = None) -> list[tuple[Path, RunConfig]]:
        """Run folders and configurations of what a row needs: perhaps a pre-training, then its own training."""
        if row.method == "pixels":
            return []
        config = self.config(row, task, self.seed if seed is None else seed)
        if not config.training.pretrain:
            return [(self.run(row, task, seed), config)]
        start = Row("", "", "pretrained", row.recipe, filters=config.settings.filters)
        return [*self.trainings(start, PRETRAINING, seed), (self.run(row, task, seed), config)]

    def run(self, row: Row, task: Task, seed: int | None = None) -> Path:
        """The run folder of a training; that of a pre-training serves all rows and tasks of its seed."""
        if row.method == "pretrained":
            filters = self.config(row, PRETRAINING, self.seed).settings.filters
            return self.out / "runs" / _named(f"start-{row.recipe}-{filters}f", PRETRAINING, seed)
        name = f"{row.method}-{row.recipe}" + (f"-{row.filters}f" if row.filters else "")
        return self.out / "runs" / _named(name, task, seed)

    def config(self, row: Row, task: Task, seed: int) -> RunConfig:
        """Of a training: its recipe within the budget."""
        task = PRETRAINING if row.method == "pretrained" else task
        settings, training = recipes.named(row.method, row.recipe, self.meta_sets.name, task.n_shot)
        settings = replace(settings, precision=self.precision, filters=row.filters or settings.filters)
        budget = self.budget
        if budget.train_episodes is not None:
            training = replace(training, episodes=min(training.episodes, budget.train_episodes))
            training = replace(training, pretrain=min(training.pretrain, budget.train_episodes))
        training = replace(
            training,
            minutes=budget.train_minutes,
            val_every=budget.val_every or training.val_every,
            val_episodes=budget.val_episodes or training.val_episodes,
            patience=None if row.method == "pretrained" else PATIENCE,  # whose measure on meta-val is soon flat
        )
        return run_config(
            self.meta_sets, settings, training, row.method, row.recipe, task.n_way, task.n_shot, seed=seed
        )

    def episodes(self, split: str, task: Task) -> EpisodeSampler:
        """Episodes of a split; the same for every row."""
        return EpisodeSampler(self.meta_sets.splits[split], task.n_way, task.n_shot, seed=self.seed, device=self.device)

    def _choose(self, row: Row, task: Task, run: Path, file: Path) -> dict[str, Any]:
        """Write the checkpoint that is to be tested, and tell how it was chosen."""
        method, config, meta = checkpoint.load_method(run)
        last = _last_line(run)
        facts: dict[str, Any] = {"train_episodes": last["episode"], "train_precision": self.precision}
        if row.rules:
            assert isinstance(method, Pretrained)
            choice = self.tune_finetuning(row, task, config, method)
            method, config = finetuned(config, method, choice, row.head_only, task)
            chosen: dict[str, Any] = asdict(choice)
        else:
            chosen = {"meta_val": meta["meta_val"], "episode": meta["episode"]}
        facts["parameters"] = sum(parameter.numel() for parameter in method.parameters())
        config = replace(config, settings=replace(config.settings, precision="fp32"))
        tensors = {f"method.{name}": tensor for name, tensor in method.state_dict().items()}
        checkpoint.save(file, tensors, {"config": config.to_dict(), **chosen})
        return facts | {"chosen": chosen}

    def tune_finetuning(self, row: Row, task: Task, config: RunConfig, pretrained: Pretrained) -> Choice:
        """The rule of a row with the settings that are best on meta-val; kept, as it takes long."""
        choices = []
        for rule in row.rules:
            path = self.out / "choices" / f"{row.name}-{rule}-{task}.json"
            if not path.exists():
                method = self.untuned(task, config, pretrained, row.head_only)
                choice = self.tune(rule, method, task, f"{row.name}-{task}: {rule}")
                checkpoint.write(path, (json.dumps(asdict(choice)) + "\n").encode())
            choices.append(Choice(**json.loads(path.read_text())))
        return max(choices, key=lambda choice: choice.meta_val)

    def untuned(
        self, task: Task, config: RunConfig, pretrained: Pretrained, head_only: bool = False
    ) -> GradientMethod | HeadOnly:
        """Fine-tuning for as many steps as are read, by no rule yet."""
        none = Choice("sgd", 0.0, 0.0, self.budget.read_at[-1], 0.0, 0)
        return finetuned(config, pretrained, none, head_only, task)[0].to(self.device).eval()

    def tune(self, rule: str, method: Method, task: Task, description: str) -> Choice:
        """Settings of a rule on meta-val, for a method whose own optimiser is of no account."""
        allow_tf32(self.precision)
        sampler = self.episodes("meta-val", task)
        episodes: Callable[[int], Episode] = sampler.__getitem__
        if isinstance(method, HeadOnly):
            episodes = cache(lambda k, whole=method: whole.embedded(sampler[k]))
            method = method.head
        assert isinstance(method, GradientMethod)
        start = method

        def with_rule(optimizer: InnerOptimizer) -> GradientMethod:
            start.optimizer = optimizer
            return start

        return tune(rule, with_rule, episodes, description, self.budget.few, self.budget.many, self.budget.read_at)

    def _test_pixels(self, task: Task) -> dict[str, Any]:
        """Nearest neighbour in pixels, which has no checkpoint."""
        sampler = self.episodes("meta-test", task)
        accuracy = evaluate(PixelNearestNeighbor(), sampler, self.budget.test_episodes, "pixels on meta-test")
        result = measured("pixels", self.meta_sets.name, "meta-test", sampler, accuracy)
        return result | {
            "transductive": False,
            "train_seconds": 0.0,
            "train_episodes": 0,
            "train_precision": "fp32",
            "parameters": 0,
            "chosen": {},
        }


def finetuned(
    config: RunConfig, pretrained: Pretrained, choice: Choice, head_only: bool, task: Task
) -> tuple[GradientMethod | HeadOnly, RunConfig[FinetuneSettings]]:
    """A pre-trained network with a new head and a rule that trains it on a support set.

    Args:
        config: Of the pre-training.
        pretrained: The network.
        choice: The rule and its settings.
        head_only: Whether the rest stays as it is.
        task: How many classes.
    """
    own = config.settings
    settings = FinetuneSettings(
        rule=choice.rule,
        lr=choice.lr,
        decay=choice.decay,
        steps=choice.steps,
        head_only=head_only,
        filters=own.filters,
        conv_bias=own.conv_bias,
        unit_gamma=own.unit_gamma,
        mirror=own.mirror,
        precision=own.precision,
    )
    config = replace(config, method="finetune", settings=settings, n_way=task.n_way, n_shot=task.n_shot)
    method = build(config)
    assert isinstance(method, (GradientMethod, HeadOnly))
    start_from(method, pretrained)
    return method, config


def _named(name: str, task: Task, seed: int | None) -> str:
    return f"{name}-{task}" + (f"-seed{seed}" if seed is not None else "")


def select(only: str | None) -> tuple[Row, ...]:
    """The row of a name, or all.

    Raises:
        UserError: There is no such row.
    """
    chosen = tuple(row for row in ROWS if only is None or row.name == only)
    if not chosen:
        raise unknown("row", str(only), [row.name for row in ROWS])
    return chosen


def make(table: Table, chosen: Sequence[Row], seeds: Sequence[int]) -> None:
    """Make all results of some rows, saying how far it is.

    Args:
        table: Where.
        chosen: Which rows.
        seeds: Of further trainings of the Meta-LSTM's best row at 5 shots.
    """
    jobs: list[tuple[Row, Task, int | None]] = [
        (row, task, None) for task in tasks(table.meta_sets.name) for row in chosen if row in rows(task)
    ]
    jobs += [(row, Task(5, 5), seed) for seed in seeds for row in chosen if row.name == "meta-lstm"]
    missing = [job for job in jobs if table.read(table.result(*job)) is None]
    needed = {job: dict(table.trainings(*job)) for job in missing}
    left: dict[Path, float] = {}  # seconds of each training, which several rows may share
    for runs in needed.values():
        left |= {run: table.seconds(run, config) for run, config in runs.items() if run not in left}
    for number, job in enumerate(missing):
        hours = _hours(sum(left.values()))
        name = table.result(*job).stem
        console.print(f"[{number + 1}/{len(missing)}] {name}; at most {hours} of training to go", soft_wrap=True)
        table.make(*job)
        for run in needed[job]:
            left.pop(run, None)


def _last_line(run: Path) -> dict[str, Any]:
    """Of a run's metrics."""
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes"
