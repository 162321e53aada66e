"""Twisted diffusion sampler: particles that a guided denoiser proposes and weights correct.

twist        p(y | x_t) ~ N(y; A x0(x_t), (sigma^2 + r^2) I),   r^2 = s^2 sigma_t^2/(s^2 alpha^2 + sigma_t^2)
proposal     a step of ddpm with x0' = x0 + (sigma_t^2/alpha) d log p(y | x_t)/d x_t
weight       w <- w  p(y | x_b) q(x_b | x_a, x0) / (p(y | x_a) q(x_b | x_a, x0'))

and systematic resampling when the effective number of particles falls below a share of them. Under Poisson noise the
twist takes the variance of each count for sigma^2, and the last weight is the counts' own probability.

Approximated: nothing in the limit of many particles and steps, whatever the twist: errors fall like 1/sqrt(particles).
With few particles one of them soon stands for all: the spread is too small, and modes are lost.

Wu et al. 2023 (Practical and asymptotically exact conditional sampling in diffusion models), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from suffuse import grids
from suffuse.denoise import denoiser
from suffuse.guidance.particles import resample
from suffuse.inverse.measured import checked, checked_noise, residual, tweedie
from suffuse.operators import GaussianNoise, Operator, PoissonNoise
from suffuse.parameterize import Prediction
from suffuse.samplers import ddpm, run
from suffuse.samplers.learned import Transition

__all__ = ["tds"]


class _Twist:
    """The last evaluation: x, x0, the guided x0 and log p(y | x_t), kept so that its weight costs no second one."""

    def __init__(self, model: Any, A: Operator, y: Tensor, noise: GaussianNoise | PoissonNoise, spread: float) -> None:
        self.model, self.A, self.y, self.noise, self.spread = model, A, y, noise, spread
        self.x: Tensor | None = None

    def at(self, x: Tensor, t: float) -> None:
        if x is self.x:
            return
        d = tweedie(self.model, x, t)
        r = residual(self.A, d.x0, self.y)
        var = (self.noise.variance(self.A(d.x0)) + d.variance(self.spread)) * torch.ones_like(r)
        self.log = -0.5 * (r.square() / var + var.log()).flatten(1).sum(1)
        self.x, self.x0 = x, d.x0
        self.guided = d.x0 + d.covariance(self.A.vjp(d.x0, r / var))

    def take(self, index: Tensor, x: Tensor) -> None:
        self.x, self.x0, self.guided, self.log = x, self.x0[index], self.guided[index], self.log[index]


def _proposed(x: Tensor, t: Any, to: Any, model: Any, *, twist: _Twist) -> Prediction:
    twist.at(x, t)
    return Prediction(x, *model.schedule(t, like=x), x0=twist.x0 if to == 0 else twist.guided)


def tds(
    model: Any,
    A: Operator,
    y: Tensor,
    noise: Tensor,
    sigma: float | GaussianNoise | PoissonNoise,
    *,
    steps: int | None = None,
    grid: Sequence[float] | Tensor | None = None,
    seed: int,
    first: int = 0,
    spread: float = 1.0,
    threshold: float = 0.5,
) -> Tensor:
    """Particles of p(x0 | y), for G measurements at once.

    Args:
        model: the prior, a denoiser. A: any operator with a gradient. y: (G, ...).
        noise: (G K, ...), K particles for each measurement, one measurement after the other.
        sigma: standard deviation of the measurement's noise, positive; or a `PoissonNoise`.
        steps: of the grid `grids.logsnr`; or grid: falling times.
        seed, first: as for `sf.sample`; `first` counts rows of `noise`.
        spread: s, the standard deviation of the data. threshold: resample below this share of effective particles.
    Returns:
        (G K, ...), equally weighted. One evaluation and one vjp a step.
    Raises:
        TypeError: A has no gradient. ValueError: y has a NaN, or does not fit; sigma is not positive; rows
            of noise that are no multiple of those of y.
    """
    A, y = checked("tds", A, y, linear=False, gradient=True)
    law = checked_noise("tds", sigma)
    groups, rows = len(y), len(noise)
    if not groups:
        raise ValueError("tds needs at least one measurement, got 0 rows of y")
    if rows % groups:
        raise ValueError(f"tds takes the same number of particles for each of {groups} measurements, got {rows} rows")
    k = rows // groups
    if grid is None:
        if steps is None:
            raise ValueError("say how long: steps=100, or a grid of times")
        grid = grids.logsnr(model.schedule, steps)
    twist = _Twist(model, A, y.to(noise).repeat_interleave(k, 0), law, spread)
    proposal = denoiser(_proposed, parts=[model], name="tds", extra={"twist": twist})
    log_w, x = None, noise

    for step in run(proposal, noise, sampler=ddpm, grid=grid, seed=seed, first=first):
        q, previous = Transition(model.schedule, step.t, step.s), step.prediction.x
        before, mean, pushed = twist.log, q.mean(previous, twist.x0), q.mean(previous, twist.guided)
        if log_w is None:
            log_w = before.reshape(groups, k)
        x = step.x
        if step.s > 0:
            ratio = ((x - pushed).square() - (x - mean).square()).flatten(1).sum(1) / (2 * q.small)
            twist.at(x, step.s)
            after = twist.log
        else:
            ratio, after = 0, law.log_prob(twist.y, A(x))
        log_w = log_w + (after - before + ratio).reshape(groups, k)
        share = threshold if step.s > 0 else 2.0  # at the end, always
        index, log_w = resample(log_w, share, seed, step=step.k, first=first // k)
        step.take(index)  # in every step, so that a group's noise does not depend on when others resample
        x = step.x
        if step.s > 0:
            twist.take(index, x)
    return x
