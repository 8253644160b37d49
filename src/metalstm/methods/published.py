"""Figures of methods that others published, which the table shows beside its own."""

from collections.abc import Mapping
from dataclasses import dataclass

RAVI = "Ravi & Larochelle 2017"
BERTINETTO = "Bertinetto et al. 2019 (arXiv 1805.08136)"
LEE = "Lee et al. 2019 (arXiv 1904.03758)"
BAIK = "Baik et al. 2020 (arXiv 2011.00209)"
TIAN = "Tian et al. 2020 (arXiv 2003.11539), as a survey reports them for Conv4"


@dataclass(frozen=True)
class Published:
    """Figures of a method that others published, for networks of four convolutions.

    Attributes:
        data: The data set.
        figures: Accuracy in percent, and half the width of its 95 % interval where it is known, by task: `5w1s`, say.
        source: Who published them, and where.
        transductive: Whether answers depended on other queries.
        note: What else is special, for example "self-distilled".
    """

    data: str
    figures: Mapping[str, tuple[float, ...]]
    source: str
    transductive: bool = False
    note: str = ""


def five_way(
    data: str, one_shot: float, five_shot: float, source: str, transductive: bool = False, note: str = ""
) -> Published:
    """Figures without intervals, 5-way with 1 and with 5 shots; arguments as the attributes of `Published`."""
    return Published(data, {"5w1s": (one_shot,), "5w5s": (five_shot,)}, source, transductive, note)


def table_1(one_shot: tuple[float, float], five_shot: tuple[float, float]) -> Published:
    """A line of the table that this package makes on other data: Ravi & Larochelle's, mini-ImageNet."""
    return Published("mini-imagenet", {"5w1s": one_shot, "5w5s": five_shot}, RAVI)
