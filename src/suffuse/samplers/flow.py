"""The probability flow, row by row, in the coordinates where every schedule is straight.

    y = x / (alpha + sigma),  tau = sigma / (alpha + sigma):    dy/dtau = u = eps - x0

so that x0 = y - tau u and eps = y + (1 - tau) u, and nothing is infinite at either end.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from suffuse import grids
from suffuse.denoise import call
from suffuse.parameterize import Prediction
from suffuse.samplers.symbols import Term
from suffuse.schedules import Schedule

__all__ = ["Loop", "first", "lift", "share", "slope", "time"]


def share(schedule: Schedule, t: float) -> float:
    """tau = sigma / (alpha + sigma) at a time."""
    alpha, sigma = schedule(t)
    return sigma / (alpha + sigma)


def time(schedule: Schedule, tau: Tensor) -> Tensor:
    """The times (B,) at which sigma / (alpha + sigma) = tau, (B,)."""
    return schedule.time(2 * (torch.log1p(-tau) - tau.log())).clamp(0, 1)


def first(schedule: Schedule, atol: float) -> float:
    """The lowest time worth asking a denoiser about: one Euler step from there to t = 0 is off by about `atol`.

    Its error is tau^2/2 times the curvature of the flow, taken to be at most 8. A discrete schedule is not asked below
    its first index.
    """
    tau = min(0.5 * math.sqrt(atol), 0.01)
    return schedule.time(min(2 * math.log((1 - tau) / tau), grids._finest(schedule)))


class Loop:
    """What a run without a table holds: its state, its denoiser, its noise, and how often it asked."""

    current, partner = 0, None

    def __init__(self, denoiser: Any, x: Tensor, path: Any = None) -> None:
        self.denoiser, self.path, self.nfe = denoiser, path, 0
        self.values: dict[Term, Tensor] = {("x", 0): x}
        self.prediction: Prediction | None = None

    @property
    def x(self) -> Tensor:
        """The state, (B, ...)."""
        return self.values["x", 0]

    @x.setter
    def x(self, value: Tensor) -> None:
        self.values["x", 0] = value

    def ask(self, denoiser: Any, x: Tensor, t: Any, to: Any) -> Prediction:
        """What a denoiser believes, counted."""
        self.nfe += 1
        p = call(denoiser, x, t, to)
        if not isinstance(p, Prediction):
            raise TypeError(f"a denoiser must return a Prediction, got {type(p).__name__}")
        return p

    def take(self, index: Tensor) -> None:
        """Keep these rows of the batch."""
        self.x = self.x[index]
        if hasattr(self.denoiser, "rows"):
            self.denoiser = self.denoiser.rows(index)


def lift(loop: Loop, x: Tensor, start: float, low: float) -> Tensor:
    """x (B, ...) at `low`, from x at `start` below it, where a denoiser is not asked: DDIM's step there and back.

    x_low = alpha_low x0 + sigma_low eps,  eps predicted at low,  x0 = (x - sigma eps)/alpha: off by O(sigma_low^2).
    """
    (alpha, sigma), (on_x0, on_eps) = loop.denoiser.schedule(start), loop.denoiser.schedule(low)
    eps = loop.ask(loop.denoiser, on_x0 / alpha * x, low, low).eps
    return on_x0 / alpha * (x - sigma * eps) + on_eps * eps


def slope(loop: Loop, denoiser: Any, y: Tensor, tau: Tensor) -> Tensor:
    """dy/dtau = eps - x0 of rows y (B, ...) at tau (B,); two-time networks are asked for the slope itself, to = t."""
    t = time(denoiser.schedule, tau)
    alpha, sigma = denoiser.schedule(t, like=y)
    p = loop.ask(denoiser, (alpha + sigma) * y, t, t)
    return p.eps - p.x0
