"""Fine-tuning against torch's own SGD on stock modules, and the choice of its rule on meta-val."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from metalstm import recipes
from metalstm.errors import UserError
from metalstm.learners import Conv4
from metalstm.methods import RunConfig, Search, Tuning
from metalstm.methods.finetune import Finetune
from metalstm.optimizers import RULES
from reference.conv4 import Conv4 as ReferenceConv4
from tiny import N_WAY, SHAPE, batch, config, episode


def pretrained(run: RunConfig) -> Finetune:
    """As after a pre-training: a body, and moments of many images; the head starts at 0."""
    start = recipes.build(recipes.pretraining(run)).double()
    for number in range(10):
        start(batch(recipes.pretraining(run), range(number, number + 1)))
    method = recipes.build(run).double()
    assert isinstance(method, Finetune)
    method.start_from(start.network())
    return method


def test_all_layers_are_trained_as_by_torch():
    """Whole support set, batch statistics, running averages that go on from the pre-training's, a head of zeros."""
    run = config("finetune", "paper", epochs=4, rate=0.1, decay=0.5, batch_size=None)
    method, of = pretrained(run), episode(())
    network = ReferenceConv4(SHAPE, N_WAY, 4, momentum=0.1)
    for norm, (mean, var) in zip(network.norms(), method.moments_0.view(4, 2, -1), strict=True):
        norm.running_mean, norm.running_var = mean.clone(), var.clone()
    theta = torch.cat([method.body_0.detach(), torch.zeros(N_WAY * (method.learner.n_features + 1)).double()])
    for t in range(4):
        theta.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(network.logits(theta, of.support.x), of.support.y), theta)
        theta = theta.detach() - 0.1 / (1 + 0.5 * t) * grad
    adapted = method.adapt(of.support)
    torch.testing.assert_close(adapted["theta"], theta, rtol=1e-9, atol=1e-11)
    expected = network.running_logits(theta, of.query.x).detach()
    torch.testing.assert_close(method.logits(adapted, of.query.x).detach(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_the_head_alone_is_trained_on_the_features_of_the_pre_training(rule):
    run = config("finetune", optimizer=rule, moves="head", epochs=3, rate=0.05, batch_size=None)
    method, of = pretrained(run), episode(())
    body, moments, _ = method.network()
    with torch.no_grad():
        plain = method.learner.get_submodule("learner")
        features = [plain.features(body, x, moments)[0] for x in (of.support.x, of.query.x)]  # pyright: ignore[reportCallIssue]
    weight = torch.zeros(N_WAY, method.learner.n_features + 1, dtype=torch.float64, requires_grad=True)
    kind = {"adagrad": torch.optim.Adagrad, "adadelta": torch.optim.Adadelta, "adam": torch.optim.Adam}.get(rule)
    if kind is None:
        optimizer = torch.optim.SGD([weight], 0.05, momentum=0.9 if rule == "momentum" else 0.0)
    else:
        optimizer = kind([weight], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(features[0] @ weight[:, :-1].T + weight[:, -1], of.support.y).backward()
        optimizer.step()
    logits = method.logits(method.adapt(of.support), of.query.x)
    torch.testing.assert_close(logits, (features[1] @ weight[:, :-1].T + weight[:, -1]).detach(), rtol=1e-9, atol=1e-9)


def test_it_starts_from_the_network_that_others_start_from():
    whole, head = (config("finetune", moves=part) for part in ("all", "head"))
    assert recipes.pretraining(whole) == recipes.pretraining(head)
    one, other = pretrained(whole).network(), pretrained(head).network()
    assert all(map(torch.equal, one[:2], other[:2]))


def test_a_rule_that_does_not_exist_is_refused():
    with pytest.raises(
        UserError, match=r"^unknown rule 'adem', did you mean 'adam'\? allowed: adadelta, adagrad, adam, "
    ):
        recipes.build(config("finetune", rules=("sgd", "adem")))
    with pytest.raises(UserError, match=r"^unknown rule 'meta-lstm': allowed: "):
        recipes.build(config("finetune", rules=("meta-lstm",)))


# The choice -----------------------------------------------------------------------------------------------------------


def tuning(kept: dict[str, dict]) -> Tuning:
    """Of few steps; each rule's choice is computed once."""

    def keep(name, compute):
        kept.setdefault(name, compute())
        return kept[name]

    return Tuning(lambda number: episode((1,), seed=number), Search(2, 3, (1, 4)), keep)


@pytest.mark.parametrize("moves", ["all", "head"])
def test_the_best_rule_is_chosen_with_its_rate_decay_and_steps(moves):
    run = config("finetune", moves=moves, rules=("sgd", "adam"))
    method = pretrained(run)
    before, kept = copy.deepcopy(method.state_dict()), {}
    settings, optimizer = method.settings, method.optimizer
    changes = method.tune(tuning(kept))
    assert kept.keys() == {"sgd", "adam"}
    best = max(kept.values(), key=lambda choice: choice["meta_val"])
    assert changes.pop("chosen") == best
    tuned = replace(run, **changes)
    recipes.check(tuned)
    assert (tuned.optimizer, tuned.settings.epochs) == (best["rule"], best["steps"])
    assert (tuned.optimizer_settings.rate, tuned.optimizer_settings.decay) == (best["rate"], best["decay"])
    # The search leaves the method as it was; the tuned method reaches what was found.
    assert (method.settings, method.optimizer) == (settings, optimizer)
    assert all(torch.equal(before[name], now) for name, now in method.state_dict().items())
    again = recipes.build(tuned).double()
    again.start_from(method.network())
    accuracies = []
    for number in range(3):
        of = episode((1,), seed=number)
        logits = again.logits(again.adapt(of.support), of.query.x)
        accuracies.append(100 * (logits.argmax(-1) == of.query.y).double().mean())
    assert torch.stack(accuracies).mean().item() == pytest.approx(best["meta_val"])


def test_a_search_embeds_each_image_once_if_the_head_alone_is_trained(monkeypatch):
    method = pretrained(config("finetune", moves="head"))
    seen, original = [], Conv4.features

    def features(self, theta, x, *rest, **more):
        seen.append(x.shape[-4])
        return original(self, theta, x, *rest, **more)

    monkeypatch.setattr(Conv4, "features", features)
    method.tune(tuning({}))
    of = episode((1,))
    assert sum(seen) == 3 * (of.support.y.numel() + of.query.y.numel())


def test_what_is_kept_is_not_searched_again():
    method = pretrained(config("finetune"))
    choice = {"rule": "sgd", "rate": 0.5, "decay": 0.0, "steps": 7, "meta_val": 12.0, "episodes": 3}
    changes = method.tune(
        Tuning(lambda number: pytest.fail("searched"), Search(2, 3, (1,)), lambda name, compute: choice)
    )
    assert changes["settings"].epochs == 7
    assert changes["optimizer_settings"] == RULES["sgd"].Settings(0.5, 0.0)


def test_the_rows_of_the_table_are_the_rules_and_the_head():
    rows = {row.name: row for row in Finetune.rows()}
    assert list(rows) == [*(f"finetune-{rule}" for rule in RULES), "finetune-head"]
    (published,) = rows["finetune-sgd"].published
    assert published.figures == {"5w1s": (28.86, 0.54), "5w5s": (49.79, 0.79)}
    assert rows["finetune-head"].changes == {"rules": tuple(RULES), "moves": "head"}
