"""Every row on tiny real runs."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from metalstm import checkpoint, recipes
from metalstm import files as files_module
from metalstm.errors import UserError
from metalstm.evaluation import evaluate_checkpoint
from metalstm.table import ROWS, Cell, Task, make, making, page, select
from metalstm.table.contents import collect
from metalstm.training import record, run_folder


def row(name):
    (found,) = select(name)
    return found


def result(table, name):
    return json.loads((table.out / "rows" / f"{name}.json").read_text())


def files(table) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in table.out.rglob("*") if path.is_file()}


def test_trained_in_bf16_tested_in_fp32(small_table):
    table = replace(small_table, precision="bf16")
    made = making.make_cell(table, Cell(row("nearest-neighbor"), Task(5, 1)))
    assert (made["precision"], made["terms"]["config"]["learner_settings"]["precision"]) == ("fp32", "bf16")
    tested = checkpoint.load_method(table.out / "checkpoints" / "nearest-neighbor-5w1s.safetensors")[1]
    trained = checkpoint.load_method(table.out / "runs" / "start-best-64f-average-5w5s")[1]
    assert (tested.learner_settings.precision, trained.learner_settings.precision) == ("fp32", "bf16")


def test_the_choice_is_logged_before_meta_test_is_opened(small_table, capsys):
    make(small_table, select("nearest-neighbor-pixels"), [])
    log = capsys.readouterr().err
    assert "[1/2] nearest-neighbor-pixels-5w1s; at most 0 minutes of training to go" in log
    assert "nearest-neighbor-pixels-5w1s: chosen on meta-val: {'meta_val': " in log
    assert log.index("now meta-test is opened") < log.index("nearest-neighbor-pixels-5w1s: ", log.index("opened"))


def test_a_result_of_other_episodes_is_not_taken_for_one_of_these(small_table):
    making.make_cell(small_table, Cell(row("nearest-neighbor-pixels"), Task(5, 1)))
    other = replace(small_table, seed=3, budget=replace(small_table.budget, test_episodes=5))
    with pytest.raises(UserError, match="was made with episodes 4, seed 0, but this table has episodes 5, seed 3"):
        make(other, select("nearest-neighbor-pixels"), [])
    with pytest.raises(UserError, match="pass another --out"):
        page.write(other)


def test_meta_test_is_opened_again_for_a_reason_only_and_each_time_is_counted(small_table, capsys):
    chosen, cell = select("nearest-neighbor-pixels"), Cell(row("nearest-neighbor-pixels"), Task(5, 1))
    make(small_table, chosen, [])
    said = "meta-test was opened {} times for 2 results"
    assert said.format(2) in capsys.readouterr().err
    small_table.result(cell).unlink()
    message = (
        "meta-test was opened before for nearest-neighbor-pixels-5w1s (1 time), which are to be made again: pass "
        f"--again REASON, which {small_table.out / 'run.json'} then keeps, or restore their files in "
        f"{small_table.out / 'rows'}"
    )
    for again in (lambda: make(small_table, chosen, []), lambda: making.make_cell(small_table, cell)):
        with pytest.raises(UserError) as error:
            again()
        assert str(error.value) == message
    assert not small_table.result(cell).exists()
    make(small_table, chosen, [], again="the row's file was lost")
    assert f"{said.format(3)}: 2 times for nearest-neighbor-pixels-5w1s" in capsys.readouterr().err
    openings = record.openings(small_table.out, str(cell))
    assert [each["reason"] for each in openings] == [None, "the row's file was lost"]
    assert {(each["episodes"], each["accuracy"]) for each in openings} == {
        (4, result(small_table, str(cell))["accuracy"])
    }


def test_an_opening_of_before_run_json_counts(small_table):
    chosen = select("nearest-neighbor-pixels")
    make(small_table, chosen, [])
    (small_table.out / "run.json").unlink()
    make(small_table, chosen, [])
    (small_table.out / "rows" / "nearest-neighbor-pixels-5w1s.json").unlink()
    with pytest.raises(UserError, match=r"^meta-test was opened before for nearest-neighbor-pixels-5w1s \(1 time\)"):
        make(small_table, chosen, [])


def test_two_commands_make_a_row_once(small_table):
    cell, made = Cell(row("nearest-neighbor-pixels"), Task(5, 1)), []
    with files_module.lock(small_table.out / "rows" / f".{cell}.lock"):
        thread = threading.Thread(target=lambda: made.append(making.make_cell(small_table, cell)))
        thread.start()
        making._make_cell(small_table, cell, "")  # what the other command does meanwhile
    thread.join()
    assert made == [result(small_table, str(cell))]
    assert len(record.openings(small_table.out, str(cell))) == 1


@pytest.mark.parametrize("name", ["finetune-adam", "finetune-head"])
def test_a_tuned_row_is_what_its_choice_says(small_table, name):
    """Adapted anew with the chosen settings, it reaches on meta-val what the choice says."""
    made = making.make_cell(small_table, Cell(row(name), Task(5, 1)))
    chosen = made["chosen"]
    assert chosen["rule"] in row(name).changes["rules"]
    assert chosen["episodes"] == small_table.budget.search.many
    file = small_table.out / "checkpoints" / f"{name}-5w1s.safetensors"
    again = evaluate_checkpoint(file, small_table.meta_sets, "meta-val", episodes=chosen["episodes"])
    assert again["accuracy"] == pytest.approx(chosen["meta_val"])
    config = checkpoint.load_method(file)[1]
    settings = config.optimizer_settings
    assert (config.optimizer, settings.rate, settings.decay) == (chosen["rule"], chosen["rate"], chosen["decay"])
    assert config.settings.epochs == chosen["steps"]
    parts = {path.name for path in (small_table.out / "runs" / f"{name}-5w1s").glob("tuned-*.json")}
    assert parts == {f"tuned-{rule}.json" for rule in row(name).changes["rules"]}


def test_a_result_has_its_terms(small_table):
    """Read from the run folders: the start and its cost, the own training and its cost, what tuning had."""
    made = {
        name: making.make_cell(small_table, Cell(row(name), Task(5, 1)))["terms"]
        for name in ("nearest-neighbor", "finetune-head", "matching-net", "matching-net-paper", "logistic")
    }
    start = small_table.trainings(Cell(row("matching-net"), Task(5, 1)))[0].folder
    end = run_folder.last_line(start)
    expected = {
        "run": start.name,
        "sha256": checkpoint.sha256(start / "best.safetensors"),
        "steps": 4,
        "seconds": end["seconds"],
        "training": recipes.to_dict(checkpoint.load_method(start)[1])["training"],
    }
    assert [each["start"] for each in made.values()] == [expected, expected, expected, None, expected]
    assert [each["episodes"] for each in made.values()] == [0, 0, 4, 4, 0]
    assert [each["validations"] for each in made.values()] == [2, 1, 2, 2, 1]
    assert [(each["part"], each["steps"] > 0) for each in made.values()] == [
        ("nothing", False), ("head", True), ("nothing", False), ("nothing", False), ("head", False)
    ]  # fmt: skip
    for name, each in made.items():
        assert (each["seconds"] > 0) == (each["episodes"] > 0)
        is_tuned = name in ("finetune-head", "logistic")
        assert (each["tuning_seconds"] > 0) == (each["search"] is not None) == is_tuned
        assert each["config"]["method"] == row(name).method
    assert made["logistic"]["search"]["many"] == small_table.budget.search.many


def test_a_cell_that_was_interrupted_goes_on(small_table, monkeypatch):
    """Stopped after each write of a file, the same command goes on, and ends with the same result."""
    cell = Cell(row("finetune-sgd"), Task(5, 1))
    whole = replace(small_table, out=small_table.out.with_name("whole"))
    expected = making.make_cell(whole, cell)["per_episode"]
    write, stops, made = run_folder.files.write, 0, None

    def stop_afterwards(path, content):
        already = path.exists()
        write(path, content)
        if not already:
            raise KeyboardInterrupt

    monkeypatch.setattr(run_folder.files, "write", stop_afterwards)
    for _ in range(30):
        try:
            made = making.make_cell(small_table, cell)
            break
        except KeyboardInterrupt:
            stops += 1
    assert made is not None
    assert made["per_episode"] == expected
    assert stops >= 6  # the start's and the run's own files, the choice, the checkpoint


def test_minutes_bound_every_run(small_table):
    table = replace(small_table, budget=replace(small_table.budget, train_minutes=1e-6))
    making.make_cell(table, Cell(row("meta-lstm"), Task(5, 1)))
    ends = {path.parent.name: run_folder.last_line(path.parent) for path in table.out.glob("runs/*/metrics.jsonl")}
    assert {name: end["episode"] for name, end in ends.items()} == {
        "start-best-64f-average-5w5s": 0,  # its minutes ended in the generation before it
        "meta-lstm-5w1s": 1,
    }


@pytest.mark.slow
def test_a_whole_table(small_table):
    """In one test, as it takes long to make; each part is a claim of its own."""
    make(small_table, ROWS, seeds=[1])
    every_row_has_a_result_at_both_tasks(small_table)
    checkpoints_give_the_figures_of_the_table(small_table)
    runs_of_one_seed_share_a_pretraining(small_table)
    what_exists_is_not_made_again(small_table)
    the_page_shows_all(small_table)


def every_row_has_a_result_at_both_tasks(table):
    results = collect(table).results
    assert [str(task) for task in results] == ["5w1s", "5w5s"]
    for column in results.values():
        assert list(column) == [row.name for row in ROWS]
        transductive = [name for name, each in column.items() if each["transductive"]]
        assert transductive == ["maml-paper", "alfa-paper"]
        for each in column.values():
            assert len(each["per_episode"]) == table.budget.test_episodes
            assert each["split"] == "meta-test"


def checkpoints_give_the_figures_of_the_table(table):
    for each in ROWS:
        tested = result(table, f"{each.name}-5w5s")
        path = table.out / "checkpoints" / f"{each.name}-5w5s.safetensors"
        again = evaluate_checkpoint(path, table.meta_sets, "meta-test", 5, 5, episodes=table.budget.test_episodes)
        assert again["per_episode"] == tested["per_episode"]
        assert again["checkpoint_sha256"] == tested["checkpoint_sha256"]


def runs_of_one_seed_share_a_pretraining(table):
    starts = {path.parent.name for path in table.out.glob("runs/start-*/best.safetensors")}
    assert starts == {f"start-best-64f-average-{name}" for name in ("5w5s", "5w5s-seed1")}
    before = {path.parent.name for path in table.out.glob("runs/*/pretrained")}
    assert before == starts  # the generation before them


def what_exists_is_not_made_again(table):
    before = files(table)
    make(table, ROWS, seeds=[1])
    assert files(table) == before


def the_page_shows_all(table):
    page.write(table)
    values = json.loads((table.out / "table.json").read_text())
    assert list(values["seeds"]["meta-lstm"]["runs"]) == ["0", "1"]
    assert values["convergence"] == values["ablation"] == {}
    text, html = ((table.out / name).read_text() for name in ("table.md", "report.html"))
    for each in ROWS:
        assert f"| {each.label} |" in text
        assert f"<td>{each.label}</td>" in html
    assert "**" in text
    # Dots, minutes, and pairs of two columns; two columns' learning curves and gates, confusions.
    assert html.count("<img") == 9
    assert "http" not in html.replace("http-equiv", "")
