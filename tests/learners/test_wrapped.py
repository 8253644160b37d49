"""Learners that change one thing about another one."""

import pytest
import torch

from metalstm.learners import Conv4, FixedOnce, HeadOnly, Wrapped

SHAPE = (1, 16, 16)


def conv4() -> Conv4:
    return Conv4(SHAPE, Conv4.Settings(filters=4))


def head_only() -> HeadOnly:
    learner = conv4()
    return HeadOnly(learner, learner.init_body(torch.Generator().manual_seed(0)), learner.initial_moments())


@pytest.mark.parametrize("inner", [conv4, head_only])
@pytest.mark.parametrize("kind", [Wrapped, FixedOnce])
def test_what_is_wrapped_computes_the_same(inner, kind):
    learner, generator = inner(), torch.Generator().manual_seed(1)
    wrapped = kind(learner)
    theta, x = learner.init(3, generator), torch.rand(5, *SHAPE, generator=generator)
    with torch.no_grad():
        for moments in (None, learner.initial_moments()):
            expected = learner(theta, learner.fixed(x), moments)
            for one, other in zip(wrapped(theta, wrapped.fixed(x), moments), expected, strict=True):
                assert torch.equal(one, other)
    assert wrapped.layers(3) == learner.layers(3)
    assert (wrapped.lengths, wrapped.n_body, wrapped.n_moments) == (learner.lengths, learner.n_body, learner.n_moments)
    assert wrapped.own_network() == learner.own_network()
    assert torch.equal(wrapped.initial_moments(), learner.initial_moments())
    moments = torch.ones(learner.n_moments)
    assert torch.equal(wrapped.unbiased(moments, 5), learner.unbiased(moments, 5))
    assert torch.equal(*(each.init_body(torch.Generator().manual_seed(2)) for each in (learner, wrapped)))


def test_what_is_fixed_is_computed_once(monkeypatch):
    learner, generator = head_only(), torch.Generator().manual_seed(1)
    images = [torch.rand(1, 5, *SHAPE, generator=generator) for _ in range(2)]
    expected = [learner.fixed(x) for x in images]
    calls = []
    monkeypatch.setattr(HeadOnly, "fixed", lambda self, x, train=False: calls.append(train) or expected[0])
    once = FixedOnce(learner)
    for _ in range(3):
        assert once.fixed(images[0].clone()) is expected[0]  # equal images, not the same tensor
    assert calls == [False]
    once.fixed(images[1])
    assert calls == [False, False]
    once.fixed(images[1], train=True)
    once.fixed(images[1], train=True)
    assert calls == [False, False, True, True]


def test_a_learner_that_fixes_nothing_remembers_nothing():
    once, x = FixedOnce(conv4()), torch.rand(1, 5, *SHAPE)
    assert once.fixed(x) is x
    assert not once._seen
