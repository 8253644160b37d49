"""Which runs a cell needs, and where everything lies."""

import json
from dataclasses import replace

import pytest

from metalstm import recipes
from metalstm.data import DATASETS
from metalstm.errors import UserError
from metalstm.learners import LEARNERS
from metalstm.table import ROWS, Budget, Cell, Table, Task, select
from metalstm.table.plan import PATIENCE

FIVE, ONE = Task(5, 5), Task(5, 1)


def row(name):
    (found,) = select(name)
    return found


def folders(table, name, task, seed=None):
    return [training.folder.name for training in table.trainings(Cell(row(name), task, seed))]


def test_columns_are_those_of_the_data(small_sets, tmp_path):
    assert Table(small_sets, tmp_path).tasks == (ONE, FIVE)
    other = replace(small_sets, tasks=((5, 1), (3, 2)))
    assert Table(other, tmp_path).tasks == (ONE, Task(3, 2))
    assert (Table(small_sets, tmp_path).main_task, Table(other, tmp_path).main_task) == (FIVE, Task(3, 2))


def test_columns_within_a_group(small_sets, tmp_path):
    sets = replace(small_sets, tasks=((5, 1), (5, 5), (3, 1)), group_tasks=((5, 1), (2, 1)))
    table = Table(sets, tmp_path)
    within = Task(5, 1, within_group=True)
    assert table.tasks == (ONE, FIVE, Task(3, 1), within, Task(2, 1, within_group=True))
    assert (str(within), within.words) == ("5w1s-within", "5-way 1-shot within a group")
    _, own = table.trainings(Cell(row("matching-net"), within))
    assert own.folder.name == "matching-net-5w1s-within"
    assert own.config.training.within_group
    assert not table.trainings(Cell(row("matching-net"), ONE))[-1].config.training.within_group


def test_pretrainings_are_chosen_by_the_hardest_column(small_sets, tmp_path):
    for tasks, group_tasks, hardest in (
        (((5, 1), (5, 5)), (), FIVE),
        (((5, 1), (5, 5), (20, 1)), (), Task(20, 1)),
        (((5, 5), (20, 1), (20, 5)), ((20, 1), (5, 5)), Task(20, 1, within_group=True)),
    ):
        table = Table(replace(small_sets, tasks=tasks, group_tasks=group_tasks), tmp_path)
        assert table.hardest_task == hardest
        start = table.trainings(Cell(row("matching-net"), ONE))[0]
        assert start.folder.name == f"start-best-64f-average-{hardest}"
        chosen_by = start.config.n_way, start.config.n_shot, start.config.training.within_group
        assert Task(*chosen_by) == hardest
        assert not table.main_task.within_group


def test_columns_of_the_data_sets():
    five = ((5, 1), (5, 5))
    columns = {name: dataset.tasks for name, dataset in DATASETS.items()}
    assert columns == {**dict.fromkeys(DATASETS, five), "omniglot": (*five, (20, 1), (20, 5))}


def test_rows_of_one_network_share_a_pretraining_at_all_tasks(small_table):
    for name in ("finetune-sgd", "finetune-head", "matching-net", "matching-net-fce", "meta-lstm"):
        for task in (ONE, FIVE):
            assert folders(small_table, name, task) == ["start-best-64f-average-5w5s", f"{name}-{task}"]
    assert folders(small_table, "meta-lstm", FIVE, 3) == ["start-best-64f-average-5w5s-seed3", "meta-lstm-5w5s-seed3"]


def test_nearest_neighbor_is_the_pretraining_itself(small_table):
    for task in (ONE, FIVE):
        assert folders(small_table, "nearest-neighbor", task) == ["start-best-64f-average-5w5s"]


def test_a_row_without_pretraining_has_one_run(small_table):
    assert folders(small_table, "meta-lstm-paper", ONE) == ["meta-lstm-paper-5w1s"]
    assert folders(small_table, "nearest-neighbor-pixels", FIVE) == ["nearest-neighbor-pixels-5w5s"]


@pytest.mark.parametrize("budget", [Budget(), Budget(train_episodes=4, train_minutes=0.1, val_every=2, val_episodes=3)])
def test_shared_folders_are_asked_for_the_same_run(small_table, budget):
    """Otherwise the second row would find another run in the folder. Its length is the same, too."""
    table = replace(small_table, budget=budget, precision="bf16")
    runs = {}
    for each in ROWS:
        for task in (ONE, FIVE):
            for training in table.trainings(Cell(each, task)):
                first = runs.setdefault(training.folder, training.config)
                assert recipes.differences(first, training.config) == ""
                assert first.training == training.config.training
    assert len([folder for folder in runs if folder.name.startswith("start-")]) == 1


@pytest.mark.parametrize("each", ROWS, ids=lambda row: row.name)
def test_a_run_is_the_rows_recipe_within_the_budget(small_table, each):
    table = replace(small_table, budget=Budget(train_episodes=7, train_minutes=0.5, val_every=3, val_episodes=6))
    recipe = recipes.named(each.method, each.recipe, table.meta_sets.traits, 5)
    for training in table.trainings(Cell(each, FIVE, 2)):
        settings = training.config.training
        assert (settings.minutes, settings.val_every, settings.val_episodes) == (0.5, 3, 6)
        assert settings.episodes <= 7
        assert settings.pretrain <= 7
        assert training.config.seed == 2
    own = table.trainings(Cell(each, FIVE))[-1].config
    assert own.training.lr == recipe.training.lr
    assert own.training.episodes == min(7, recipe.training.episodes)
    assert recipes.with_changes(own, dict(each.changes)) == own


def test_pretrainings_have_no_patience(small_table):
    start, own = small_table.trainings(Cell(row("matching-net"), FIVE))
    assert (start.config.training.patience, own.config.training.patience) == (None, PATIENCE)


def test_precision_is_that_of_training(small_table):
    table = replace(small_table, precision="bf16")
    for each in ROWS:
        assert all(run.config.learner_settings.precision == "bf16" for run in table.trainings(Cell(each, ONE)))


def test_tags_tell_networks_apart(small_table):
    small = replace(row("meta-lstm"), changes={"filters": 32})
    starts = {small_table.trainings(Cell(each, FIVE))[0] for each in (row("meta-lstm"), small)}
    tags = {LEARNERS[start.config.learner].tag(start.config.learner_settings) for start in starts}
    assert len(tags) == len({start.folder for start in starts}) == 2


def test_a_result_of_another_table_is_refused(small_table):
    cell = Cell(row("nearest-neighbor-pixels"), ONE)
    assert small_table.read(cell) is None
    path = small_table.result(cell)
    path.parent.mkdir(parents=True)
    digest = small_table.meta_sets.digest
    mine = {"data": small_table.meta_sets.name, "episodes": 4, "seed": 0}
    path.write_text(json.dumps(mine))
    assert small_table.read(cell) == mine
    path.write_text(json.dumps(mine | {"data_digest": "f" * 64}))
    with pytest.raises(UserError, match=f"was made with data_digest f+, but this table has data_digest {digest}"):
        small_table.read(cell)
    path.write_text(json.dumps(mine))
    other = replace(small_table, seed=3, budget=replace(small_table.budget, test_episodes=5))
    with pytest.raises(UserError) as refused:
        other.read(cell)
    assert str(refused.value) == (
        f"{path} was made with episodes 4, seed 0, but this table has episodes 5, seed 3: pass another --out"
    )
