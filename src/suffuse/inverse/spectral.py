"""Samplers in the singular basis of A: DDRM and DDNM+, which choose each direction's noise by what y says of it.

With A = U s V.T, z = V.T x and  y_i = (U.T y)_i / s_i = z_i + (sigma/s_i) n,  seen directions are those with s_i > 0.
Not plans: what a step adds depends on A.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import fresh
from suffuse.inverse.measured import checked, checked_sigma, residual
from suffuse.operators import Operator
from suffuse.parameterize import Prediction
from suffuse.samplers import RunStep, ddpm
from suffuse.samplers.flow import Loop
from suffuse.samplers.learned import Transition
from suffuse.schedules import Schedule

__all__ = ["Spectral", "ddnm_plus", "ddrm"]


class Spectral:
    """A sampler by singular directions; made by `ddrm` and `ddnm_plus`.

    Args:
        name: printed. A, y, sigma: the measurement. options: printed, and given to `step`.
    """

    stages = 1

    def __init__(self, name: str, A: Operator, y: Tensor, sigma: float, options: dict[str, float]) -> None:
        self.A, self.y = checked(name, A, y)
        self.name, self.sigma, self.options = name, checked_sigma(name, sigma), options

    def __repr__(self) -> str:
        return f"{self.name}({self.A!r}, sigma={self.sigma:g})"

    def step(self, p: _Seen, schedule: Schedule, a: float, b: float) -> Tensor:
        """The coordinates of x_b."""
        raise NotImplementedError

    def plan(self, schedule: Schedule, grid: Sequence[float] | Tensor) -> SpectralPlan:
        """This sampler on falling times."""
        return SpectralPlan(self, schedule, grid)


class _Seen:
    """One evaluation in coordinates: x, x0, eps, fresh noise, what y says, s and sigma/s (infinite where s = 0)."""

    def __init__(self, x: Tensor, p: Prediction, z: Tensor, y: Tensor, s: Tensor, error: Tensor, to: Any) -> None:
        self.x, self.x0, self.eps, self.noise = to(x), to(p.x0), to(p.eps), to(z)
        self.y, self.s, self.error = y, s, error
        self.seen = s > 0


class SpectralPlan:
    """A spectral sampler on a grid.

    Attributes:
        schedule, grid, steps, nfe: as of a `Plan`.
    """

    def __init__(self, rule: Spectral, schedule: Schedule, grid: Sequence[float] | Tensor) -> None:
        like = ddpm.plan(schedule, grid)  # checks the grid
        self.rule, self.schedule, self.grid, self.steps, self.nfe = rule, schedule, like.grid, like.steps, like.nfe

    def __repr__(self) -> str:
        return f"{self.rule!r} on {self.schedule}: {self.steps} steps"

    def run(self, denoiser: Any, x: Tensor, path: Any = None) -> Iterator[RunStep]:
        """Step through the grid.

        Args:
            denoiser: the prior. x: (B, ...) the state at grid[0].
            path: where noise comes from, `sf.BrownianPath(x.shape, seed)`.
        Raises:
            ValueError: no path; another schedule; y that does not fit A; an A whose spectrum is not known.
        """
        A, y, sigma = self.rule.A, self.rule.y, self.rule.sigma
        if denoiser.schedule != self.schedule:
            raise ValueError(f"{self!r} cannot run a denoiser on {denoiser.schedule}: use denoiser.on(schedule)")
        if path is None:
            raise ValueError(f"{self.rule.name} draws noise: give it a seed")
        basis = A.spectrum(tuple(x.shape[1:]))
        if basis is None:
            raise ValueError(
                f"{self.rule.name} works in the singular basis of A, {A!r} does not know its own: "
                "take operators.Matrix(operators.matrix(A, shape), shape)"
            )
        residual(A, x, y)  # whether they fit
        back = basis.to(A.adjoint(y.to(x)))
        s = basis.values(back)
        error = torch.where(s > 0, sigma / torch.where(s > 0, s, 1), torch.inf)
        says = torch.where(s > 0, back / torch.where(s > 0, s * s, 1), 0)
        loop, k = _Loop(fresh(denoiser), x, path, says), 0
        while k < self.steps:
            a, b = self.grid[k], self.grid[k + 1]
            p = loop.ask(loop.denoiser, loop.x, a, b)
            low, high = self.schedule.logsnr(a), self.schedule.logsnr(b)
            at = _Seen(loop.x, p, path.increment(low, high), loop.says, s, error, basis.to)
            loop.x, loop.prediction = basis.back(self.rule.step(at, self.schedule, a, b)), p
            done = RunStep(k, self.steps, a, b, loop)
            yield done
            k += 1
            if done.jump is not None:
                if not 0 <= done.jump <= self.steps:
                    raise ValueError(f"cannot go to step {done.jump} of {self.steps}")
                k = done.jump
                path.renew()


class _Loop(Loop):
    """A run that also keeps what y says, by row."""

    def __init__(self, denoiser: Any, x: Tensor, path: Any, says: Tensor) -> None:
        super().__init__(denoiser, x, path)
        self.says = says

    def take(self, index: Tensor) -> None:
        super().take(index)
        self.says = self.says[index] if len(self.says) > 1 else self.says


class _DDRM(Spectral):
    """See `ddrm`."""

    def step(self, p: _Seen, schedule: Schedule, a: float, b: float) -> Tensor:
        (alpha, sigma_b), eta, eta_b = schedule(b), self.options["eta"], self.options["eta_b"]
        rho = sigma_b / alpha
        keep = (1 - eta**2) ** 0.5 * rho
        unseen = p.x0 + keep * p.eps + eta * rho * p.noise
        finite = torch.where(p.seen & (p.error > 0), p.error, 1)
        behind = p.x0 + keep * (p.y - p.x0) / finite + eta * rho * p.noise
        left = (rho**2 - (eta_b * torch.where(p.seen, p.error, 0)) ** 2).clamp(min=0).sqrt()
        ahead = (1 - eta_b) * p.x0 + eta_b * p.y + left * p.noise
        return alpha * torch.where(p.seen, torch.where(p.error > rho, behind, ahead), unseen)


def ddrm(A: Operator, y: Tensor, sigma: float, *, eta: float = 0.85, eta_b: float = 1.0) -> Spectral:
    """Denoising diffusion restoration: `sf.sample(model, noise, sampler=ddrm(A, y, sigma), steps=20, seed=0)`.

    With rho_b = sigma_b/alpha_b, x_b/alpha_b is in direction i
        x0 + sqrt(1 - eta^2) rho_b eps + eta rho_b z                            where A sees nothing
        x0 + sqrt(1 - eta^2) rho_b (y_i - x0)/(sigma/s_i) + eta rho_b z         where sigma/s_i > rho_b
        (1 - eta_b) x0 + eta_b y_i + sqrt(rho_b^2 - eta_b^2 sigma^2/s_i^2) z    elsewhere
    every line of variance rho_b^2 about x0. With a mask and sigma = 0, known pixels are y to the last bit.

    Approximated: x0 is the prior's, and learns of y through the state only: what A does not see is told little in few
    steps, and with noise (sigma > 0) samples keep too little of the spread of y. Weights of modes are wrong.

    Args:
        A: linear, with a known spectrum. y: (1 or B, ...). sigma: of the measurement's noise, at least 0.
        eta, eta_b: shares of fresh noise and of y, in [0, 1].
    Raises:
        TypeError: A is not linear. ValueError: y has a NaN; shares out of range; when run, an A without a spectrum.
    Kawar et al. 2022 (DDRM).
    """
    for name, value in (("eta", eta), ("eta_b", eta_b)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is a share between 0 and 1, got {value:g}")
    return _DDRM("ddrm", A, y, sigma, {"eta": eta, "eta_b": eta_b})


class _DDNMPlus(Spectral):
    """See `ddnm_plus`."""

    def step(self, p: _Seen, schedule: Schedule, a: float, b: float) -> Tensor:
        q = Transition(schedule, a, b)
        std = max(q.small, 0.0) ** 0.5
        error = q.on_x0 * torch.where(p.seen, p.error, 0)
        share = torch.where(error > std, std / torch.where(error > 0, error, 1), 1) * p.seen
        x0 = torch.where(share == 1, p.y, p.x0 + share * (p.y - p.x0))
        return q.mean(p.x, x0) + (std**2 - (share * error) ** 2).clamp(min=0).sqrt() * p.noise


def ddnm_plus(A: Operator, y: Tensor, sigma: float) -> Spectral:
    """DDNM for a noisy y, a sampler on DDPM's steps x_b = on_x0 x0' + on_x x + d z.

    In direction i:  x0' = x0 + l (y_i - x0),  l = min(1, d s_i/(on_x0 sigma)),
    z scaled to sqrt(d^2 - (on_x0 l sigma/s_i)^2),
    so that the noise of y is part of the step's noise instead of being added to it.

    Approximated: as `ddnm`; the noise of y counts as drawn anew in every step, though it is one and the same, so states
    are noisier than sigma_t along what was measured; and towards the end (d -> 0) y counts less and less: what was
    measured is smoothed by the prior's x0 there, so the spread comes out too small.

    Args:
        A: linear, with a known spectrum. y: (1 or B, ...). sigma: of the measurement's noise, at least 0.
    Raises:
        TypeError: A is not linear. ValueError: y has a NaN; when run, an A without a spectrum.
    Wang et al. 2023 (DDNM), section 3.3.
    """
    return _DDNMPlus("ddnm_plus", A, y, sigma, {})
