"""Matching Networks against slow references that are plainly right, in float64."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalstm.episodes import Episode, Query, Support
from metalstm.learners import Conv4
from metalstm.methods.matching_net import FullContext, MatchingNet, MatchingNetFCE
from metalstm.settings import Traits
from tiny import SHAPE, random


def support(n_way: int = 3, n_shot: int = 2, seed: int = 0) -> Support:
    y = torch.arange(n_way).repeat(n_shot)
    return Support(random(n_way * n_shot, *SHAPE, seed=seed).sigmoid() + 0.3 * y[:, None, None, None], y, n_way)


def net(kind: type[MatchingNet] = MatchingNet, dropout: float = 0.0, **settings: Any) -> MatchingNet:
    learner = Conv4(SHAPE, Conv4.Settings(filters=4, dropout=dropout))
    return kind(learner, MatchingNet.Settings(**settings), torch.Generator().manual_seed(0)).double()


# Matching Networks ----------------------------------------------------------------------------------------------------


def embeddings(method: MatchingNet, given: Support, query_x: Tensor) -> tuple[Tensor, Tensor]:
    embed = [method.learner.features(method.body, x, method.moments)[0] for x in (given.x, query_x)]
    return embed[0], embed[1]


def cosine(one: Tensor, other: Tensor) -> float:
    return (one @ other / one.norm() / other.norm()).item()


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_attention_is_a_softmax_over_cosines_summed_over_a_class(scale):
    """Vinyals et al. 2016, equations 1 and 2."""
    method, given, query_x = net(class_score="attention", scale=scale), support(), random(4, *SHAPE, seed=1).sigmoid()
    with torch.no_grad():
        probabilities = method.logits(method.adapt(given), query_x).softmax(-1)
        images, queries = embeddings(method, given, query_x)
    for query, probability in zip(queries, probabilities, strict=True):
        weights = [math.exp(scale * cosine(query, image)) for image in images]
        for label in range(3):
            share = sum(w for w, y in zip(weights, given.y, strict=True) if y == label) / sum(weights)
            assert probability[label].item() == pytest.approx(share, abs=1e-12)


def test_sum_adds_the_cosines_of_a_class():
    method, given, query_x = net(class_score="sum"), support(), random(4, *SHAPE, seed=1).sigmoid()
    with torch.no_grad():
        logits = method.logits(method.adapt(given), query_x)
        images, queries = embeddings(method, given, query_x)
    for query, scores in zip(queries, logits, strict=True):
        for label in range(3):
            total = sum(cosine(query, image) for image, y in zip(images, given.y, strict=True) if y == label)
            assert scores[label].item() == pytest.approx(total, abs=1e-12)


def test_dropout_acts_in_meta_training_alone():
    method = net(dropout=0.5)
    episode = Episode(support(), Query(support(seed=3).x, support().y))
    torch.manual_seed(0)
    first, again = method(episode)[0], method(episode)[0]
    assert first != again
    torch.manual_seed(0)
    assert method(episode)[0] == first
    logits = [method.logits(method.adapt(episode.support), episode.query.x) for _ in range(2)]
    assert torch.equal(*logits)


def test_the_recipes_say_how_cosines_become_scores():
    paper, best = (MatchingNet.recipe(name, Traits(), 5) for name in ("paper", "best"))
    assert (paper.settings.class_score, paper.learner_settings.dropout) == ("sum", 0.1)
    assert (best.settings.class_score, best.settings.scale) == ("attention", 10.0)
    assert MatchingNetFCE.recipe("paper", Traits(), 5) == paper
    assert MatchingNetFCE.recipe("best", Traits(), 5) == best


# Full-context embeddings ----------------------------------------------------------------------------------------------


def gates(weight_x: Tensor, weight_h: Tensor, bias: Tensor, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """A step of an LSTM, gates in the order of torch.nn.LSTM."""
    i, f, g, o = (weight_x @ x + weight_h @ h + bias).chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def reference_support(lstm: nn.LSTM, images: Tensor) -> Tensor:
    """Vinyals et al. 2016, appendix A.2: the backward pass meets image i after all that come later."""
    n, size = images.shape
    states = {}
    for suffix, order in (("", range(n)), ("_reverse", reversed(range(n)))):
        w, u, b, d = (getattr(lstm, f"{kind}_l0{suffix}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        h = c = images.new_zeros(size)
        for k in order:
            h, c = gates(w, u, b + d, images[k], h, c)
            states[suffix, k] = h
    return torch.stack([states["", k] + states["_reverse", k] + images[k] for k in range(n)])


def reference_query(cell: nn.LSTMCell, query: Tensor, support: Tensor, steps: int) -> Tensor:
    """Appendix A.1, equations 2 to 6: the hidden state is the concatenation of h and what was read."""
    size = len(query)
    from_query, from_read = cell.weight_ih.split(size, 1)
    h, c = query.new_zeros(size), query.new_zeros(size)
    for _ in range(steps):
        weights = torch.stack([(h @ image).exp() for image in support])
        read = (weights / weights.sum()) @ support
        recurrent, state = torch.cat([cell.weight_hh, from_read], 1), torch.cat([h, read])
        hidden, c = gates(from_query, recurrent, cell.bias_ih + cell.bias_hh, query, state, c)
        h = hidden + query
    return h


@pytest.mark.parametrize("tasks", [(), (2,)])
def test_full_context_embeddings_are_those_of_the_appendix(tasks):
    context = FullContext(5, generator=torch.Generator().manual_seed(0)).double()
    images, queries = random(*tasks, 6, 5), random(*tasks, 4, 5, seed=1)
    g = context.support(images)
    f = context.query(queries, g)
    for here in [()] if not tasks else [(k,) for k in range(*tasks)]:
        torch.testing.assert_close(g[here], reference_support(context.lstm, images[here]))
        expected = [reference_query(context.cell, query, g[here], 3) for query in queries[here]]
        torch.testing.assert_close(f[here], torch.stack(expected))


def test_the_order_of_the_support_set_matters_with_full_context_alone():
    given, query_x = support(), random(4, *SHAPE, seed=1).sigmoid()
    turned = Support(given.x.flip(0), given.y.flip(0), given.n_way)
    for kind, fce in ((MatchingNet, False), (MatchingNetFCE, True)):
        method = net(kind)
        with torch.no_grad():
            one, other = (method.logits(method.adapt(each), query_x) for each in (given, turned))
        assert torch.allclose(one, other, atol=1e-9) is not fce


def test_reading_the_support_set_has_no_order():
    context = FullContext(5, generator=torch.Generator().manual_seed(0)).double()
    g, queries = random(6, 5), random(4, 5, seed=1)
    torch.testing.assert_close(context.query(queries, g), context.query(queries, g.flip(0)))


def test_reversed_support_reverses_the_two_directions():
    """With both directions alike, the embedding of an image does not depend on which way round the set is read."""
    context = FullContext(5, generator=torch.Generator().manual_seed(0)).double()
    for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(context.lstm, f"{kind}_l0_reverse").data = getattr(context.lstm, f"{kind}_l0").data.clone()
    images = random(6, 5)
    torch.testing.assert_close(context.support(images.flip(0)).flip(0), context.support(images))


def test_full_context_is_in_training_too():
    """The loss is that of the whole: the features of the episode, in its context, compared."""
    method, given = net(MatchingNetFCE), support()
    query = Query(random(6, *SHAPE, seed=2).sigmoid(), torch.arange(3).repeat(2))
    loss, _ = method(Episode(given, query))
    features, _ = method.learner.features(method.body, torch.cat([given.x, query.x]))
    context = method.get_submodule("context")
    assert isinstance(context, FullContext)
    g = context.support(features[:6])
    f = context.query(features[6:], g)
    cosines = F.normalize(f, dim=-1) @ F.normalize(g, dim=-1).T
    shares = torch.stack([cosines.softmax(-1)[:, given.y == label].sum(-1) for label in range(3)], -1)
    torch.testing.assert_close(loss, F.nll_loss(shares.log(), query.y))
