"""Learn to learn from a few images: the Meta-Learner LSTM of Ravi & Larochelle (ICLR 2017).

The names below are imported when they are first used, so that `metalstm --help` does not wait for torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metalstm.checkpoint import load_method as load_method
    from metalstm.classifier import Classifier as Classifier
    from metalstm.data import load as load_data
    from metalstm.episodes import EpisodeSampler as EpisodeSampler
    from metalstm.evaluation import evaluate as evaluate

__version__ = version("metalstm")
__all__ = ["Classifier", "EpisodeSampler", "evaluate", "load_data", "load_method"]

_HOMES = {
    "Classifier": ("metalstm.classifier", "Classifier"),
    "load_method": ("metalstm.checkpoint", "load_method"),
    "load_data": ("metalstm.data", "load"),
    "EpisodeSampler": ("metalstm.episodes", "EpisodeSampler"),
    "evaluate": ("metalstm.evaluation", "evaluate"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'metalstm' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
