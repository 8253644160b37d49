import re
from typing import cast

import pytest
import torch

from metalstm import data, demo, recipes
from metalstm.console import console
from metalstm.episodes import EpisodeSampler
from metalstm.methods import GradientMethod


def untrained():
    """A Meta-LSTM of the demo's recipe, not trained."""
    glyphs = data.load("glyphs")
    recipe = recipes.named("meta-lstm", "best", glyphs.traits, demo.N_SHOT)
    config = recipes.run_config(glyphs, recipe, "meta-lstm", "best", demo.N_WAY, demo.N_SHOT)
    return glyphs, cast(GradientMethod, recipes.build(config)).eval()


def test_best_descent_has_the_best_rate_on_meta_val_and_leaves_the_method_as_it_was(monkeypatch):
    monkeypatch.setattr(demo, "TUNING_EPISODES", 2)
    monkeypatch.setattr(demo, "RATES", (0.001, 0.2))
    glyphs, method = untrained()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    optimizer = method.optimizer
    val = EpisodeSampler(glyphs.splits["meta-val"], demo.N_WAY, demo.N_SHOT)
    rate, rival = demo.best_descent(method, val)
    accuracies = {}
    for each in demo.RATES:
        monkeypatch.setattr(demo, "RATES", (each,))
        accuracies[each] = demo.evaluate(demo.best_descent(method, val)[1], val, 2).mean
    assert accuracies[rate] == max(accuracies.values())
    assert method.optimizer is optimizer
    assert rival.optimizer is not optimizer
    torch.testing.assert_close(rival.theta_0(demo.N_WAY), method.theta_0(demo.N_WAY), rtol=0, atol=0)
    after = method.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_the_page_has_the_figures_of_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "TEST_EPISODES", 4)
    monkeypatch.setattr(demo, "TUNING_EPISODES", 2)
    monkeypatch.setattr(demo, "RATES", (0.1,))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(console, "quiet", True)
    demo.demo(tmp_path / "demo", episodes=4, seed=0, device="cpu")
    table = capsys.readouterr().out
    for name in ("chance", "nearest neighbor in pixels", "gradient descent", "Meta-LSTM"):
        assert name in table
    figures = re.findall(r"\d+\.\d\d \+- \d+\.\d\d %", table)
    assert len(figures) == 3
    page = (tmp_path / "demo" / "report.html").read_text()
    assert all(figure in page for figure in figures)
    assert "not see. The table shows mean accuracy and 95 % interval over the same 4 meta-test episodes." in page
