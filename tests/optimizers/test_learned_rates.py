"""A learned table of rates, with and without a learned forget gate."""

import torch

from metalstm.learners import Conv4
from metalstm.optimizers import LearnedRates
from tiny import SHAPE, random

LEARNER = Conv4(SHAPE, Conv4.Settings(filters=2))
N = LEARNER.n_body + 12


def run(optimizer: LearnedRates, n_steps: int = 4) -> tuple[torch.Tensor, list[torch.Tensor]]:
    theta = random(2, N)
    state, gates = optimizer.init(theta), []
    for t in range(n_steps):
        theta, state = optimizer.update(theta, 0.3 * random(2, N, seed=t), theta.mean(-1), state)
        gates.append(optimizer.gates(state))
    return theta, gates


def test_with_f_at_1_it_is_lslr():
    plain, gated = (LearnedRates(LEARNER, 3, 0.2, forget_gate).double() for forget_gate in (False, True))
    assert plain.state_dict().keys() == {"rates"}, "checkpoints of before have no more"
    assert gated.state_dict().keys() == {"rates", "keeps"}
    (theta, gates), (other, others) = run(plain), run(gated)
    assert torch.equal(theta, other)
    assert all(map(torch.equal, gates, others))
    assert all((each[0] == 1).all() for each in gates)


def test_each_layer_and_step_has_an_f_and_a_rate_and_later_steps_the_last_ones():
    optimizer = LearnedRates(LEARNER, 2, 0.2, forget_gate=True).double()
    with torch.no_grad():
        for k, table in enumerate(optimizer.parameters()):
            table.copy_(0.5 + random(*table.shape, seed=k).abs())
    rates, keeps = optimizer.parameters()
    theta, gates = run(optimizer)
    expected = random(2, N)
    lengths = [*LEARNER.lengths, 12]
    for t in range(4):
        i, f = (torch.cat([v.expand(n) for v, n in zip(table[min(t, 1)], lengths, strict=True)])
                for table in (rates, keeps))  # fmt: skip
        torch.testing.assert_close(gates[t], torch.stack([f, i])[:, None].expand(2, 2, N))
        expected = f * expected - i * 0.3 * random(2, N, seed=t)
    torch.testing.assert_close(theta, expected)
