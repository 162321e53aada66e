"""Training: `fit` a model to data, keep it, take it up again."""

from suffuse.training.checkpoint import ModelFileError, load, save
from suffuse.training.ema import EMA
from suffuse.training.fit import Fit, fit

__all__ = ["EMA", "Fit", "ModelFileError", "fit", "load", "save"]
