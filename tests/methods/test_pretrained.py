"""The classifier of all meta-train classes, and the nearest neighbor on its features, in float64."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from metalstm import recipes
from metalstm.episodes import BatchSampler, Labeled
from metalstm.errors import UserError
from metalstm.learners import Conv4
from metalstm.methods import METHODS
from metalstm.methods.pretrained import Pretrained
from tiny import SHAPE, config, episode, images, random


def make(smoothing: float = 0.0, **settings) -> Pretrained:
    learner = Conv4(SHAPE, Conv4.Settings(filters=4, **settings))
    own = Pretrained.Settings(smoothing=smoothing)
    return Pretrained(learner, 7, own, torch.Generator().manual_seed(0)).double()


BATCH = Labeled(random(6, *SHAPE).sigmoid(), torch.tensor([0, 1, 2, 3, 4, 6]))


def test_the_class_is_that_of_the_single_support_image_with_the_highest_cosine():
    method, given, query_x = make(), episode(()).support, random(5, *SHAPE, seed=1).sigmoid()
    with torch.no_grad():
        labels = method.logits(method.adapt(given), query_x).argmax(-1)
        one, other = (method.learner.features(method.body, x, method.moments)[0] for x in (query_x, given.x))
    for query, label in zip(one, labels, strict=True):
        cosines = [torch.dot(query, image) / query.norm() / image.norm() for image in other]
        assert label == given.y[cosines.index(max(cosines))]


def test_pre_training_is_cross_entropy_over_all_classes_and_keeps_running_moments():
    method = make()
    before = method.moments.clone()
    loss, accuracy = method(BATCH)
    logits, moments = method.learner(torch.cat([method.body, method.head]), BATCH.x)
    assert logits.shape == (6, 7)
    torch.testing.assert_close(loss, F.cross_entropy(logits, BATCH.y))
    assert accuracy == (logits.argmax(-1) == BATCH.y).float().mean()
    expected = 0.9 * before + 0.1 * method.learner.unbiased(moments, 6)
    torch.testing.assert_close(method.moments, expected.detach())


def test_running_moments_are_those_of_torch():
    """Of the first block, after two mini-batches."""
    method = make()
    norm = torch.nn.BatchNorm2d(4, eps=1e-3, momentum=0.1).double()
    place, shape = method.learner.layout(7)["conv1.weight"]
    bias, _ = method.learner.layout(7)["conv1.bias"]
    for seed in (0, 1):
        batch = Labeled(random(6, *SHAPE, seed=seed).sigmoid(), BATCH.y)
        method(batch)
        norm(F.conv2d(batch.x, method.body[place].view(shape).permute(0, 3, 1, 2), method.body[bias], padding=1))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(method.moments[:4], norm.running_mean)
    torch.testing.assert_close(method.moments[4:8], norm.running_var)


def test_label_smoothing_spreads_a_share_of_the_target_over_all_classes():
    method = make(smoothing=0.3)
    loss, _ = method(BATCH)
    logits, _ = method.learner(torch.cat([method.body, method.head]), BATCH.x)
    targets = 0.7 * F.one_hot(BATCH.y, 7) + 0.3 / 7
    torch.testing.assert_close(loss, -(targets * logits.log_softmax(-1)).sum(-1).mean())


def test_mini_batches_are_of_the_size_that_is_set():
    run = config("pretrained", batch_size=5)
    sampler = METHODS["pretrained"].sampler(images(4, 3), run, "cpu")
    assert isinstance(sampler, BatchSampler)
    assert sampler[0].x.shape == (5, *SHAPE)
    assert sampler[0].y.max() < 4


@pytest.mark.parametrize(("rotations", "n_classes"), [(False, 9), (True, 36)])
def test_turned_images_are_classes_of_their_own(rotations, n_classes):
    run = recipes.with_changes(config("pretrained"), {"rotations": rotations})
    method = recipes.build(replace(run, n_classes=9))
    assert isinstance(method, Pretrained)
    assert method.head.numel() == n_classes * (method.learner.n_features + 1)


def test_the_classifier_is_not_needed_for_new_classes():
    assert make().spent() == {"head"}


def test_a_method_is_pre_trained_as_the_network_that_it_starts_from():
    """Same network, without what would harm a classifier; as long as `pretrain` says."""
    run = config("meta-lstm", pretrain=123, minutes=7.0, learner="conv4")
    start = recipes.pretraining(run)
    assert (start.method, start.optimizer, start.training.episodes, start.training.minutes) == (
        "pretrained",
        "",
        123,
        3.5,  # half of the minutes
    )
    assert start.learner_settings == Conv4.for_pretraining(run.learner_settings)
    assert not start.learner_settings.unit_features
    assert recipes.build(start).network().body.shape == recipes.build(run).network().body.shape


def test_a_second_generation_learns_from_the_answers_of_the_first():
    """Half of the loss is 16 times the divergence of answers at temperature 4, computed here from its definition."""
    learner = Conv4(SHAPE, Conv4.Settings(filters=4))
    teacher = Pretrained(learner, 7, generator=torch.Generator().manual_seed(1)).double()
    teacher(BATCH)  # moves its moments
    own = Pretrained.Settings(distill=0.5)
    method = Pretrained(learner, 7, own, torch.Generator().manual_seed(0), taught=True).double()
    method.start_from(teacher.network())
    loss, _ = method(BATCH)
    answers, _ = learner(torch.cat([teacher.body, teacher.head]), BATCH.x, teacher.moments)
    logits, _ = learner(torch.cat([method.body, method.head]), BATCH.x)
    p, q = (answers / 4).softmax(-1), (logits / 4).softmax(-1)
    divergence = (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(loss, 0.5 * F.cross_entropy(logits, BATCH.y) + 0.5 * 16 * divergence)
    loss.backward()
    torch.testing.assert_close(method.teacher_theta, torch.cat([teacher.body, teacher.head]).detach())


def test_generations_start_from_one_another():
    run = config("meta-lstm", pretrain=5, generations=3, learner="conv4")
    chain = [run]
    while chain[-1].training.pretrain:
        chain.append(recipes.pretraining(chain[-1]))
    assert [each.training.generations for each in chain] == [3, 3, 2, 1]
    assert [each.training.episodes for each in chain[1:]] == [5, 5, 5]
    assert [recipes.build(each).taught for each in chain[1:]] == [True, True, False]


def test_a_first_generation_has_none_to_start_from():
    """It is refused before it has a teacher trained that its folder could not say how."""
    with pytest.raises(UserError) as error:
        recipes.pretraining(config("pretrained", pretrain=5, generations=1))
    assert str(error.value) == "--generations 1: no generation comes before the first: pass --pretrain 0 too"
    assert recipes.pretraining(config("pretrained", pretrain=0, generations=1)).method == "pretrained"


def test_turned_images_add_the_loss_of_telling_how_far_they_were_turned():
    learner = Conv4(SHAPE, Conv4.Settings(filters=4))
    method = Pretrained(learner, 7, Pretrained.Settings(turns=0.5), torch.Generator().manual_seed(0)).double()
    torch.manual_seed(0)
    loss, _ = method(BATCH)
    torch.manual_seed(0)
    turns = torch.randint(4, (6,))
    turned = torch.stack([x.rot90(int(k), (1, 2)) for x, k in zip(BATCH.x, turns, strict=True)])
    logits, _ = learner(torch.cat([method.body, method.head]), BATCH.x)
    assert method.turns_head is not None
    answers, _ = learner(torch.cat([method.body, method.turns_head]), turned)
    torch.testing.assert_close(loss, F.cross_entropy(logits, BATCH.y) + 0.5 * F.cross_entropy(answers, turns))


def test_averaged_weights_are_those_that_others_start_from():
    learner = Conv4(SHAPE, Conv4.Settings(filters=4))
    method = Pretrained(learner, 7, Pretrained.Settings(averaging=0.75), torch.Generator().manual_seed(0)).double()
    first = method.body.detach().clone()
    method(BATCH)
    with torch.no_grad():
        method.body.add_(1)
    method(BATCH)
    network = method.network()
    torch.testing.assert_close(network.body, first + 0.25)
    assert network.head is not None
    torch.testing.assert_close(network.head, method.head.detach())
    torch.testing.assert_close(network.moments, method.average_moments)
    assert not torch.equal(network.moments, method.moments)
    x = random(2, *SHAPE).sigmoid()
    torch.testing.assert_close(method.embed(x), learner.features(network.body, x, network.moments)[0])
