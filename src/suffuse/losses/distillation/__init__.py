"""Score distillation: a trained model's opinion of an image, as a loss of whatever makes the image."""

from suffuse.losses.distillation.csd import csd
from suffuse.losses.distillation.dds import dds
from suffuse.losses.distillation.pds import pds, stochastic_latent
from suffuse.losses.distillation.push import annealed, descend, window
from suffuse.losses.distillation.sdi import sdi
from suffuse.losses.distillation.sds import sds
from suffuse.losses.distillation.vsd import VSD, vsd

__all__ = ["VSD", "annealed", "csd", "dds", "descend", "pds", "sdi", "sds", "stochastic_latent", "vsd", "window"]
