"""What a user holds: a classifier of their own classes, made from a few images of each."""

from metalstm.classifier.classifier import Classifier, InnerStep
from metalstm.classifier.cross_validation import Estimate

__all__ = ["Classifier", "Estimate", "InnerStep"]
