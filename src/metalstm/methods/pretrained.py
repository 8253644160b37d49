"""Nearest neighbor on the features of a classifier of all meta-train classes: the pre-training of other methods."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalstm.data import ImagesByClass
from metalstm.episodes import BatchSampler, Labeled, Support
from metalstm.learners import Conv4, Learner
from metalstm.methods.base import Adapted, Network, Recipe, Row, RunConfig, copy_network, score
from metalstm.methods.features import OnFeatures
from metalstm.methods.pixels import best_of_class
from metalstm.methods.published import table_1
from metalstm.optimizers import InnerOptimizer
from metalstm.settings import Count, NotNegative, Share, TrainingSettings, Traits


class Pretrained(OnFeatures):
    """A classifier of all meta-train classes; for new classes, the class of the single nearest support image.

    Nearness is the cosine of the features before the classifier. `forward` is the pre-training: it takes mini-batches,
    not episodes.

    Args:
        learner: The network.
        n_classes: Meta-train classes.
        settings: As below.
        generator: Source of the random weights; torch's own by default.
        taught: Whether it is to learn from another network, which `start_from` gives.

    References:
        Ravi & Larochelle 2017, section 5.2, Baseline-nearest-neighbor; Gidaris et al. 2019 (arXiv 1906.05186) for the
        turned images; Tian et al. 2020 (arXiv 2003.11539), section 3.3, for self-distillation.
    """

    @dataclass(frozen=True)
    class Settings:
        """Pre-training."""

        batch_size: Count = 64
        """Images in a mini-batch."""
        smoothing: Share = 0.0
        """Label smoothing: the share of each target that is spread over all classes."""
        turns: NotNegative = 0.0
        """Weight of a second loss: by which multiple of 90 degrees was an image turned? It doubles the work."""
        distill: Share = 0.5
        """From the second of several generations on: the share of the answers of the one before in the loss."""
        averaging: Share = 0.0
        """Take running averages of the weights for the network, of which each step keeps this share; 0 takes the last
        weights themselves."""

    teacher_theta: Tensor
    teacher_moments: Tensor
    average_theta: Tensor
    average_moments: Tensor

    label = "Nearest neighbor"
    phase = "pre-training"
    unit = ("mini-batch", "mini-batches")
    temperature = 4.0  # by which logits are divided when a network learns from another's

    def __init__(
        self,
        learner: Learner,
        n_classes: int,
        settings: Settings = Settings(),
        generator: torch.Generator | None = None,
        taught: bool = False,
    ):
        super().__init__(learner, settings, generator)
        generator = generator or torch.default_generator
        self.head = nn.Parameter(learner.init_head(n_classes, generator))
        self.turns_head = nn.Parameter(learner.init_head(4, generator)) if self.settings.turns else None
        self.taught = taught
        theta = torch.cat([self.body, self.head]).detach()
        for name in ["teacher"] * taught + ["average"] * (self.settings.averaging > 0):
            self.register_buffer(f"{name}_theta", theta.clone())
            self.register_buffer(f"{name}_moments", learner.initial_moments())

    @classmethod
    def build(
        cls, config: RunConfig, learner: Learner, optimizer: InnerOptimizer | None, generator: Any
    ) -> "Pretrained":
        """The classifier of as many classes as the data have, four times as many with rotations."""
        n_classes = config.n_classes * (4 if config.training.rotations else 1)
        return cls(learner, n_classes, config.settings, generator, taught=config.training.pretrain > 0)

    @classmethod
    def recipe(cls, name: str, traits: Traits, n_shot: int) -> Recipe:
        """`paper`: the authors'. `best`: what measured best for nearest class means on meta-val.

        That is gradient descent with momentum and weight decay and a falling rate, the mean of each filter for the last
        pooling, and the changes of images that the data set allows; each departure is one field.
        """
        paper = Recipe(
            cls.Settings(), TrainingSettings(episodes=30_000, clip=None), "conv4", Conv4.Settings(filters=64)
        )
        if name == "paper":
            return paper
        learner = replace(
            paper.learner_settings, conv_bias=False, unit_gamma=True, pooling="average", mirror=traits.mirrors
        )
        changes: dict[str, Any] = {"affine": 0.1, "elastic": 0.5} if traits.drawing else {"crop": 4}
        training = replace(
            paper.training,
            outer="sgd",
            lr=0.05,
            lr_decay=True,
            weight_decay=5e-4,
            pretrain=paper.training.episodes,
            generations=2,
            val_every=5000,
            val_episodes=300,
            rotations=traits.rotations,
            mirrors=traits.mirrors,
            **changes,
        )
        return replace(paper, learner_settings=learner, training=training)

    @classmethod
    def rows(cls) -> tuple[Row, ...]:
        """One."""
        return (Row("nearest-neighbor", cls.label, published=(table_1((41.08, 0.70), (51.04, 0.65)),)),)

    @classmethod
    def sampler(cls, images: ImagesByClass, config: RunConfig, device: torch.device | str) -> BatchSampler:
        """Mini-batches of all classes."""
        return BatchSampler(images, config.settings.batch_size, config.seed, device)

    def forward(self, batch: Labeled) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Cross-entropy of a mini-batch over all meta-train classes, and accuracy, as `Method.forward`."""
        x = self.learner.fixed(batch.x, train=True)
        theta = torch.cat([self.body, self.head])
        logits, moments = self.learner(theta, x, train=True)
        self.average(moments, len(batch.y))
        loss, accuracy = score(logits, batch.y)
        if self.settings.smoothing:
            loss = F.cross_entropy(logits, batch.y, label_smoothing=self.settings.smoothing)
        if self.taught:
            loss = loss.lerp(self._distance_to_teacher(x, logits), self.settings.distill)
        if self.turns_head is not None:
            loss = loss + self.settings.turns * self._turns_loss(batch.x, self.turns_head)
        if self.settings.averaging:
            for average, now in ((self.average_theta, theta), (self.average_moments, self.moments)):
                average.lerp_(now.detach(), 1 - self.settings.averaging)
        return loss, accuracy

    def _distance_to_teacher(self, x: Tensor, logits: Float[Tensor, "n n_classes"]) -> Tensor:
        """The divergence of softened answers from those of the teacher, scaled as cross-entropy is."""
        with torch.no_grad():
            answers, _ = self.learner(self.teacher_theta, x, self.teacher_moments, train=True)
        log_p, log_q = ((each / self.temperature).log_softmax(-1) for each in (answers, logits))
        return self.temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

    def _turns_loss(self, x: Float[Tensor, "n channels height width"], head: Tensor) -> Tensor:
        """Cross-entropy of the answers by which multiple of 90 degrees each image was turned, drawn at random."""
        turns = torch.randint(4, (len(x),), device=x.device)
        turned = torch.stack([image.rot90(int(k), (-2, -1)) for image, k in zip(x, turns, strict=True)])
        logits, _ = self.learner(torch.cat([self.body, head]), self.learner.fixed(turned, train=True), train=True)
        return F.cross_entropy(logits, turns)

    def start_from(self, network: Network) -> None:
        """Take over the network as the teacher, where there is to be one.

        Raises:
            UserError: It has no head, or another shape.
        """
        if self.taught and network.head is not None:
            whole = Network(torch.cat([network.body, network.head]), network.moments)
            copy_network(whole, self.teacher_theta, self.teacher_moments)
        else:
            super().start_from(network)

    def network(self) -> Network:
        """The body, its moments, and the classifier; of the averaged weights, if they are averaged."""
        if not self.settings.averaging:
            return Network(self.body.detach(), self.moments, self.head.detach())
        body, head = self.average_theta.split([len(self.body), len(self.head)])
        return Network(body, self.average_moments, head)

    def fit(self, features: Float[Tensor, "*tasks n_support n_features"], support: Support) -> Adapted:
        """Keep the features."""
        return {
            "features": F.normalize(features, dim=-1),
            "y": support.y,
            "n_way": torch.tensor(support.n_way),  # a tensor, so that everything adapted can be saved
        }

    def check_adapted(self, adapted: Adapted, n_way: int) -> None:
        """Features of the learner, and as many labels."""
        self.check_kept_features(adapted, n_way)

    def scores(
        self, adapted: Adapted, features: Float[Tensor, "*tasks n_query n_features"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """The cosine to the nearest support image of each class."""
        return best_of_class(F.normalize(features, dim=-1) @ adapted["features"].mT, adapted)

    def spent(self) -> set[str]:
        """The classifier of meta-train classes, and what else helped in training."""
        return {"head", *(name for name in self.state_dict() if name.startswith(("turns_head", "teacher_")))}


def on_pretrained(name: str, traits: Traits) -> Recipe:
    """The recipe of a method that takes the pre-trained network as it is and meta-trains nothing."""
    own = Pretrained.recipe(name, traits, 1)
    training = TrainingSettings(
        episodes=0,
        pretrain=own.training.episodes,
        generations=own.training.generations,
        rotations=own.training.rotations,
        mirrors=own.training.mirrors,
    )
    return Recipe(training=training, learner=own.learner, learner_settings=own.learner_settings)


def meta_trained(traits: Traits) -> Recipe:
    """The recipe that methods on features share: 10,000 episodes from the pre-trained network of all other methods."""
    start = on_pretrained("best", traits)
    training = replace(
        start.training,
        episodes=10_000,
        lr_decay=True,
        clip=None,
        val_episodes=300,
        pretrain=0 if traits.built_in else start.training.pretrain,
    )
    return replace(start, training=training)
