"""Guidance: denoisers made of denoisers that say more clearly what they were told.

Pairs       guide, apg, cfg_zero:       guide(model.given(text=pos), model.given(text=neg), 4.0, between=(0.1, 0.8))
Around      rescale, threshold, interval:    threshold(rescale(apg(pos, neg, 6.0), 0.5))
One model   pag, perturbed; classifier with a NoisyClassifier; compose: several conditions, AND and NOT
Particles   steer(model, reward, noise, particles=16, ...): a function, for rewards without a gradient

Scales are neg + w (pos - neg), w = 1 is off; `scale` converts. Autoguidance is `guide(model, weaker_model, w)`. CFG++
is a sampler, `sf.samplers.cfgpp`. docs/guidance.md measures all of them.
"""

from suffuse.guidance.apg import apg
from suffuse.guidance.cfg import guide
from suffuse.guidance.cfg_zero import cfg_zero
from suffuse.guidance.classifier import NoisyClassifier, classifier
from suffuse.guidance.compose import compose
from suffuse.guidance.guided import Guided, scale
from suffuse.guidance.interval import interval
from suffuse.guidance.particles import resample
from suffuse.guidance.perturbed import pag, perturbed
from suffuse.guidance.rescale import rescale
from suffuse.guidance.steer import steer
from suffuse.guidance.threshold import threshold

__all__ = [
    "Guided",
    "NoisyClassifier",
    "apg",
    "cfg_zero",
    "classifier",
    "compose",
    "guide",
    "interval",
    "pag",
    "perturbed",
    "resample",
    "rescale",
    "scale",
    "steer",
    "threshold",
]
