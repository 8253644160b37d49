"""What `Learner` gives to every learner, by one that is a few lines long."""

from dataclasses import dataclass
from math import prod

import pytest
import torch
from torch import Tensor

from metalstm.learners import Learner, LearnerSettings, each_task, set_precision
from tiny import random


class Scaled(Learner):
    """Multiplies pixels by two learned factors, after an offset that is not in theta."""

    @dataclass(frozen=True)
    class Settings(LearnerSettings):
        offset: float = 1.0

    def __init__(self, image_shape: tuple[int, int, int], settings: Settings = Settings()):
        super().__init__()
        self.image_shape, self.n_features, self.offset = image_shape, prod(image_shape), settings.offset
        self.shapes = {"first.factor": (1,), "second.factor": (1,), "second.other": (2,)}
        self.n_fixed = 0

    def init_body(self, generator: torch.Generator) -> Tensor:
        return torch.rand(4, generator=generator)

    def fixed(self, x: Tensor, train: bool = False) -> Tensor:
        self.n_fixed += 1
        return x.flatten(-3) + self.offset

    def features(self, theta: Tensor, x: Tensor, moments: Tensor | None = None, train: bool = False):
        return x * theta[..., None, :2], theta[..., :0]


def test_a_learner_is_its_body_and_its_features():
    learner = Scaled((1, 1, 2))
    theta = learner.init(3, torch.Generator().manual_seed(0))
    assert len(theta) == 4 + 3 * 3
    assert (learner.n_body, learner.lengths, learner.n_moments) == (4, [1, 1, 2], 0)
    assert learner.n_way(theta) == 3
    assert learner.layout(3) == {
        "first.factor": (slice(0, 1), (1,)),
        "second.factor": (slice(1, 2), (1,)),
        "second.other": (slice(2, 4), (2,)),
        "head": (slice(4, 13), (3, 3)),
    }
    assert learner.layers(3) == {"first": slice(0, 1), "second": slice(1, 4), "head": slice(4, 13)}
    x = torch.rand(5, 1, 1, 2)
    logits, moments = learner(theta, learner.fixed(x))
    weight, bias = theta[4:].view(3, 3).split([2, 1], 1)
    torch.testing.assert_close(logits, ((x.flatten(1) + 1) * theta[:2]) @ weight.T + bias.T)
    assert moments.shape == learner.initial_moments().shape == (0,)
    assert torch.equal(learner.unbiased(moments, 5), moments)


def test_what_it_says_of_itself_by_default():
    assert Scaled.tag(Scaled.Settings()) == "scaled"
    assert Scaled.for_pretraining(Scaled.Settings(offset=2.0)) == Scaled.Settings(offset=2.0)
    assert Scaled((1, 1, 2)).own_network() is None
    built = Scaled.build(Scaled.Settings(offset=3.0), (1, 1, 2), torch.Generator())
    assert isinstance(built, Scaled)
    assert built.fixed(torch.zeros(1, 1, 1, 2)).tolist() == [[3.0, 3.0]]


def test_an_image_is_seen_first_by_what_does_not_depend_on_theta():
    learner = Scaled((1, 1, 2))
    assert learner.n_fixed == 0
    learner.fixed(torch.rand(2, 5, 1, 1, 2))
    assert learner.n_fixed == 1


def test_set_precision_finds_learners_at_any_depth():
    learner, bystander = Scaled((1, 1, 2)), torch.nn.Linear(1, 1)
    set_precision(torch.nn.ModuleDict({"deep": torch.nn.Sequential(learner), "other": bystander}), True)
    assert learner.bf16
    assert not hasattr(bystander, "bf16")


@pytest.mark.parametrize("tasks", [(), (3,), (2, 3)])
def test_each_task_sees_its_own_arguments(tasks):
    def function(theta: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        assert theta.shape == (4,)
        assert x.shape == (5, 2)
        return x @ theta.view(2, 2), theta.sum()

    theta, x = random(*tasks, 4), random(*tasks, 5, 2, seed=1)
    product, total = each_task(function, theta, x)
    torch.testing.assert_close(product, x @ theta.unflatten(-1, (2, 2)))
    torch.testing.assert_close(total, theta.sum(-1))
