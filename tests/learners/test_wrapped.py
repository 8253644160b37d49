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


def test_what_is_fixed_is_computed_once_for_each_image(monkeypatch):
    learner, x = head_only(), torch.rand(2, 5, *SHAPE, generator=torch.Generator().manual_seed(1))
    expected, fixed, counts = learner.fixed(x), HeadOnly.fixed, []

    def counted(self, x, train=False):
        counts.append((len(x), train))
        return fixed(self, x, train)

    monkeypatch.setattr(HeadOnly, "fixed", counted)
    once = FixedOnce(learner)
    torch.testing.assert_close(once.fixed(x[:, :3]), expected[:, :3])
    torch.testing.assert_close(once.fixed(x.clone()), expected)  # equal images, not the same tensor
    torch.testing.assert_close(once.fixed(x.flip(1)), expected.flip(1))
    torch.testing.assert_close(once.fixed(torch.cat([x[0, :1], x[0, :1]])), expected[0, [0, 0]])
    assert counts == [(6, False), (4, False)]
    once.fixed(x, train=True)
    once.fixed(x, train=True)
    assert counts[2:] == [(2, True)] * 2


def test_a_learner_that_fixes_nothing_remembers_nothing():
    once, x = FixedOnce(conv4()), torch.rand(1, 5, *SHAPE)
    assert once.fixed(x) is x
    assert not once._seen
