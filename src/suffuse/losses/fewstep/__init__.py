"""Generation in one to four steps: what a trained flow, or data alone, teaches a network that jumps.

Every method is a loss like any other, for `fit`; what it trains is a denoiser that `sample` runs: one that jumps to the
data (consistency, DMD) by `samplers.consistency`, any other by `samplers.ddim`.
"""

from suffuse.losses.fewstep.annealed import Annealed
from suffuse.losses.fewstep.consistency import consistency_distillation, consistency_training, intervals, ratio
from suffuse.losses.fewstep.critic import Critic
from suffuse.losses.fewstep.dmd import DMD, distribution_matching
from suffuse.losses.fewstep.latent import latent_consistency
from suffuse.losses.fewstep.meanflow import meanflow
from suffuse.losses.fewstep.progressive import progressive
from suffuse.losses.fewstep.reflow import one_step, pairs, straightness, transport_cost
from suffuse.losses.fewstep.scm import continuous_consistency
from suffuse.losses.fewstep.shortcut import shortcut

__all__ = [
    "DMD",
    "Annealed",
    "Critic",
    "consistency_distillation",
    "consistency_training",
    "continuous_consistency",
    "distribution_matching",
    "intervals",
    "latent_consistency",
    "meanflow",
    "one_step",
    "pairs",
    "progressive",
    "ratio",
    "shortcut",
    "straightness",
    "transport_cost",
]
