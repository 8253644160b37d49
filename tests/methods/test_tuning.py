"""Following the inner loop, and choosing a rule's settings by it."""

import itertools

import pytest
import torch
from torch.nn.functional import cross_entropy

from metalstm import recipes
from metalstm.episodes import Episode, Query, Support
from metalstm.methods import GradientMethod, Search, Tuning
from metalstm.methods.tuning import DECAYS, Choice, curves, tune_rule
from metalstm.optimizers import RULES, SGD, InnerOptimizer
from metalstm.settings import Traits

SHAPE = (1, 16, 16)


def episode(number: int) -> Episode:
    """Three classes, which differ in brightness; a batch of one task."""
    generator = torch.Generator().manual_seed(number)
    y = torch.arange(3).repeat(4)
    x = torch.rand(12, *SHAPE, generator=generator) + 0.4 * y[:, None, None, None]
    return Episode(Support(x[None, :6], y[None, :6], 3), Query(x[None, 6:], y[None, 6:]))


def method(optimizer: InnerOptimizer, **changes) -> GradientMethod:
    """Fine-tuning of a random network for eight steps."""
    recipe = recipes.named("finetune", "paper", Traits(), 2)
    config = recipes.RunConfig(**vars(recipe) | {"method": "finetune", "image_shape": SHAPE, "n_way": 3})
    small = {"filters": 4, "epochs": 8, "norm_momentum": 0.95}
    built = recipes.build(recipes.with_changes(config, small | changes))
    assert isinstance(built, GradientMethod)
    return built.eval().with_inner_loop(optimizer=optimizer)


def tuned(start: GradientMethod, few: int, many: int, read_at: tuple[int, ...]) -> Choice:
    return tune_rule("sgd", start, Tuning(episode, Search(few, many, read_at), lambda _, compute: compute()))


@pytest.mark.parametrize("norm", ["running", "support"])
def test_curves_are_what_shorter_loops_end_with(norm):
    """Read after t steps, the loop gives what the same method with t epochs adapts to."""
    longer = method(SGD(0.1)).with_inner_loop(query_norm=norm)
    read = curves(longer, episode, [3, 5], (0, 1, 4))
    for row, number in enumerate([3, 5]):
        support, query = episode(number).support, episode(number).query
        for column, epochs in enumerate((0, 1, 4)):
            shorter = longer.with_inner_loop(epochs=max(1, epochs))
            with torch.no_grad():
                step = shorter.start(support) if epochs == 0 else list(shorter.trajectory(support))[-1]
                logits = shorter.logits(shorter.finish(step, support), query.x)[0]
                support_loss = cross_entropy(shorter.learner(step.theta, support.x)[0][0], support.y[0])
            assert read.accuracy[row, column] == 100 * (logits.argmax(-1) == query.y[0]).double().mean()
            assert read.query_loss[row, column] == pytest.approx(cross_entropy(logits, query.y[0]).item(), rel=1e-5)
            assert read.support_loss[row, column] == pytest.approx(support_loss.item(), rel=1e-5)


def test_the_choice_is_the_best_of_an_exhaustive_search():
    """With almost as many episodes in the first round as in the last, halving loses almost nothing."""
    start = method(SGD(0.0))
    choice = tuned(start, few=3, many=4, read_at=(1, 8))
    reached = {}
    for k, decay in itertools.product(SGD.half_decades, DECAYS):
        read = curves(start.with_inner_loop(SGD(10 ** (k / 2), decay)), episode, range(4), (1, 8))
        reached |= {(k, decay, steps): a for steps, a in zip((1, 8), read.accuracy.mean(0).tolist(), strict=True)}
    assert choice.meta_val >= max(reached.values()) - 5  # the first round has an episode less to go by
    again = curves(start.with_inner_loop(SGD(choice.rate, choice.decay)), episode, range(4), (choice.steps,))
    assert again.accuracy.mean().item() == pytest.approx(choice.meta_val)
    assert choice.episodes == 4


def test_the_method_is_left_as_it_was():
    start = method(SGD(0.25))
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    optimizer, settings, learner = start.optimizer, start.settings, start.learner
    tuned(start, few=1, many=2, read_at=(1, 2))
    assert start.optimizer is optimizer
    assert start.settings is settings
    assert start.learner is learner
    assert all(torch.equal(tensor, before[name]) for name, tensor in start.state_dict().items())


@pytest.mark.parametrize("changes", [{"few_shot_epochs": 1}, {"batch_size": 2}, {"epochs": 1}])
def test_the_method_s_own_schedule_does_not_matter(changes):
    """Steps are counted on the whole support set, whatever the method did before."""
    expected = tuned(method(SGD(0.0)), few=2, many=3, read_at=(1, 4))
    assert tuned(method(SGD(0.0), **changes), few=2, many=3, read_at=(1, 4)) == expected


def test_a_search_goes_on_beyond_an_end_that_is_best(monkeypatch):
    """Of steps thirty times too small, the largest rate tried at first is the best, so that a larger one is tried."""
    tried = []

    class Timid(SGD):
        def __init__(self, rate: float, decay: float = 0.0):
            super().__init__(rate / 30, decay)
            tried.append(rate)

    monkeypatch.setitem(RULES, "sgd", Timid)
    choice = tuned(method(SGD(0.0)), few=2, many=3, read_at=(8,))
    assert choice.rate >= 10 ** (SGD.half_decades[-1] / 2)
    assert max(tried) > choice.rate


@pytest.mark.parametrize("moves", ["all", "head"])
def test_a_tuned_method_is_what_its_choice_says(moves):
    """The best rule is taken, and the method adapts by it as the search did."""
    start = method(SGD(0.0), moves=moves, rules=("sgd", "adam"), batch_size=2, few_shot_epochs=1)
    kept = {}

    def keep(name, compute):
        kept[name] = compute()
        return kept[name]

    changes = start.tune(Tuning(episode, Search(2, 3, (1, 4)), keep))
    assert list(kept) == ["sgd", "adam"]
    chosen = changes["chosen"]
    assert chosen["meta_val"] == max(choice["meta_val"] for choice in kept.values())
    assert changes["optimizer"] == chosen["rule"]
    settings = changes["optimizer_settings"]
    rule = RULES[chosen["rule"]](settings.rate, settings.decay)
    adapted = start.with_inner_loop(optimizer=rule)
    adapted.settings = changes["settings"]
    accuracies = []
    for number in range(chosen["episodes"]):
        one = episode(number)
        with torch.no_grad():
            predicted = adapted.logits(adapted.adapt(one.support), one.query.x).argmax(-1)
        accuracies.append((predicted == one.query.y).double().mean().item())
    assert 100 * sum(accuracies) / len(accuracies) == pytest.approx(chosen["meta_val"])
