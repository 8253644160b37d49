"""Methods that compare queries with the support set."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalstm.episodes import Episode, Labelled, Support
from metalstm.learners import Conv4
from metalstm.methods.base import Adapted, Method, embed, score
from metalstm.recipes import ClassScore

NORM_MOMENTUM = 0.1  # weight of the new batch in the running averages of training


class PixelNearestNeighbor(Method):
    """The class of the single support image whose pixels are nearest, by Euclidean distance.

    The floor that any method that learned something must clear.
    """

    def adapt(self, support: Support) -> Adapted:
        """Keep the support set; `n_way` is carried as a tensor so that everything adapted can be saved."""
        return {"x": support.x.flatten(-3), "y": support.y, "n_way": torch.tensor(support.n_way)}

    def logits(
        self, adapted: Adapted, query_x: Float[Tensor, "*tasks n_query channels height width"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """Minus the distance to the nearest support image of each class."""
        return _best_of_class(-torch.cdist(query_x.flatten(-3), adapted["x"]), adapted)


class Pretrained(Method):
    """A classifier of all meta-train classes; of new ones, the class of the single nearest support image.

    Nearness is the cosine of the features before the classifier. `forward` is the pre-training: it takes mini-batches,
    not episodes, and keeps running averages of the normalisation moments, which serve ever after.

    Args:
        learner: The network.
        n_classes: Meta-train classes.
        generator: Source of the random weights; torch's own by default.

    References:
        Ravi & Larochelle 2017, section 5.2, Baseline-nearest-neighbor.
    """

    moments: Tensor

    def __init__(self, learner: Conv4, n_classes: int, generator: torch.Generator | None = None):
        super().__init__()
        self.learner = learner
        theta = learner.init(n_classes, generator or torch.default_generator)
        self.body = nn.Parameter(theta[: learner.n_body])
        self.head = nn.Parameter(theta[learner.n_body :])
        self.register_buffer("moments", learner.initial_moments())

    def forward(self, batch: Labelled) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Cross-entropy of a mini-batch over all meta-train classes, and accuracy, as `Method.forward`."""
        logits, moments = self.learner(torch.cat([self.body, self.head]), batch.x)
        if self.training:
            _average(self.moments, self.learner.unbiased(moments, len(batch.y)))
        return score(logits, batch.y)

    def embed(self, x: Float[Tensor, "*tasks n channels height width"]) -> Float[Tensor, "*tasks n n_features"]:
        """Features by the running averages of pre-training."""
        return embed(self.learner, self.body, x, self.moments)

    def adapt(self, support: Support) -> Adapted:
        """Keep the features of the support set."""
        with torch.no_grad():
            features = F.normalize(self.embed(support.x), dim=-1)
        return {"features": features, "y": support.y, "n_way": torch.tensor(support.n_way)}

    def logits(
        self, adapted: Adapted, query_x: Float[Tensor, "*tasks n_query channels height width"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """The cosine to the nearest support image of each class."""
        return _best_of_class(F.normalize(self.embed(query_x), dim=-1) @ adapted["features"].mT, adapted)


class MatchingNet(Method):
    """A query is like a class by the cosines of its embedding to those of the class's support images.

    In meta-training the images of an episode, support and queries together, are normalised by their own moments;
    afterwards by the running averages of meta-training, so that no query depends on another.

    Args:
        learner: The network that embeds.
        class_score: `sum` of a class's cosines as its logit, as the authors' code of Ravi & Larochelle does;
            `attention`: softmax over all cosines, summed over a class, as its probability.
        scale: What cosines are multiplied by before the softmax of `attention`.
        fce: Full-context embeddings, by `FullContext`.
        generator: Source of the random weights; torch's own by default.

    References:
        Vinyals et al. 2016, section 2.1, equations 1 and 2.
    """

    moments: Tensor

    def __init__(
        self,
        learner: Conv4,
        class_score: ClassScore = "attention",
        scale: float = 1.0,
        fce: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.learner = learner
        self.class_score: ClassScore = class_score
        self.scale = scale
        self.body = nn.Parameter(learner.init(0, generator or torch.default_generator))
        self.register_buffer("moments", learner.initial_moments())
        self.context = FullContext(learner.n_features, generator=generator) if fce else None

    def forward(self, batch: Episode) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Query loss and accuracy, as `Method.forward`."""
        support, query = batch.support, batch.query
        x = torch.cat([support.x, query.x], -4)
        features, moments = self.learner.features(self.body.expand(*support.y.shape[:-1], -1), x)
        if self.training:
            _average(self.moments, self.learner.unbiased(moments, x.shape[-4]).view(-1, self.learner.n_moments).mean(0))
        support_features, query_features = features.split([support.y.shape[-1], query.y.shape[-1]], -2)
        adapted = self._adapt(support_features, support)
        return score(self._logits(adapted, query_features), query.y)

    def adapt(self, support: Support) -> Adapted:
        """Keep the embeddings of the support set."""
        with torch.no_grad():
            return self._adapt(embed(self.learner, self.body, support.x, self.moments), support)

    def logits(
        self, adapted: Adapted, query_x: Float[Tensor, "*tasks n_query channels height width"]
    ) -> Float[Tensor, "*tasks n_query n_way"]:
        """Class scores as `class_score` says."""
        return self._logits(adapted, embed(self.learner, self.body, query_x, self.moments))

    def _adapt(self, features: Tensor, support: Support) -> Adapted:
        if self.context:
            features = self.context.support(features)
        return {"features": features, "y": support.y, "n_way": torch.tensor(support.n_way)}

    def _logits(self, adapted: Adapted, features: Tensor) -> Tensor:
        if self.context:
            features = self.context.query(features, adapted["features"])
        cosines = F.normalize(features, dim=-1) @ F.normalize(adapted["features"], dim=-1).mT
        members = F.one_hot(adapted["y"], int(adapted["n_way"])).to(cosines)  # (*tasks, n_support, n_way)
        if self.class_score == "sum":
            return cosines @ members
        # The logarithm of a class's attention, up to a constant that is the same for all classes.
        return (self.scale * cosines).unsqueeze(-1).add(members.log().unsqueeze(-3)).logsumexp(-2)


class FullContext(nn.Module):
    """Full-context embeddings: each embedding sees the whole support set.

    The support set goes through a bidirectional LSTM *as a sequence*, so that its order matters: the same support set
    in another order gives other embeddings. The sampler shuffles it. Queries read the support set by attention, which
    has no order.

    Args:
        n_features: Size of an embedding, and of every hidden state.
        steps: K, the reading steps of a query.
        generator: Source of the random weights; torch's own by default.

    References:
        Vinyals et al. 2016, appendix A.1 (query, f) and A.2 (support set, g).
    """

    def __init__(self, n_features: int, steps: int = 3, generator: torch.Generator | None = None):
        super().__init__()
        self.steps = steps
        self.lstm = nn.LSTM(n_features, n_features, batch_first=True, bidirectional=True)
        self.cell = nn.LSTMCell(2 * n_features, n_features)
        for parameter in self.parameters():
            bound = n_features**-0.5
            parameter.data = (2 * torch.rand(parameter.shape, generator=generator) - 1) * bound

    def support(
        self, features: Float[Tensor, "*tasks n_support n_features"]
    ) -> Float[Tensor, "*tasks n_support n_features"]:
        """g(x_i, S) = h_forward_i + h_backward_i + g'(x_i)."""
        states, _ = self.lstm(features.reshape(-1, *features.shape[-2:]))
        return features + states.unflatten(-1, (2, -1)).sum(-2).view(features.shape)

    def query(
        self,
        features: Float[Tensor, "*tasks n_query n_features"],
        support: Float[Tensor, "*tasks n_support n_features"],
    ) -> Float[Tensor, "*tasks n_query n_features"]:
        """f(x, S): K steps of an LSTM; before each it reads g(S) by attention; its input is f'(x) and what was read."""
        h, c = torch.zeros_like(features), torch.zeros_like(features)
        flat = features.shape[-1]
        for _ in range(self.steps):
            read = (h @ support.mT).softmax(-1) @ support  # the mean of g(S) at first, as h is 0
            h, c = self.cell(
                torch.cat([features, read], -1).view(-1, 2 * flat), (h.reshape(-1, flat), c.reshape(-1, flat))
            )
            h, c = h.view(features.shape) + features, c.view(features.shape)
        return h


def _best_of_class(
    likeness: Float[Tensor, "*tasks n_query n_support"], adapted: Adapted
) -> Float[Tensor, "*tasks n_query n_way"]:
    """Likeness to the support image of each class that is most alike."""
    per_class = [
        likeness.masked_fill((adapted["y"] != label).unsqueeze(-2), -torch.inf).amax(-1)
        for label in range(int(adapted["n_way"]))
    ]
    return torch.stack(per_class, -1)


@torch.no_grad()
def _average(moments: Tensor, new: Tensor) -> None:
    """Move running averages towards the moments of a mini-batch."""
    moments.lerp_(new, NORM_MOMENTUM)
