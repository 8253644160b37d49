"""What is compared with the Meta-LSTM is what it is called."""

import torch

from metalstm.convergence import unforgetting
from metalstm.episodes import Support
from metalstm.learners import Conv4
from metalstm.methods import GradientMethod
from metalstm.optimizers import MetaLSTM


def test_without_forgetting_theta_follows_the_gradient_alone():
    generator = torch.Generator().manual_seed(0)
    optimizer = MetaLSTM(4, generator=generator)
    method = GradientMethod(Conv4((1, 16, 16), 4), optimizer, 3, 4, None, generator=generator).eval()
    support = Support(torch.rand(6, 1, 16, 16, generator=generator), torch.arange(3).repeat(2), 3)
    with torch.no_grad():
        before = [optimizer.gates(step.state)[0] for step in method.trajectory(support)]
        unforgetting(method)
        after = list(method.trajectory(support))
    assert all((f < 1).all() for f in before)
    assert len(after) == 4
    for step in after:
        assert step.theta.isfinite().all()
        assert (optimizer.gates(step.state)[0] == 1).all()
