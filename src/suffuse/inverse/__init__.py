"""Inverse problems: any denoiser becomes a sampler of p(x0 | y) for y = A(x0) + sigma n.

Denoisers   pigdm, mmps, dps, mcg, ddnm, diffpir, flowchef, psld:
                sf.sample(pigdm(model, A, y, sigma), noise, steps=100)
Samplers    ddrm, ddnm_plus:
                sf.sample(model, noise, sampler=ddrm(A, y, sigma), steps=100, seed=0)
Functions   tds, daps, pnpdm, reddiff, resample, flowdps; repaint and blended, which fill a hole:
                tds(model, A, y, noise, sigma, steps=100, seed=0)

Latents: psld, and any method that takes A with a gradient, with A @ operators.Decode(codec).
Poisson noise: mmps, tds and dps take operators.PoissonNoise(peak).

Each says what it approximates and where that shows; docs/inverse.md measures all but psld against exact posteriors.
"""

from suffuse.inverse.blended import blended
from suffuse.inverse.ddnm import ddnm
from suffuse.inverse.diffpir import diffpir
from suffuse.inverse.dps import dps, mcg
from suffuse.inverse.flowchef import flowchef
from suffuse.inverse.flowdps import flowdps
from suffuse.inverse.mmps import mmps
from suffuse.inverse.pigdm import pigdm
from suffuse.inverse.psld import psld
from suffuse.inverse.reddiff import reddiff
from suffuse.inverse.repaint import repaint
from suffuse.inverse.resample import resample
from suffuse.inverse.spectral import ddnm_plus, ddrm
from suffuse.inverse.split import daps, pnpdm
from suffuse.inverse.tds import tds

__all__ = [
    "blended",
    "daps",
    "ddnm",
    "ddnm_plus",
    "ddrm",
    "diffpir",
    "dps",
    "flowchef",
    "flowdps",
    "mcg",
    "mmps",
    "pigdm",
    "pnpdm",
    "psld",
    "reddiff",
    "repaint",
    "resample",
    "tds",
]
