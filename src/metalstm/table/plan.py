"""What a table is made of, with how much work, and where each part lies."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metalstm import recipes
from metalstm.data import MetaSets
from metalstm.episodes import EpisodeSampler, Task
from metalstm.errors import UserError
from metalstm.evaluation import EPISODES
from metalstm.learners import LEARNERS
from metalstm.methods import RunConfig, Search
from metalstm.settings import Precision
from metalstm.table.rows import Cell, named

PATIENCE = 10  # validations without gain that end a training


@dataclass(frozen=True)
class Budget:
    """How much work goes into a table."""

    train_episodes: int | None = None  # at the most; the recipe's own by default
    train_minutes: float | None = None  # at the most, of each training
    val_every: int | None = None
    val_episodes: int | None = None
    search: Search = Search()
    test_episodes: int = EPISODES


QUICK = Budget(
    train_episodes=200,
    val_every=100,
    val_episodes=20,
    search=Search(few=3, many=8, read_at=(1, 4, 10)),
    test_episodes=50,
)


@dataclass(frozen=True)
class Training:
    """A run that a cell needs."""

    folder: Path
    config: RunConfig


@dataclass(frozen=True)
class Table:
    """A table, finished or not. Parts that are in its folder are not made again.

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

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The columns."""
        mixed = (Task(n_way, n_shot) for n_way, n_shot in self.meta_sets.tasks)
        within = (Task(n_way, n_shot, within_group=True) for n_way, n_shot in self.meta_sets.group_tasks)
        return (*mixed, *within)

    @property
    def hardest_task(self) -> Task:
        """The column that pre-trainings are chosen by, because an easy one does not tell networks apart.

        It has the most classes, from one group where there is such a column; then the most shots, for least noise.
        """
        return max(self.tasks, key=lambda task: (task.n_way, task.within_group, task.n_shot))

    @property
    def main_task(self) -> Task:
        """The column that optimizers are compared in, and parts of the Meta-LSTM.

        It is 5-way 5-shot, or the data set's last task where it has no such task.
        """
        usual = Task(5, 5)
        return usual if usual in self.tasks else self.tasks[-1]

    def result(self, cell: Cell) -> Path:
        """The file of a result."""
        return self.out / "rows" / f"{cell}.json"

    def checkpoint(self, cell: Cell) -> Path:
        """The file of what is tested."""
        return self.out / "checkpoints" / f"{cell}.safetensors"

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """A result, if it exists.

        Raises:
            UserError: It is of another table: other data, another seed, other or fewer episodes.
        """
        path = self.result(cell)
        if not path.exists():
            return None
        result = json.loads(path.read_text())
        mine = {"data": self.meta_sets.name, "episodes": self.budget.test_episodes, "seed": self.seed}
        if "data_digest" in result:  # results of before do not name it
            mine["data_digest"] = self.meta_sets.digest
        if different := {key: result[key] for key, value in mine.items() if result[key] != value}:
            asked = ", ".join(f"{key} {mine[key]}" for key in different)
            raise UserError(
                f"{path} was made with {', '.join(f'{key} {value}' for key, value in different.items())}, but this "
                f"table has {asked}: pass another --out"
            )
        return result

    def trainings(self, cell: Cell) -> list[Training]:
        """The runs that a cell needs, in order: the pre-training that it starts from, if any, then its own.

        Rows share pre-trainings: one serves all tasks and all rows of a recipe, a network and a seed.
        """
        config = self._config(cell)
        start = recipes.pretraining(config)
        if config.method == start.method:  # the row is a pre-training itself
            return [self._pretraining(config, cell.seed)]
        own = Training(self.out / "runs" / str(cell), self._within_budget(config, PATIENCE))
        if not own.config.training.pretrain:
            return [own]
        return [self._pretraining(start, cell.seed), own]

    def episodes(self, split: str, task: Task) -> EpisodeSampler:
        """Episodes of a split; the same for every row."""
        images, within_group = self.meta_sets.splits[split], task.within_group
        return EpisodeSampler(
            images, task.n_way, task.n_shot, seed=self.seed, device=self.device, within_group=within_group
        )

    def _config(self, cell: Cell) -> RunConfig:
        """A row's recipe with the row's changes."""
        row, task, seed = cell.row, cell.task, self.seed if cell.seed is None else cell.seed
        recipe = recipes.named(row.method, row.recipe, self.meta_sets.traits, task.n_shot)
        config = recipes.run_config(self.meta_sets, recipe, row.method, row.recipe, task.n_way, task.n_shot, seed=seed)
        own = {"precision": self.precision, "within_group": task.within_group}
        return recipes.with_changes(config, {**own, **row.changes})

    def _pretraining(self, config: RunConfig, seed: int | None) -> Training:
        """A shared pre-training. It has no patience: its accuracy on meta-val is soon flat, and still it gains."""
        task = self.hardest_task
        config = replace(config, n_way=task.n_way, n_shot=task.n_shot)
        config = recipes.with_changes(config, {"within_group": task.within_group})
        tag = LEARNERS[config.learner].tag(config.learner_settings)
        folder = self.out / "runs" / named(f"start-{config.recipe}-{tag}", task, seed)
        return Training(folder, self._within_budget(config, config.training.patience))

    def _within_budget(self, config: RunConfig, patience: int | None) -> RunConfig:
        budget, training = self.budget, config.training
        if budget.train_episodes is not None:
            training = replace(
                training,
                episodes=min(training.episodes, budget.train_episodes),
                pretrain=min(training.pretrain, budget.train_episodes),
            )
        training = replace(
            training,
            minutes=budget.train_minutes,
            val_every=budget.val_every or training.val_every,
            val_episodes=budget.val_episodes or training.val_episodes,
            patience=patience,
        )
        return replace(config, training=training)
