"""The variational bound on the likelihood: what a chain of `ddpm` steps says of data.

    log p(x0) >= -(L_T + sum KL(q(x_b | x_a, x0) || p(x_b | x_a)) + L_0)

    L_T = KL(q(x_T | x0) || N(0, alpha_T^2 + sigma_T^2)),    L_0 = -log N(x0; predicted x0 at the last time, s^2)

Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021 for learned variances; Kingma et al. 2021 for its limit in many steps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from suffuse import grids
from suffuse.denoise import call, check_range, evaluating, fresh, networks
from suffuse.random import noise
from suffuse.samplers.ancestral import ddpm
from suffuse.samplers.learned import Transition
from suffuse.samplers.run import Grid, plan_for

__all__ = ["variational_bound"]

_STREAM = 0xB0D


def variational_bound(
    denoiser: Any,
    x0: Tensor,
    *,
    seed: int,
    steps: int | None = None,
    grid: Grid | None = None,
    variance: str | None = None,
    decoder_std: float | None = None,
    first: int = 0,
    grad: bool = False,
) -> Tensor:
    """A lower bound on log p(x0) of each row, in nats: one draw of noise a step, so it holds on average.

    Args:
        denoiser: (x, t) -> Prediction with a `.schedule`.
        x0: (B, ...) data in the denoiser's units.
        seed: of the noise; row i's depends on (seed, first + i) only.
        steps: of `sf.grids.logsnr`, or `grid`: as for `sample`; it must end at t = 0.
        variance: of a step: "small" or "large" as for `ddpm`, or "learned"; by default learned where the prediction
            has it, else small.
        decoder_std: s, the standard deviation with which the last prediction is read as a density of x0; by default
            that of unit Gaussian data given x at the last time t above 0, sigma/sqrt(alpha^2 + sigma^2). Any s gives a
            bound.
        first: number of the first row, when the batch is a part of a larger one.
        grad: whether gradients flow.
    Returns:
        (B,) in nats.
    Raises:
        ValueError: a grid that does not end at 0; an unknown variance; a learned one that is not there.
    """
    check_range(x0, "x0")
    if variance not in (None, "small", "large", "learned"):
        raise ValueError(f"variance must be 'small', 'large' or 'learned', got {variance!r}")
    schedule = denoiser.schedule
    times = plan_for(schedule, sampler=ddpm, steps=steps, grid=grids.logsnr if grid is None else grid).grid
    if times[-1] != 0:
        raise ValueError(f"the bound is on data at t=0, this grid ends at t={times[-1]:g}")
    part, modules = fresh(denoiser), [m for net in networks(denoiser) for m in net.modules()]
    with evaluating(modules), torch.set_grad_enabled(grad):
        alpha, sigma = schedule(times[0])
        total = alpha**2 + sigma**2
        lost = ((alpha * x0).square() + sigma**2) / total - 1 + math.log(total / sigma**2)
        for k in range(len(times) - 1):
            a, b = times[k], times[k + 1]
            alpha, sigma = schedule(a)
            z = noise(x0.shape, seed, step=k, stream=_STREAM, first=first, device=x0.device, dtype=x0.dtype)
            p = call(part, alpha * x0 + sigma * z, a, b)
            error = (x0 - p.x0).square()
            if b > 0:
                lost = lost + _step(Transition(schedule, a, b), p, error, variance)
            else:
                var = sigma**2 / (alpha**2 + sigma**2) if decoder_std is None else decoder_std**2
                lost = lost + error / var + math.log(2 * math.pi * var)
        return -0.5 * lost.flatten(1).sum(1)


def _step(step: Transition, p: Any, error: Tensor, variance: str | None) -> Tensor:
    """Twice KL(N(., small) || N(., var)), elementwise, of means whose squared distance is on_x0^2 times the error."""
    if variance == "learned" or (variance is None and p.fraction is not None):
        log_ratio = step.log_var(p) - math.log(step.small)
        inverse = (-log_ratio).exp()
    else:
        log_ratio = math.log(step.large / step.small) if variance == "large" else 0.0
        inverse = math.exp(-log_ratio)
    return inverse * (1 + step.on_x0**2 / step.small * error) - 1 + log_ratio
