"""Numbers that say what they are: value, n, interval, and what they were measured with."""

from suffuse.metrics import shapes
from suffuse.metrics.classifier import Classifier, classifier_loss
from suffuse.metrics.frechet import frechet, frechet_ratio
from suffuse.metrics.manifold import memorised, precision, recall
from suffuse.metrics.result import Measured, proportion

__all__ = [
    "Classifier",
    "Measured",
    "classifier_loss",
    "frechet",
    "frechet_ratio",
    "memorised",
    "precision",
    "proportion",
    "recall",
    "shapes",
]
