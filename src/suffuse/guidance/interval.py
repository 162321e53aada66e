"""Guidance in a limited interval of noise levels: guided inside, the base outside.

Kynkaanniemi et al. 2024 (Applying guidance in a limited interval improves sample and distribution quality).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import Composed, call, denoiser
from suffuse.guidance.guided import Guided
from suffuse.parameterize import Prediction
from suffuse.schedules import Schedule, left

__all__ = ["bounds", "inside", "interval"]

Pair = tuple[float, float]


def bounds(schedule: Schedule, between: Pair | None, logsnr: Pair | None) -> Pair:
    """The interval in time, from times or from log(alpha^2/sigma^2); without either all of it.

    Raises:
        ValueError: both are given; not 0 <= low <= high <= 1; not low <= high.
    """
    if between is not None and logsnr is not None:
        raise ValueError(f"give the interval once, got between={between} and logsnr={logsnr}")
    if logsnr is not None:
        low, high = logsnr
        if not low <= high:
            raise ValueError(f"logsnr must be two numbers low <= high (falling in t), got {logsnr}")
        ends = schedule.logsnr(1.0), float("inf")
        late, early = (0.0 if v == ends[1] else 1.0 if v <= ends[0] else schedule.time(v) for v in (high, low))
        return min(max(late, 0.0), 1.0), min(max(early, 0.0), 1.0)
    low, high = between or (0.0, 1.0)
    if not 0 <= low <= high <= 1:
        raise ValueError(f"between must be two times 0 <= low <= high <= 1, got {between}")
    return low, high


def inside(t: Any, within: Pair, x: Tensor) -> Tensor | bool:
    """Whether t lies in the interval, ends included: a bool, or for (B,) times a mask of 0 and 1 that fits x."""
    low, high = within
    if isinstance(t, Tensor):  # compared in its own precision
        between = (t >= low) & (t <= high)
        return left(between, x) if t.ndim else bool(between)
    return low <= float(t) <= high


def interval(guided: Any, base: Any, *, between: Pair | None = None, logsnr: Pair | None = None) -> Composed:
    """Any guided denoiser within an interval, and the base outside, where the guided one is not asked.

    Args:
        guided, base: denoisers on one schedule. `sf.guide` has the interval built in.
        between: times, inclusive; t=0 is data, t=1 is noise. Or
        logsnr: log(alpha^2/sigma^2), inclusive; infinities are allowed.
    Raises:
        ValueError: as for `bounds`; different schedules.
    """
    within = bounds(base.schedule, between, logsnr)
    settings = {"between": between} if logsnr is None else {"logsnr": logsnr}
    return denoiser(_limited, parts=[guided, base], name="interval", settings=settings, extra={"within": within})


def _limited(x: Tensor, t: Any, to: Any, guided: Any, base: Any, *, within: Pair) -> Prediction:
    mask = inside(t, within, x)
    if mask is True:
        return call(guided, x, t, to)
    alone = call(base, x, t, to)
    if not isinstance(mask, Tensor):
        return Guided.of(alone, alone, alone)
    strong = call(guided, x, t, to)

    def mixed(p: Prediction) -> Prediction:
        def each(quantity: str) -> Tensor:
            return torch.where(mask > 0, getattr(p, quantity), getattr(alone, quantity))

        out = Prediction(x, alone.alpha, alone.sigma, x0=lambda: each("x0"), eps=lambda: each("eps"))
        out.fraction = alone.fraction
        return out

    if not isinstance(strong, Guided):
        return mixed(strong)
    negative = None if strong._negative is None else lambda: mixed(strong.negative)  # type: ignore[arg-type]
    return Guided.of(mixed(strong), mixed(strong.positive), negative)
