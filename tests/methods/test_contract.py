"""What every entry of METHODS must keep to, with each of its recipes, every learner and every inner optimizer.

The tests iterate over the tables themselves: a new line there is tested here without a change.
"""

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import product
from typing import Any

import pytest
import torch

from metalstm import checkpoint, recipes
from metalstm.data import DATASETS
from metalstm.episodes import Episode, Query
from metalstm.errors import UserError
from metalstm.learners import LEARNERS
from metalstm.methods import METHODS, GradientMethod, Method, Network, Recipe, RunConfig
from metalstm.optimizers import OPTIMIZERS, RULES
from metalstm.settings import Traits, from_dict, to_dict
from tiny import (
    N_QUERY,
    N_SHOT,
    N_WAY,
    SHAPE,
    TRAITS,
    batch,
    build,
    config,
    episode,
    images,
    logits,
    other_network,
    random,
    task,
)

# Settings that no recipe has, but whose code is the methods' own.
VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    ("meta-lstm", "paper", {"query_norm": "batch"}),
    ("meta-lstm", "paper", {"few_shot_epochs": 1, "epochs": 3}),
    ("meta-lstm", "best", {"keep_moments": False, "query_norm": "support", "train_query_norm": "support", "order": 1}),
    ("meta-lstm", "best", {"keep_moments": False, "query_norm": "support", "mirror": True, "recompute": True}),
    ("meta-lstm", "best", {"body_factor": 0.05, "query_scale": 2.0}),
    ("matching-net", "paper", {"dropout": 0.0}),
    ("matching-net", "paper", {"dropout": 0.5}),
    *(("finetune", "best", {"moves": "head", "optimizer": rule}) for rule in RULES),
]


def entries() -> Iterator[Any]:
    for method, recipe in product(METHODS, recipes.RECIPES):
        own = METHODS[method].recipe(recipe, Traits(), N_SHOT)
        for learner in LEARNERS if recipe == "best" else dict.fromkeys([own.learner, "conv4", "linear"]):
            yield pytest.param((method, recipe, {"learner": learner}), id=f"{method}, {recipe}, {learner}")
        if recipe == "best":
            for traits in [name for name in TRAITS if name != "photos"]:
                yield pytest.param((method, recipe, {"traits": traits}), id=f"{method}, {recipe}, {traits}")
            # Methods that share another entry's inner loop take any optimizer if that one does.
            has_loop = own.optimizer and not any(base in METHODS.values() for base in METHODS[method].__mro__[1:])
            for optimizer in [name for name in OPTIMIZERS if has_loop and name != own.optimizer]:
                yield pytest.param((method, recipe, {"optimizer": optimizer}), id=f"{method}, {recipe}, {optimizer}")
    for method, recipe, changes in VARIANTS:
        words = ", ".join(f"{name} {value}" for name, value in changes.items())
        yield pytest.param((method, recipe, changes), id=f"{method}, {recipe}, {words}")


@pytest.fixture(params=entries())
def run(request) -> RunConfig:
    method, recipe, changes = request.param
    return config(method, recipe, **changes)


@pytest.fixture
def method(run) -> Method:
    return build(run)


def values_of(recipe: Recipe) -> dict[str, Any]:
    return {field.name: getattr(recipe, field.name) for field in fields(recipe)}


def is_transductive(run: RunConfig) -> bool:
    """Whether queries are normalized by their own moments, if the learner has any."""
    if not recipes.has_setting(run, "query_norm"):
        return False
    learner: Any = build(run).learner
    return run.settings.query_norm == "batch" and learner.n_moments > 0


def serves(method: Method, n_way: int) -> bool:
    try:
        method.check_way(n_way)
    except UserError:
        return False
    return True


def trained(method: Method) -> dict[str, torch.nn.Parameter]:
    """What meta-training can change; nothing in a matching network of pixels, say."""
    return {name: each for name, each in method.named_parameters() if each.requires_grad and each.numel()}


def seeded_loss(method: Method, of: Any) -> torch.Tensor:
    torch.manual_seed(0)
    return method(of)[0]


def assert_same_state(method: Method, before: dict[str, torch.Tensor]) -> None:
    assert before.keys() == method.state_dict().keys()
    for name, now in method.state_dict().items():
        assert torch.equal(before[name], now), name


# What an entry says of itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_recipes_are_allowed_whatever_the_data(name):
    kind = METHODS[name]
    every_trait = [Traits(*values) for values in product((False, True), repeat=len(fields(Traits)))]
    for recipe, n_shot, traits in product(recipes.RECIPES, (1, 2, 5, 20), every_trait):
        described = kind.recipe(recipe, traits, n_shot)
        recipes.check(described)
        assert isinstance(described.settings, kind.Settings)
        assert isinstance(described.learner_settings, LEARNERS[described.learner].Settings)
        if described.optimizer:
            assert isinstance(described.optimizer_settings, OPTIMIZERS[described.optimizer].Settings)


@pytest.mark.parametrize("name", METHODS)
def test_the_inner_loop_trains_what_it_says(name):
    method = build(config(name))
    part = method.trained_part()
    assert isinstance(method, GradientMethod) or part in ("nothing", "head")
    if isinstance(method, GradientMethod):
        support, n_body = episode().support, method.learner.n_body
        moved = method.adapt(support)["theta"] != method.start(support).theta
        assert moved[..., n_body:].any() == (part != "body")
        assert moved[..., :n_body].any() == (part != "head")


@pytest.mark.parametrize("name", METHODS)
def test_rows_of_the_table_are_runs(name):
    assert METHODS[name].label
    for row in METHODS[name].rows():
        named = recipes.named(name, row.recipe, Traits(), 5)
        recipes.with_changes(RunConfig(**values_of(named), method=name, recipe=row.recipe), dict(row.changes))
        assert row.label
        assert row.ways
        for published in row.published:
            assert published.source
            assert published.data in DATASETS
            assert all(0 < figure[0] < 100 and len(figure) in (1, 2) for figure in published.figures.values())
            assert all(re.fullmatch(r"\d+w\d+s", task) for task in published.figures)


def test_rows_of_the_table_have_different_names():
    rows = [row for kind in METHODS.values() for row in kind.rows()]
    assert len({row.name for row in rows}) == len({row.label for row in rows}) == len(rows)


def test_no_two_parts_of_a_run_have_a_setting_of_the_same_name(run):
    parts = (run.settings, run.learner_settings, run.optimizer_settings, run.training)
    names = [field.name for part in parts for field in fields(part)]
    assert len(set(names)) == len(names)


def test_settings_survive_json(run):
    assert recipes.from_dict(recipes.to_dict(run)) == run
    assert recipes.from_dict(json.loads(json.dumps(recipes.to_dict(run)))) == run
    kind = METHODS[run.method].Settings
    assert from_dict(kind, json.loads(json.dumps(to_dict(run.settings)))) == run.settings


def test_a_recipe_has_no_changes(run):
    named = recipes.named(run.method, run.recipe, run.traits, N_SHOT, run.learner, run.optimizer or None)
    assert recipes.changes(replace(run, **values_of(named))) == {}


def test_the_seed_decides_the_weights(run):
    one, again, other = (recipes.build(replace(run, seed=seed)) for seed in (0, 0, 1))
    assert_same_state(one, again.state_dict())
    # Another seed draws other weights, where there are any to draw: numbers of the method's own may start alike.
    drawn = [name for name, each in one.named_parameters() if each.numel() > 1 and each.double().std() > 0]
    assert not drawn or any(not torch.equal(one.state_dict()[name], other.state_dict()[name]) for name in drawn)


# Adapting -------------------------------------------------------------------------------------------------------------


def test_logits_have_a_score_for_each_class(method):
    result = logits(method, episode())
    assert result.shape == (2, N_WAY * N_QUERY, N_WAY)
    assert result.isfinite().all()


def test_a_batch_of_tasks_equals_a_loop(method):
    both = episode()
    together = logits(method, both)
    nested = replace(both.support, x=both.support.x[:, None], y=both.support.y[:, None])
    deeper = logits(method, Episode(nested, Query(both.query.x[:, None], both.query.y[:, None])))
    torch.testing.assert_close(deeper[:, 0], together, rtol=1e-9, atol=1e-9)
    for index in range(2):
        torch.testing.assert_close(together[index], logits(method, task(both, index)), rtol=1e-9, atol=1e-9)


def test_the_loss_of_a_batch_is_the_mean_of_its_tasks(run, method):
    both = batch(run)
    if not isinstance(both, Episode):
        pytest.skip("is trained on mini-batches of images")
    if seeded_loss(method, both) != method(both)[0]:
        pytest.skip("meta-training is random")
    loss, accuracy = method(both)
    singles = [method(task(both, index)) for index in range(2)]
    torch.testing.assert_close(loss, sum(one for one, _ in singles) / 2, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(accuracy, sum(one for _, one in singles) / 2)
    assert 0 <= accuracy <= 1


def test_other_queries_do_not_matter_unless_a_method_says_transductive(run, method):
    whole = episode()
    few = replace(whole, query=Query(whole.query.x[:, :2], whole.query.y[:, :2]))
    one, other = logits(method, whole)[:, :2], logits(method, few)
    if is_transductive(run):
        assert not torch.allclose(one, other, rtol=1e-3)
    else:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_adapting_is_deterministic_and_leaves_the_method_as_it_was(method):
    before = copy.deepcopy(method.state_dict())
    adapted, again = method.adapt(episode().support), method.adapt(episode().support)
    assert adapted.keys() == again.keys()
    assert all(torch.equal(adapted[name], again[name]) for name in adapted)
    assert not any(tensor.requires_grad for tensor in adapted.values())
    assert_same_state(method, before)
    assert all(parameter.grad is None for parameter in method.parameters())


def test_remembering_images_changes_no_answer(method):
    of, quick, before = episode(), method.remembering(), copy.deepcopy(method.state_dict())
    for _ in range(2):
        adapted, again = method.adapt(of.support), quick.adapt(of.support)
        assert adapted.keys() == again.keys()
        for name in adapted:
            torch.testing.assert_close(again[name], adapted[name], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            quick.logits(again, of.query.x), method.logits(adapted, of.query.x), rtol=1e-6, atol=1e-6
        )
    assert_same_state(method, before)


def test_what_was_adapted_can_be_saved_and_loaded_to_the_bit(method, tmp_path):
    adapted = method.adapt(episode().support)
    checkpoint.save(tmp_path / "adapted.safetensors", adapted, {"n_way": N_WAY})
    loaded, meta = checkpoint.load(tmp_path / "adapted.safetensors")
    assert meta == {"n_way": N_WAY}
    query_x = episode().query.x
    assert torch.equal(method.logits(adapted, query_x), method.logits(loaded, query_x))


def test_what_is_spent_is_no_longer_needed(method):
    of = episode()
    adapted = method.adapt(of.support)
    emptied = copy.deepcopy(method)
    state = emptied.state_dict()
    assert method.spent() <= state.keys()
    for name in method.spent():
        state[name].fill_(torch.nan if state[name].is_floating_point() else 0)
    assert torch.equal(emptied.logits(adapted, of.query.x), method.logits(adapted, of.query.x))


def test_nothing_depends_on_the_mode(run, method):
    """Not the logits, the loss, its gradient, nor what a step of meta-training leaves behind."""
    other = copy.deepcopy(method).train()
    method.eval()
    assert torch.equal(logits(method, episode()), logits(other, episode()))
    one, another = seeded_loss(method, batch(run)), seeded_loss(other, batch(run))
    assert torch.equal(one, another)
    if trained(method):
        one.backward()
        another.backward()
        for (name, each), twin in zip(method.named_parameters(), other.parameters(), strict=True):
            assert (each.grad is None) == (twin.grad is None), name
            assert each.grad is None or torch.equal(each.grad, twin.grad), name  # pyright: ignore[reportArgumentType]
    assert_same_state(method, other.state_dict())
    assert torch.equal(logits(method, episode()), logits(other, episode()))


def test_unequal_shots_are_learned_from(run, method):
    """Four images of class 0 and one of the others; a method sees each of them."""
    if recipes.has_setting(run, "moves") and run.settings.moves == "body" and not method.learner.n_body:
        pytest.skip("learns in its body alone, and has none")
    one = task(episode((1,), n_shot=4), 0)
    keep = torch.tensor([0, 1, 2, 3, 6, 9])  # classes 0, 1, 2, 0, 0, 0
    few = replace(one.support, x=one.support.x[keep], y=one.support.y[keep])
    result = logits(method, replace(one, support=few))
    assert result.shape == (N_WAY * N_QUERY, N_WAY)
    assert result.isfinite().all()
    before = method.adapt(few)
    for index in range(len(keep)):
        x = few.x.clone()
        x[index] = random(*SHAPE, seed=index).abs()
        changed = method.adapt(replace(few, x=x))
        assert any(not torch.equal(before[name], changed[name]) for name in before), index


# Classes --------------------------------------------------------------------------------------------------------------


def test_names_of_classes_do_not_matter_to_a_method_that_serves_any_number_of_them(method):
    if not serves(method, N_WAY + 2):
        pytest.skip("has something of its own for each class")
    before = episode()
    order = torch.tensor([2, 0, 1])
    after = replace(before, support=replace(before.support, y=order[before.support.y]))
    torch.testing.assert_close(logits(method, after)[..., order], logits(method, before), rtol=1e-8, atol=1e-8)


def test_another_number_of_classes_is_served_or_refused(method):
    assert serves(method, N_WAY)
    for n_way in (2, N_WAY + 2):
        more = episode((), n_way=n_way)
        if serves(method, n_way):
            assert logits(method, more).shape == (n_way * N_QUERY, n_way)
        else:
            with pytest.raises(UserError, match=rf"got {n_way}$"):
                method.adapt(more.support)


# Meta-training --------------------------------------------------------------------------------------------------------


def test_every_trained_parameter_has_one_learning_rate(run, method):
    groups = method.parameter_groups()
    assert all(isinstance(getattr(run.training, rate), float) for rate in groups)
    grouped = [id(parameter) for parameters in groups.values() for parameter in parameters]
    assert sorted(grouped) == sorted(id(each) for each in method.parameters() if each.requires_grad)


def test_every_trained_parameter_gets_a_finite_gradient(run, method):
    if not trained(method):
        pytest.skip("has nothing to train")
    seeded_loss(method, batch(run)).backward()
    for name, parameter in method.named_parameters():
        if name in trained(method):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
        else:
            assert parameter.grad is None or not parameter.numel(), name


def test_a_few_steps_lower_the_loss(run):
    method, training_batch = recipes.build(run).double(), batch(run, range(1))
    if not METHODS[run.method].meta_trained or not trained(method):
        pytest.skip("has nothing to train")
    own = METHODS[run.method].recipe(run.recipe, run.traits, N_SHOT)
    # A rule whose rate is anything may take small steps, and a learner without a body leaves little to train.
    enough = 0.9 if (run.learner, run.optimizer) == (own.learner, own.optimizer) else 0.99
    if sum(each.numel() for each in trained(method).values()) < 10:  # of a method without its body; may start well
        enough = 1.0
    groups = [{"params": parameters} for parameters in method.parameter_groups().values() if parameters]
    optimizer = torch.optim.Adam(groups, lr=5e-4 if run.learner == "resnet12" else 1e-2)  # 13 layers want small steps
    losses = []
    for _ in range(30):
        loss = seeded_loss(method, training_batch)
        losses.append(loss.item())
        if loss < enough * losses[0]:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pytest.fail(f"the loss went from {losses[0]} to {losses[-1]}")


# A pre-trained network ------------------------------------------------------------------------------------------------


def test_it_starts_from_a_network_and_gives_it_back_or_refuses(method):
    try:
        network = method.network()
    except UserError:
        with pytest.raises(UserError):
            method.start_from(Network(torch.zeros(3), torch.zeros(0)))
        return
    start = other_network(network)
    method.start_from(start)
    assert all(map(torch.equal, method.network()[:2], start[:2]))
    assert logits(method, episode()).isfinite().all()
    with pytest.raises(UserError, match=r"parameters cannot start from one of .*: pre-train with the same learner"):
        method.start_from(Network(torch.cat([start.body, start.body.new_zeros(1)]), start.moments))
    assert all(map(torch.equal, method.network()[:2], start[:2]))


def test_it_starts_from_what_its_pre_training_gives(run, method):
    if not run.training.pretrain:
        pytest.skip("is not pre-trained")
    if recipes.pretraining(run).method == run.method:
        pytest.skip("learns from it instead: see test_pretrained.py")
    start = recipes.build(recipes.pretraining(run)).double().network()
    method.start_from(start)
    assert all(map(torch.equal, method.network()[:2], start[:2]))


# The inner loop -------------------------------------------------------------------------------------------------------


def test_watching_shows_each_step_and_ends_with_what_was_adapted(run, method):
    for tasks in ((), (2,)):
        support = episode(tasks).support
        watched = list(method.watch(support))
        assert len(watched) == method.n_steps(support)
        if not watched:
            continue
        adapted = method.adapt(support)
        assert watched[-1].adapted.keys() == adapted.keys()
        assert all(torch.equal(watched[-1].adapted[name], adapted[name]) for name in adapted)
        assert not any(tensor.requires_grad for each in watched for tensor in each.adapted.values())
    assert bool(run.optimizer) == bool(watched)


def test_gates_are_shown_layer_by_layer(method):
    for tasks in ((), (2,)):
        support = episode(tasks).support
        gates, watched = method.gates(support), list(method.watch(support))
        if gates is None:
            assert not any(each.gates for each in watched)
            continue
        for layer, values in gates.items():
            assert values.shape == (2, method.n_steps(support), *tasks)
            assert values.isfinite().all()
            seen = torch.tensor([each.gates[layer] for each in watched], dtype=values.dtype).T
            torch.testing.assert_close(seen, values.unflatten(1, (-1, 1)).flatten(2).mean(-1))
        assert all(each.gates.keys() == gates.keys() for each in watched)


def test_meta_batches_come_by_number(run):
    """The same number gives the same batch, in whatever company."""
    one: Any = METHODS[run.method].sampler(images(), run, "cpu").batch(range(3, 5))
    other: Any = METHODS[run.method].sampler(images(), run, "cpu")[4]
    parts = [(one.support, other.support), (one.query, other.query)] if isinstance(one, Episode) else [(one, other)]
    for many, single in parts:
        assert torch.equal(many.x[-len(single.x) :], single.x)
        assert torch.equal(many.y[-len(single.y) :], single.y)
