"""Samplers that add noise on purpose: EDM's churn, Euler-Maruyama, Langevin corrections."""

from __future__ import annotations

import math

from suffuse.samplers.rule import Level, Point, Step, sampler
from suffuse.samplers.symbols import Symbol

__all__ = ["churn", "euler_maruyama", "langevin"]


@sampler(order=lambda amount, low, high, scale: 2 if scale == 1 else 1, stages=2)
def churn(step: Step, amount: float = 40.0, low: float = 0.05, high: float = 50.0, scale: float = 1.0) -> Symbol:
    """Raise rho = sigma/alpha to (1 + g) rho with fresh noise, then take Heun's step down in (x/alpha, rho).

    g = min(amount/n, sqrt(2) - 1) where low <= rho <= high, else 0.

    Args:
        amount: S_churn, over the whole run. low, high: S_tmin, S_tmax.
        scale: S_noise; above 1 the variance is inflated.
    Karras et al. 2022, algorithm 2.
    """
    a, b = step.a, step.b
    start = a
    gain = min(amount / step.n, math.sqrt(2) - 1) if low <= a.rho <= high else 0.0
    level = step.at_rho(a.rho * (1 + gain)) if gain > 0 else Level(a._schedule, a.t)
    raised, added = 1.0, 0.0  # excess variance at the raised state: share of the old, and new
    if gain > 0 and level.rho > a.rho:
        lift = math.sqrt(level.rho**2 - a.rho**2)
        raised, added = (level.alpha / a.alpha) ** 2, (level.alpha * lift) ** 2 * (scale**2 - 1)
        step.inflate(raised, added)
        fresh = level.alpha * scale * lift * step.noise(a.t, level.t)
        start = step.point(level.alpha / a.alpha * a.x + fresh, level.t)
    shrink = (b.sigma / start.sigma) ** 2
    step.inflate(shrink * raised, shrink * added)
    euler = b.alpha * start.x0 + b.sigma * start.eps
    if b.sigma == 0 or not math.isfinite(start.rho):
        return euler
    end = step.point(euler, b.t)
    return b.alpha / start.alpha * start.x + b.alpha * (b.rho - start.rho) / 2 * (start.eps + end.eps)


@sampler(order=1, law="consistent")
def euler_maruyama(step: Step) -> Symbol:
    """x_b = x_a + (t_b - t_a)(f x_a + g^2 eps_a / sigma_a) + g sqrt(t_a - t_b) z,  f = alpha'/alpha,
    g^2 = 2 sigma sigma' - 2 f sigma^2. A step from alpha = 0 or to sigma = 0 is DDPM's.

    Song et al. 2021 (SDE), eq. 6, discretised in t.
    """
    a, b = step.a, step.b
    if a.alpha == 0 or b.sigma == 0:
        d = step.posterior_std
        return b.alpha * a.x0 + math.sqrt(b.sigma**2 - d**2) * a.eps + d * step.z
    da, ds = a.rates
    f = da / a.alpha
    g2 = 2 * a.sigma * ds - 2 * f * a.sigma**2
    h = a.t - b.t
    return (1 - h * f) * a.x - h * g2 / a.sigma * a.eps + math.sqrt(g2 * h) * step.z


@sampler(order=1, stages=lambda corrections, ratio: 1 + corrections)
def langevin(step: Step, corrections: int = 1, ratio: float = 1.0) -> Symbol:
    """Predict by DDIM, then correct at the same level: x <- alpha x0 + sqrt(sigma^2 - d^2) eps + d z, some times.

    d = ratio * std of the DDPM posterior of this step. The Ornstein-Uhlenbeck form keeps the variance exactly, and
    its step is a fixed ratio, not one that depends on norms across the batch.

    Args:
        corrections: how often; each costs a call. ratio: size of a correction, from 0 (none).
    Song et al. 2021 (SDE), algorithms 2 to 5; Song & Ermon 2019 (annealed Langevin dynamics).
    """
    a, b = step.a, step.b
    x = b.alpha * a.x0 + b.sigma * a.eps
    if b.sigma == 0:
        return x
    d = min(ratio * step.posterior_std, b.sigma)
    cuts = [a.t + (b.t - a.t) * i / corrections for i in range(corrections + 1)] if corrections else []
    for start, end in zip(cuts, cuts[1:], strict=False):  # each correction takes its own share of the step's noise
        p: Point = step.point(x, b.t)
        x = b.alpha * p.x0 + math.sqrt(b.sigma**2 - d**2) * p.eps + d * step.noise(start, end)
    return x
