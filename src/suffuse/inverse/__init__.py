"""Inverse problems: any denoiser becomes a sampler of p(x0 | y) for y = A(x0) + sigma n.

Denoisers   pigdm, mmps, dps, mcg, ddnm, diffpir, flowchef:  sf.sample(pigdm(model, A, y, sigma), noise, steps=100)
Samplers    ddrm, ddnm_plus:                                 sf.sample(model, noise, sampler=ddrm(A, y, sigma), ...)
Functions   repaint, tds, daps, pnpdm, reddiff:              tds(model, A, y, noise, sigma, steps=100, seed=0)

Each says what it approximates and where that shows; docs/inverse.md measures it against the exact posterior.
"""

from suffuse.inverse.ddnm import ddnm
from suffuse.inverse.diffpir import diffpir
from suffuse.inverse.dps import dps, mcg
from suffuse.inverse.flowchef import flowchef
from suffuse.inverse.mmps import mmps
from suffuse.inverse.pigdm import pigdm
from suffuse.inverse.reddiff import reddiff
from suffuse.inverse.repaint import repaint
from suffuse.inverse.spectral import ddnm_plus, ddrm
from suffuse.inverse.split import daps, pnpdm
from suffuse.inverse.tds import tds

__all__ = [
    "daps",
    "ddnm",
    "ddnm_plus",
    "ddrm",
    "diffpir",
    "dps",
    "flowchef",
    "mcg",
    "mmps",
    "pigdm",
    "pnpdm",
    "reddiff",
    "repaint",
    "tds",
]
