"""Nearest neighbor in pixels against a plain search."""

import pytest
import torch

from metalstm.errors import UserError
from metalstm.methods import Network
from metalstm.methods.pixels import PixelNearestNeighbor, best_of_class
from tiny import N_WAY, SHAPE, episode, random


@pytest.mark.parametrize("tasks", [(), (2,)])
def test_the_class_is_that_of_the_nearest_support_image(tasks):
    method, of = PixelNearestNeighbor(), episode(tasks)
    logits = method.logits(method.adapt(of.support), of.query.x)
    pairs = zip(
        of.query.x.reshape(-1, of.query.y.shape[-1], *SHAPE), of.support.x.reshape(-1, of.support.y.shape[-1], *SHAPE),
        of.support.y.reshape(-1, of.support.y.shape[-1]), logits.reshape(-1, *logits.shape[-2:]), strict=True,
    )  # fmt: skip
    for queries, images, y, scores in pairs:
        for query, row in zip(queries, scores, strict=True):
            distances = [(query - image).square().sum().sqrt() for image in images]
            assert row.argmax() == y[distances.index(min(distances))]
            for label in range(N_WAY):
                nearest = min(d for d, of_image in zip(distances, y, strict=True) if of_image == label)
                torch.testing.assert_close(row[label], -nearest, rtol=1e-9, atol=1e-9)


def test_the_best_of_a_class_without_images_is_minus_infinity():
    adapted = {"y": torch.tensor([0, 2, 2]), "n_way": torch.tensor(3)}
    likeness = random(4, 3)
    result = best_of_class(likeness, adapted)
    assert torch.equal(result[:, 0], likeness[:, 0])
    assert (result[:, 1] == -torch.inf).all()
    assert torch.equal(result[:, 2], likeness[:, 1:].amax(-1))


def test_it_has_nothing_to_train():
    method = PixelNearestNeighbor()
    assert not method.meta_trained
    assert not list(method.parameters())
    assert not method.state_dict()
    with pytest.raises(UserError, match=r"^Nearest neighbor, pixels has no network that could be pre-trained: pass"):
        method.start_from(Network(torch.zeros(3), torch.zeros(0)))
    with pytest.raises(UserError, match=r"^no other method can start from Nearest neighbor, pixels: pre-train with"):
        method.network()
