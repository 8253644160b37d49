"""Tip-Adapter's cache."""

from metalstm.heads.base import Head, describe
from metalstm.methods import RunConfig
from metalstm.methods.matching_net import MatchingNet

SHARPNESS = (10.0, 5.0, 20.0, 50.0)  # around the authors' 5.5; features of other networks differ more, or less


class TipAdapterHead(Head):
    """All support features vote for their classes, with weights exp(-beta (1 - cosine)): the cache of Tip-Adapter.

    This is a Matching Network on frozen features, with beta as the scale of cosines. The authors add the answers of
    CLIP's text encoder, which other networks do not have.

    References:
        Zhang et al. 2022 (arXiv 2207.09519), section 3.1.
    """

    label = "Tip-Adapter's cache"

    def candidates(self, n_features: int, n_way: int, n_shot: int) -> list[RunConfig]:
        """One for each beta."""
        return [
            describe("matching-net", n_features, n_way, n_shot, settings=MatchingNet.Settings("attention", beta))
            for beta in SHARPNESS
        ]
