"""RePaint: after every step what is known is replaced by y at that noise level, and blocks of steps are walked again.

x_b <- m (alpha_b y + sigma_b z) + (1 - m) x_b,    on a grid that goes back (`grids.time_travel`)

Known pixels are y to the last bit. Approximated: the known part of the state is drawn without regard to the rest, so
seams show at few repeats; more repeats cost in proportion, and even then the rest is biased towards the prior.

Lugmayr et al. 2022 (RePaint), algorithm 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suffuse import grids
from suffuse.inverse.measured import checked, residual
from suffuse.operators import Mask
from suffuse.random import noise as normal
from suffuse.samplers import Rule, ddpm, run

__all__ = ["repaint"]

_STREAM = 0x4EBA  # of its own: the noise of the known part


def repaint(
    model: Any,
    A: Mask,
    y: Tensor,
    noise: Tensor,
    *,
    steps: int,
    jump: int = 5,
    repeats: int = 4,
    seed: int,
    first: int = 0,
    sampler: Rule = ddpm,
) -> Tensor:
    """Samples that agree with y where the mask is true.

    Args:
        model: the prior, a denoiser. A: a `Mask`. y: (1 or B, ...) without noise; `noise`: (B, ...).
        steps: of the grid. jump, repeats: it is walked in blocks of `jump` steps, each `repeats` times.
        seed, first: as for `sf.sample`. sampler: any rule.
    Returns:
        (B, ...). It costs about steps x repeats evaluations.
    Raises:
        TypeError: A is not a Mask. ValueError: y has a NaN, or does not fit.
    """
    A, y = checked("repaint", A, y)
    if not isinstance(A, Mask):
        raise TypeError(f"repaint fills in what a Mask hides, got {A!r}: ddnm and ddrm take other operators")
    residual(A, noise, y)
    y, known = y.to(noise), A._m(noise)
    grid = grids.time_travel(grids.flow(model.schedule, steps), jump=jump, repeats=repeats)
    x = noise
    for step in run(model, noise, sampler=sampler.rising(), grid=grid, seed=seed, first=first):
        alpha, sigma = model.schedule(step.s)
        z = normal(tuple(noise.shape), seed, stream=_STREAM, step=step.k, first=first, dtype=x.dtype, device=x.device)
        step.x = x = torch.where(known, alpha * y + sigma * z if sigma > 0 else y, step.x)
    return x
