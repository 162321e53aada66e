"""Adaptive Runge-Kutta on the probability flow, with a step size of its own for every row of the batch.

    y_b = y_a + h sum_i b_i u_i,    error = h sum_i (b_i - b*_i) u_i,    h <- 0.9 h |error / (atol + rtol |y|)|^(-1/p)

in y = x/(alpha + sigma) against tau = sigma/(alpha + sigma). A row that arrived is not evaluated any more.

Dormand & Prince 1980 (dopri5); Bogacki & Shampine 1989 (bosh3); Hairer, Norsett & Wanner 1993, II.4, for the control.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import stateless
from suffuse.parameterize import Prediction
from suffuse.samplers.flow import Loop, first, lift, share, slope, time
from suffuse.samplers.walk import RunStep
from suffuse.schedules import left

__all__ = ["Adaptive", "AdaptiveStep", "Pair", "Rows", "adaptive"]


@dataclass(frozen=True)
class Pair:
    """An embedded pair whose last stage is the solution: (share of the step, weights of the slopes so far) by stage.

    `error` weighs the slopes for the difference of its two solutions, which is O(h^order).
    """

    order: int
    stages: tuple[tuple[float, tuple[float, ...]], ...]
    error: tuple[float, ...]


PAIRS = {
    "bosh3": Pair(
        3,
        ((1 / 2, (1 / 2,)), (3 / 4, (0.0, 3 / 4)), (1.0, (2 / 9, 1 / 3, 4 / 9))),
        (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    ),
    "dopri5": Pair(
        5,
        (
            (1 / 5, (1 / 5,)),
            (3 / 10, (3 / 40, 9 / 40)),
            (4 / 5, (44 / 45, -56 / 15, 32 / 9)),
            (8 / 9, (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729)),
            (1.0, (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)),
            (1.0, (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
        ),
        (
            35 / 384 - 5179 / 57600,
            0.0,
            500 / 1113 - 7571 / 16695,
            125 / 192 - 393 / 640,
            92097 / 339200 - 2187 / 6784,
            11 / 84 - 187 / 2100,
            -1 / 40,
        ),
    ),
}

Field = Callable[[Tensor, Tensor], Tensor]
"""(y (B, ...), tau (B,)) -> dy/dtau (B, ...), row by row."""


def _sum(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    return sum((w * k for w, k in zip(weights, slopes, strict=True) if w), torch.zeros(()).to(slopes[0]))


class Rows:
    """Rows of one initial value problem, each with its own time, step size and count of evaluations.

    Args:
        field: index -> the field of these rows; None for all of them.
        y: (B, ...) states at `start`, which go to `stop`; both are values of tau.
        pair, rtol, atol: the method and its tolerances; the size of an error is the root mean square over a row.
    """

    def __init__(
        self,
        field: Callable[[Tensor | None], Field],
        y: Tensor,
        start: float,
        stop: float,
        pair: Pair,
        rtol: float,
        atol: float,
    ) -> None:
        clock = torch.float32 if y.device.type == "mps" else torch.float64
        self.field, self.pair, self.rtol, self.atol = field, pair, rtol, atol
        self.y, self.stop = y, stop
        self.tau = torch.full((len(y),), start, dtype=clock, device=y.device)
        self.evaluations = torch.ones(len(y), dtype=torch.int64, device=y.device)
        self.u = field(None)(y, self.tau)
        self.h = self._guess() if start != stop else torch.zeros_like(self.tau)

    def _size(self, value: Tensor, scale: Tensor) -> Tensor:
        return (value / scale).detach().flatten(1).square().mean(1).sqrt().to(self.tau.dtype)

    def _guess(self) -> Tensor:
        """A first step from the size of the state, of the slope, and of the slope's change over a tiny step."""
        room = self.stop - self.tau
        scale = self.atol + self.rtol * self.y.abs()
        d0, d1 = self._size(self.y, scale), self._size(self.u, scale)
        tiny = (0.01 * d0 / d1).nan_to_num(1e-6, 1e-6).clamp(1e-9, 1e-3).minimum(room.abs())
        there = self.field(None)(self.y + left(tiny * room.sign(), self.y) * self.u, self.tau + tiny * room.sign())
        self.evaluations += 1
        d2 = self._size(there - self.u, scale) / tiny
        h = (0.01 / d1.maximum(d2)).pow(1 / self.pair.order).nan_to_num(1e-3, 1.0)
        return h.minimum(100 * tiny).minimum(room.abs()) * room.sign()

    @property
    def done(self) -> bool:
        """Whether every row has arrived."""
        return bool((self.tau == self.stop).all())

    def advance(self) -> None:
        """Try one step of every row on its way; rows whose error is too large stay and will take a smaller one.

        Raises:
            ValueError: a row's step has shrunk to nothing: the denoiser answered nan or inf, or the tolerance is too
                small for the dtype.
        """
        active = self.tau != self.stop
        index = None if bool(active.all()) else active.nonzero()[:, 0]
        y, tau, h, u = (v if index is None else v[index] for v in (self.y, self.tau, self.h, self.u))
        room = self.stop - tau
        last = h.abs() >= room.abs()
        h = torch.where(last, room, h)
        end = torch.where(last, self.stop, tau + h)
        field, slopes, step, new = self.field(index), [u], left(h, y), y
        for part, weights in self.pair.stages:
            new = y + step * _sum(weights, slopes)
            slopes.append(field(new, end if part == 1 else tau + part * h))
        scale = self.atol + self.rtol * y.abs().maximum(new.abs())
        size = self._size(step * _sum(self.pair.error, slopes), scale)
        good = size <= 1
        h = h * (0.9 * size.pow(-1 / self.pair.order)).nan_to_num(0.2).clamp(0.2, 5.0)
        if bool((h.abs() < 1e-12).any()):
            where = float(tau[h.abs().argmin()])
            raise ValueError(
                f"at sigma/(alpha + sigma) = {where:.4g} no step is small enough for rtol={self.rtol:g}, "
                f"atol={self.atol:g}: the denoiser answers nan or jumps there"
            )
        self.y = self._put(self.y, index, torch.where(left(good, y) > 0, new, y))
        self.u = self._put(self.u, index, torch.where(left(good, y) > 0, slopes[-1], u))
        self.tau = self._put(self.tau, index, torch.where(good, end, tau))
        self.h = self._put(self.h, index, h)
        self.evaluations = self.evaluations + len(self.pair.stages) * active

    @staticmethod
    def _put(whole: Tensor, index: Tensor | None, part: Tensor) -> Tensor:
        return part if index is None else whole.index_put((index,), part)

    def take(self, index: Tensor) -> None:
        """Go on with these rows."""
        self.y, self.u, self.tau = self.y[index], self.u[index], self.tau[index]
        self.h, self.evaluations = self.h[index], self.evaluations[index]


class AdaptiveStep(RunStep):
    """A step of an adaptive run: `.t` to `.s` is how far the slowest row came.

    `.times` (B,) is where each row is, `.x` its state there; `.evaluations` (B,) what each row cost so far, and `.nfe`
    the number of batched calls.
    """

    times: Tensor
    evaluations: Tensor


@dataclass(frozen=True)
class Adaptive:
    """The adaptive sampler; made by `adaptive`."""

    rtol: float
    atol: float
    method: str
    end: float | None
    start: float = 1.0
    stop: float = 0.0

    @property
    def pair(self) -> Pair:
        """The Runge-Kutta pair of this method."""
        return PAIRS[self.method]

    def between(self, start: float, stop: float) -> Adaptive:
        """The same sampler from one time to another; from data to noise if `start` is below `stop`."""
        return dataclasses.replace(self, start=start, stop=stop)

    def asked_first(self, denoiser: Any) -> float:
        """The lowest time at which a denoiser is asked; from there to t = 0 it is one Euler step."""
        return first(denoiser.schedule, self.atol) if self.end is None else self.end

    def run(self, denoiser: Any, x: Tensor, path: Any = None) -> Iterator[AdaptiveStep]:
        """Integrate; yields an `AdaptiveStep` whenever the slowest row has moved, the last one at the end.

        Args:
            denoiser: (x, t) -> Prediction; asked with t (B,), for some rows of the batch when others have arrived.
            x: (B, ...) the state at the first time, at that noise level.
            path: not used: this sampler draws no noise.
        """
        stateless(denoiser, "adaptive() asks each row at times of its own, and asks again where a step is refused")
        schedule = denoiser.schedule
        loop, low = _Loop(denoiser, x), self.asked_first(denoiser)
        start, stop = max(self.start, low), max(self.stop, low)
        begin, end = share(schedule, start), share(schedule, stop)
        y = (lift(loop, x, self.start, low) if self.start < low else x) / sum(schedule(start))

        def field(index: Tensor | None) -> Field:
            part = loop.denoiser
            if index is not None and hasattr(part, "rows"):
                part = part.rows(index)
            return lambda y, tau: slope(loop, part, y, tau)

        rows = loop.rows = Rows(field, y, begin, end, self.pair, self.rtol, self.atol)
        slow, k = self.start, 0
        while True:
            if not rows.done:
                rows.advance()
            times = time(schedule, rows.tau)
            far = self.stop if rows.done else float(times.max() if self.start > self.stop else times.min())
            if far == slow and not rows.done:
                continue
            loop.show(self.stop if rows.done and self.stop < low else None)
            step = AdaptiveStep(k, None, slow, far, loop)
            step.times = torch.full_like(times, self.stop) if rows.done else times
            step.evaluations = rows.evaluations
            loop.shown = loop.x
            yield step
            if step.jump is not None:
                raise ValueError("an adaptive run has no grid: it cannot go to a step of it")
            if rows.done:
                return
            if loop.x is not loop.shown:
                loop.changed()
            slow, k = far, k + 1


class _Loop(Loop):
    """The rows of an adaptive run seen as the state x of a run."""

    rows: Rows
    shown: Tensor

    def _scale(self) -> tuple[Any, Any, Any]:
        alpha, sigma = self.denoiser.schedule(time(self.denoiser.schedule, self.rows.tau), like=self.rows.y)
        return alpha, sigma, alpha + sigma

    def show(self, stop: float | None) -> None:
        """The state at each row's time, or after the last Euler step to `stop`; and the prediction, from y and u."""
        rows = self.rows
        tau = left(rows.tau, rows.y)
        x0, eps = rows.y - tau * rows.u, rows.y + (1 - tau) * rows.u
        alpha, sigma, scale = self._scale()
        self.prediction = Prediction(scale * rows.y, alpha, sigma, x0=x0, eps=eps)
        if stop is None:
            self.x = self.prediction.x
        else:
            alpha, sigma = self.denoiser.schedule(stop)
            self.x = x0 if sigma == 0 else alpha * x0 + sigma * eps

    def changed(self) -> None:
        """The caller has set x: its slope is asked for anew."""
        self.rows.y = self.x / self._scale()[2]
        self.rows.u = self.rows.field(None)(self.rows.y, self.rows.tau)
        self.rows.evaluations = self.rows.evaluations + 1

    def take(self, index: Tensor) -> None:
        unchanged = self.x is self.shown
        super().take(index)
        self.rows.take(index)
        if unchanged:
            self.shown = self.x


def adaptive(rtol: float = 1e-5, atol: float = 1e-5, method: str = "dopri5", *, end: float | None = None) -> Adaptive:
    """Embedded Runge-Kutta on the probability flow, with independent error control for every row.

    Args:
        rtol, atol: an error of atol + rtol |y| is allowed in each step, y = x/(alpha + sigma), root mean square over
            a row.
        method: "dopri5", of order 5, or "bosh3", of order 3 for loose tolerances.
        end: the lowest time at which the denoiser is asked; by default such that the Euler step from there to t = 0 is
            off by about `atol`, and not below the first index of a discrete schedule.
    Returns:
        A sampler for `sf.sample`, which takes neither steps nor nfe with it.
    Raises:
        ValueError: an unknown method; a tolerance that is not positive; `end` out of (0, 1).
    """
    if method not in PAIRS:
        raise ValueError(f"unknown method {method!r}: one of {', '.join(PAIRS)}")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be a positive number, got {value}")
    if end is not None and not 0 < end < 1:
        raise ValueError(f"end must be a time in (0, 1), got {end:g}")
    return Adaptive(float(rtol), float(atol), method, end)
