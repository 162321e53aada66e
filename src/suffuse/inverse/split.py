"""Around a run: DAPS and PnP-DM, which take turns between the prior and an exact draw given the measurement.

draw   u ~ N(u; c, r^2 I) N(y; A u, sigma^2 I):
       u = v + A.T (A A.T + sigma^2/r^2 I)^-1 (y + sigma n - A v),    v = c + r n'

for a linear A; by Langevin steps for any other with a gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suffuse import grids
from suffuse.inverse.measured import checked, checked_sigma, residual
from suffuse.operators import LinearOperator, Operator
from suffuse.random import BrownianPath
from suffuse.random import noise as normal
from suffuse.samplers import Rule, ddim, ddpm
from suffuse.samplers.run import walked

__all__ = ["daps", "pnpdm"]

_STREAM = 0xDA95  # of its own: the noise of draws


class _Draws:
    """Counted noise like a batch, and draws given the measurement."""

    def __init__(
        self, A: Operator, y: Tensor, sigma: float, like: Tensor, seed: int, first: int, langevin: int
    ) -> None:
        self.A, self.y, self.sigma, self.langevin = A, y.to(like), sigma, langevin
        self.seed, self.first, self.like, self.number = seed, first, like, 0
        residual(A, like, y)

    def noise(self, shape: torch.Size) -> Tensor:
        self.number += 1
        kind = {"dtype": self.like.dtype, "device": self.like.device}
        return normal(tuple(shape), self.seed, stream=_STREAM, step=self.number, first=self.first, **kind)

    def given(self, c: Tensor, r: float) -> Tensor:
        """u ~ N(u; c, r^2 I) p(y | u)."""
        A, v = self.A, c + r * self.noise(c.shape)
        if isinstance(A, LinearOperator):
            gap = residual(A, v, self.y)
            return v + A.ridge(gap + self.sigma * self.noise(gap.shape), (self.sigma / r) ** 2)
        u, rate = c, 0.1 / (1 / r**2 + 1 / self.sigma**2)
        for _ in range(self.langevin):
            score = (c - u) / r**2 + A.vjp(u, residual(A, u, self.y)) / self.sigma**2
            u = u + rate * score + (2 * rate) ** 0.5 * self.noise(c.shape)
        return u


def _run(rule: Rule, grid: Tensor, model: Any, x: Tensor, path: Any) -> Tensor:
    for step in walked(rule.plan(model.schedule, grid), model, x, path, False):
        x = step.x
    return x


def daps(
    model: Any,
    A: Operator,
    y: Tensor,
    noise: Tensor,
    sigma: float,
    *,
    steps: int = 20,
    inner: int = 5,
    spread: float = 1.0,
    langevin: int = 100,
    seed: int,
    first: int = 0,
) -> Tensor:
    """Decoupled annealing: solve the flow to t = 0, draw x0 given that and y, noise it to the next lower level.

    c = flow from (x_t, t) to 0;   x0 ~ N(c, r^2 I) p(y | x0),  r^2 = s^2 sigma_t^2/(s^2 alpha^2 + sigma_t^2);
    x_b = alpha_b x0 + sigma_b z

    Approximated: p(x0 | x_t) by N(c, r^2 I) about the end of the flow, not about its mean. Each level adds its r^2, and
    the next forgets only part of it: the spread is too large, along what y sees as well, and modes are mixed up.

    Args:
        model: the prior, a denoiser. A: any operator with a gradient. y: (1 or B, ...); noise: (B, ...).
        sigma: of the measurement's noise; positive where A is not linear.
        steps: levels. inner: steps of the flow from each. spread: s, the standard deviation of the data.
        langevin: steps of each draw where A is not linear. seed, first: as for `sf.sample`.
    Returns:
        (B, ...). It costs steps x inner evaluations and no vjp of the model.
    Raises:
        TypeError: A has no gradient. ValueError: y has a NaN, or does not fit; sigma is 0 where it is divided by.
    Zhang et al. 2025 (Decoupled annealing posterior sampling), algorithm 1.
    """
    A, y = checked("daps", A, y, linear=False, gradient=True)
    sigma = checked_sigma("daps", sigma, divides=not isinstance(A, LinearOperator))
    draws, schedule = _Draws(A, y, sigma, noise, seed, first, langevin), model.schedule
    times = grids.flow(schedule, steps).tolist()
    alpha, level = schedule(times[0])
    x = x0 = noise * (alpha**2 + level**2) ** 0.5
    for t, to in zip(times, times[1:], strict=False):
        (alpha, level), (alpha_b, level_b) = schedule(t), schedule(to)
        c = _run(ddim, grids.flow(schedule, inner, start=t), model, x, None)
        r = spread * level / ((spread * alpha) ** 2 + level**2) ** 0.5
        x0 = draws.given(c, r)
        x = alpha_b * x0 + level_b * draws.noise(x.shape)
    return x0


def pnpdm(
    model: Any,
    A: Operator,
    y: Tensor,
    noise: Tensor,
    sigma: float,
    *,
    rounds: int = 20,
    inner: int = 10,
    high: float = 3.0,
    low: float = 0.1,
    langevin: int = 100,
    seed: int,
    first: int = 0,
) -> Tensor:
    """Split Gibbs sampling: u ~ N(u; x, rho^2 I) p(y | u), then x ~ p(x) N(u; x, rho^2 I), which is denoising by a run.

    Approximated: at rho the chain's x has the posterior for y with its noise raised to sigma^2 I + rho^2 A A.T: the
    spread is too large by that at the last rho (`low`), and a lower one mixes more slowly. The runs' own steps add
    their error.

    Args:
        model: the prior, a denoiser. A: any operator with a gradient. y: (1 or B, ...); noise: (B, ...).
        sigma: of the measurement's noise; positive where A is not linear.
        rounds: of the two draws, rho falling geometrically from `high` to `low`. inner: steps of each run (`ddpm`).
        langevin: steps of each draw where A is not linear. seed, first: as for `sf.sample`.
    Returns:
        (B, ...). It costs rounds x inner evaluations and no vjp of the model.
    Raises:
        TypeError: A has no gradient. ValueError: y has a NaN, or does not fit; sigma is 0 where it is divided by;
            levels that are not 0 < low <= high; rounds or inner below 1.
    Wu et al. 2024 (Principled probabilistic imaging using diffusion models as plug-and-play priors), algorithm 1.
    """
    A, y = checked("pnpdm", A, y, linear=False, gradient=True)
    sigma = checked_sigma("pnpdm", sigma, divides=not isinstance(A, LinearOperator))
    if not 0 < low <= high:
        raise ValueError(f"rho falls from high to low, 0 < low <= high, got {high:g} to {low:g}")
    if rounds < 1 or inner < 1:
        raise ValueError(f"rounds and inner must be at least 1, got {rounds} and {inner}")
    draws, schedule = _Draws(A, y, sigma, noise, seed, first, langevin), model.schedule
    path = BrownianPath(noise.shape, seed, first=first, device=noise.device, dtype=noise.dtype)
    x = noise
    for k in range(rounds):
        rho = high * (low / high) ** (k / max(rounds - 1, 1))
        u = draws.given(x, rho)
        t = min(schedule.time(-2 * torch.tensor(rho, dtype=torch.float64).log().item()), 1.0)
        path.renew()
        grid = grids.logsnr(schedule, inner, start=t) if inner > 1 else torch.tensor([t, 0.0], dtype=torch.float64)
        x = _run(ddpm, grid, model, schedule(t)[0] * u, path)
    return x
