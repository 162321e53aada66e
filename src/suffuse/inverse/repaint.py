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

__all__ = ["filled", "repaint"]

_STREAM = 0x4EBA  # of its own: the noise of the known part


def filled(
    method: str,
    model: Any,
    A: Mask,
    y: Tensor,
    noise: Tensor,
    grid: Tensor,
    sampler: Rule,
    *,
    start: tuple[Tensor, float] | None = None,
    seed: int,
    first: int,
) -> Tensor:
    """A run along a grid, in which what is known is replaced after every step."""
    A, y = checked(method, A, y)
    if not isinstance(A, Mask):
        raise TypeError(f"{method} fills in what a Mask hides, got {A!r}: ddnm and ddrm take other operators")
    residual(A, noise, y)
    y, known, x = y.to(noise), A._m(noise), noise
    for step in run(model, noise, sampler=sampler, grid=grid, start=start, seed=seed, first=first):
        alpha, sigma = model.schedule(step.s)
        z = normal(tuple(noise.shape), seed, stream=_STREAM, step=step.k, first=first, dtype=x.dtype, device=x.device)
        step.x = x = torch.where(known, alpha * y + sigma * z if sigma > 0 else y, step.x)
    return x


def repaint(
    model: Any,
    A: Mask,
    y: Tensor,
    noise: Tensor,
    *,
    steps: int,
    jump: int = 1,
    repeats: int = 5,
    seed: int,
    first: int = 0,
    sampler: Rule = ddpm,
) -> Tensor:
    """Samples that agree with y where the mask is true.

    Args:
        model: the prior, a denoiser. A: a `Mask`. y: (1 or B, ...) without noise; `noise`: (B, ...).
        steps: of the grid. jump, repeats: it is walked in blocks of `jump` steps, each `repeats` times; the paper's
            blocks of 10 are for 250 steps, with few steps blocks of 1 come closer to the posterior (docs/inverse.md).
        seed, first: as for `sf.sample`. sampler: any rule.
    Returns:
        (B, ...). It costs about steps x repeats evaluations.
    Raises:
        TypeError: A is not a Mask. ValueError: y has a NaN, or does not fit.
    """
    grid = grids.time_travel(grids.flow(model.schedule, steps), jump=jump, repeats=repeats)
    return filled("repaint", model, A, y, noise, grid, sampler.rising(), seed=seed, first=first)
