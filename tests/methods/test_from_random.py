"""An optimizer meta-trained from random weights."""

from dataclasses import replace

import pytest
import torch

from helpers import assert_same_tensors, load_folder, make_folder, tiny_config
from metalstm.episodes import Support
from metalstm.errors import UserError
from metalstm.methods import FromRandom
from metalstm.training import train
from tiny import N_WAY, build, config, episode


def method_of(**changes) -> FromRandom:
    method = build(config("from-random", **changes))
    assert isinstance(method, FromRandom)
    return method


def test_each_task_starts_from_weights_of_its_own_and_always_from_the_same():
    method, support = method_of(), episode().support
    start, again = method.start(support).theta, method.start(support).theta
    assert torch.equal(start, again)
    assert not torch.isclose(start[0], start[1]).all(-1)
    body, head = start.split([method.learner.n_body, start.shape[-1] - method.learner.n_body], -1)
    for part in (body, head):
        assert (part[0] != part[1]).double().mean() > 0.5
    alone = Support(support.x[1], support.y[1], N_WAY)
    assert torch.equal(method.start(alone).theta, start[1])


def test_the_inner_optimizer_is_all_that_is_learned():
    method = method_of()
    names = {name for name, each in method.named_parameters() if each.requires_grad}
    assert names
    assert all(name.startswith("optimizer.") for name in names)
    assert method.parameter_groups()["lr"] == []


def test_meta_training_takes_a_random_number_of_steps_and_adapting_all(monkeypatch):
    method = method_of(epochs=6, least_epochs=2, batch_size=None)
    assert method.n_steps(episode().support) == 6
    taken = []
    update = method.optimizer.update
    monkeypatch.setattr(method.optimizer, "update", lambda *args: taken.append(1) or update(*args))
    counts = set()
    for seed in range(40):
        torch.manual_seed(seed)
        taken.clear()
        method(episode())
        counts.add(len(taken))
    assert counts == {2, 3, 4, 5, 6}
    taken.clear()
    method.adapt(episode().support)
    assert len(taken) == 6


@pytest.mark.parametrize("optimizer", ["layer-lstm", "learned-rates"])
def test_the_meta_gradient_equals_central_differences(optimizer):
    method = method_of(order=2, optimizer=optimizer, epochs=2, batch_size=None)
    method(batch_ := episode())[0].backward()
    for k, (name, weight) in enumerate(method.optimizer.named_parameters()):
        direction = torch.randn(weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(k))
        start, losses = weight.detach().clone(), []
        for sign in (1, -1):
            with torch.no_grad():
                weight.copy_(start + sign * 1e-7 * direction)
                losses.append(method(batch_)[0].item())
                weight.copy_(start)
        numeric = (losses[0] - losses[1]) / 2e-7
        assert weight.grad is not None
        assert numeric == pytest.approx((weight.grad * direction).sum().item(), rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_moments": True}, "--keep-moments: in from-random random weights have no moments of a pre-training"),
        ({"shared_head": True}, "--shared-head: in from-random random head rows are not learned"),
        ({"pretrain": 5}, "--pretrain 5: in from-random the weights are random: leave it out"),
    ],
)
def test_what_needs_a_learned_start_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        build(config("from-random", **changes))


def test_another_number_of_classes_is_refused():
    more = episode((), n_way=N_WAY + 1).support
    with pytest.raises(UserError, match=f"meta-trained for {N_WAY} classes and serves no other: got {N_WAY + 1}"):
        method_of().adapt(more)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    meta_sets = load_folder(make_folder(tmp_path / "images"))
    run = tiny_config(meta_sets, "from-random", epochs=3, least_epochs=1, val_every=100)

    def until(episodes: int, out: str, resume: bool = False) -> None:
        train(replace(run, training=replace(run.training, episodes=episodes, lr_decay=False)), meta_sets,
              tmp_path / out, resume)  # fmt: skip

    until(6, "whole")
    until(3, "parts")
    until(6, "parts", resume=True)
    assert_same_tensors(tmp_path / "whole" / "last.safetensors", tmp_path / "parts" / "last.safetensors")
