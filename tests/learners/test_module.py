"""Any module as a learner: its own gradient, its own evaluation mode, and one pass a frozen image."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalstm.learners import FromModule, LearnerSettings
from metalstm.methods import GradientMethod, InnerLoop
from metalstm.methods.meta_lstm import MetaLearnerLSTM
from metalstm.optimizers import SGD, MetaLSTM
from tiny import N_WAY, SHAPE, episode, random


class Net(nn.Module):
    """Convolution, batch normalization, dropout; counts its passes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(1, 3, 3, stride=4), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.5))
        self.last = nn.Conv2d(3, 2, 2)
        self.n_images = self.n_passes = 0
        self.modes: set[bool] = set()
        for name, buffer in self.named_buffers():
            if name.endswith(("mean", "var")):
                buffer.add_(torch.rand(buffer.shape))

    def forward(self, x: Tensor) -> Tensor:
        self.n_images += len(x)
        self.n_passes += 1
        self.modes.add(any(part.training for part in self.modules()))
        return self.last(self.stem(x)).tanh()


def make(frozen: bool = False) -> tuple[FromModule, Any]:
    net = Net().double()
    learner = FromModule(net, SHAPE, frozen)
    net.n_images = net.n_passes = 0
    return learner, net


def method(learner: FromModule, optimizer: Any = None, **settings: Any) -> GradientMethod:
    loop = InnerLoop(epochs=3, batch_size=4, **settings)
    return MetaLearnerLSTM(learner, optimizer or SGD(0.1), N_WAY, loop, torch.Generator().manual_seed(0)).double()


def test_theta_starts_with_the_module_s_parameters():
    learner, net = make()
    theta = learner.init(N_WAY, torch.Generator().manual_seed(0))
    own = dict(net.named_parameters())
    assert list(learner.layout(N_WAY)) == [*own, "head"]
    for name, parameter in own.items():
        place, shape = learner.layout(N_WAY)[name]
        assert torch.equal(theta[place].view(shape), parameter)
    assert list(learner.layers(N_WAY)) == ["stem.0", "stem.1", "last", "head"]
    assert learner.n_features == 2 * 3 * 3
    before = theta.clone()
    theta.add_(1)
    assert torch.equal(learner.init(N_WAY, torch.Generator().manual_seed(0)), before)


def test_forward_and_gradient_are_the_module_s_own():
    learner, net = make()
    theta = (learner.init(N_WAY, torch.Generator().manual_seed(0)) + 0.1 * random(learner.n_body + 57)).requires_grad_()
    x, y = random(6, *SHAPE, seed=1).sigmoid(), torch.arange(6) % N_WAY
    logits, moments = learner(theta, learner.fixed(x))
    (grad,) = torch.autograd.grad(F.cross_entropy(logits, y), theta)
    assert moments.shape == (0,)

    twin, head = Net().double().eval(), nn.Linear(learner.n_features, N_WAY).double()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            place, shape = learner.layout(N_WAY)[name]
            parameter.copy_(theta[place].view(shape))
        rows = theta[learner.n_body :].view(N_WAY, -1)
        head.weight.copy_(rows[:, :-1])
        head.bias.copy_(rows[:, -1])
        for name, buffer in twin.named_buffers():
            buffer.copy_(net.get_buffer(name))
    expected = head(twin(x).flatten(1))
    F.cross_entropy(expected, y).backward()
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    own = [parameter.grad.flatten() for parameter in twin.parameters() if parameter.grad is not None]
    assert head.weight.grad is not None
    assert head.bias.grad is not None
    whole = torch.cat([*own, torch.column_stack([head.weight.grad, head.bias.grad]).flatten()])
    torch.testing.assert_close(grad, whole, rtol=1e-12, atol=1e-12)
    assert whole.norm() > 0.1


@pytest.mark.parametrize("frozen", [True, False])
def test_nothing_depends_on_the_mode(frozen):
    """Dropout and batch normalization stay in evaluation mode, in meta-training too, and statistics do not move."""
    results = []
    for mode in (True, False):
        learner, net = make(frozen)
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        adapting, of = method(learner).train(mode), episode()
        adapted = adapting.adapt(of.support)
        loss, _ = adapting(of)
        results.append((adapted["theta"], adapting.logits(adapted, of.query.x), loss))
        assert net.modes == {False}
        assert all(torch.equal(before[name], now) for name, now in net.state_dict().items())
    assert all(map(torch.equal, *results))


def test_a_frozen_module_embeds_each_image_once_per_episode():
    learner, net = make(frozen=True)
    adapting, of = method(learner), episode()
    n_support, n_query = of.support.y.numel(), of.query.y.numel()
    assert adapting.n_steps(of.support) == 6

    def embedded() -> tuple[int, int]:
        seen = net.n_images, net.n_passes
        net.n_images = net.n_passes = 0
        return seen

    adapted = adapting.adapt(of.support)
    assert embedded() == (n_support, 1)
    adapting.logits(adapted, of.query.x)
    assert embedded() == (n_query, 1)
    adapting(of)
    assert embedded() == (n_support + n_query, 2)
    list(adapting.watch(of.support))
    assert embedded() == (n_support, 1)
    assert not learner.fixed(of.support.x).requires_grad
    assert learner.n_body == 0
    assert all(not parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("order", [1, 2])
def test_the_inner_loop_trains_a_module_by_the_learned_optimizer(order):
    learner, net = make()
    optimizer = MetaLSTM(MetaLSTM.Settings(hidden_size=3), learner.lengths, torch.Generator().manual_seed(1))
    adapting, of = method(learner, optimizer, order=order), episode()
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    loss, _ = adapting(of)
    loss.backward()
    for name, parameter in adapting.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
    gates = adapting.gates(of.support)
    assert gates is not None
    assert list(gates) == ["stem.0", "stem.1", "last", "head"]
    assert all(torch.equal(before[name], parameter) for name, parameter in net.named_parameters())
    # The module's own parameters are only where theta started: the outer loop trains body_0.
    grouped = {id(parameter) for group in adapting.parameter_groups().values() for parameter in group}
    assert not grouped & {id(parameter) for parameter in net.parameters()}


def test_sgd_on_a_module_is_sgd_on_the_module():
    """Three epochs of torch's own SGD on a twin give what the inner loop gives."""
    learner, net = make()
    adapting, of = method(learner), episode(())
    twin = Net().double().eval()
    twin.load_state_dict(net.state_dict())
    head = nn.Linear(learner.n_features, N_WAY).double()
    with torch.no_grad():
        rows = adapting.head_0
        head.weight.copy_(rows[:, :-1])
        head.bias.copy_(rows[:, -1])
        for parameter, (place, shape) in zip(twin.parameters(), learner.layout(N_WAY).values(), strict=False):
            parameter.copy_(adapting.body_0[place].view(shape))
    optimizer = torch.optim.SGD([*twin.parameters(), *head.parameters()], 0.1)
    for x, y in list(zip(of.support.x.split(4), of.support.y.split(4), strict=True)) * 3:
        optimizer.zero_grad()
        F.cross_entropy(head(twin(x).flatten(1)), y).backward()
        optimizer.step()
    adapted = adapting.adapt(of.support)
    torch.testing.assert_close(
        adapting.logits(adapted, of.query.x), head(twin(of.query.x).flatten(1)), rtol=1e-10, atol=1e-12
    )


def test_a_subclass_is_a_network_whose_weights_the_generator_decides():
    class Mine(FromModule):
        @classmethod
        def network(cls, settings: Any, image_shape: Any) -> nn.Module:
            return nn.Conv2d(image_shape[0], 2, 8, stride=8)

    def built(seed: int) -> Tensor:
        learner = Mine.build(LearnerSettings(), SHAPE, torch.Generator().manual_seed(seed))
        assert isinstance(learner, Mine)
        assert (learner.n_features, learner.n_body) == (8, 130)
        return learner.init_body(torch.Generator())

    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert torch.equal(built(0), built(0))
    assert not torch.equal(built(0), built(1))
    assert torch.equal(torch.get_rng_state(), before), "torch's own generator is left as it was"


def test_without_a_network_there_is_nothing_to_build():
    with pytest.raises(NotImplementedError, match=r"^FromModule has no network: define it, or build the learner from"):
        FromModule.build(LearnerSettings(), SHAPE, torch.Generator())
