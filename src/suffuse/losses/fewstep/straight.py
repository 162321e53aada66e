"""What all few-step methods share: the coordinates in which every flow is straight, and maps along it.

    y = x / (alpha + sigma),  tau = sigma / (alpha + sigma):    dy/dtau = u = eps - x0

A two-time network G(x, t, s) is a denoiser told `to` = s: its (x0, eps) is the pair for which one straight step ends
where the flow does, x_s = alpha_s x0 + sigma_s eps, so that u is the mean slope between the two times, and `ddim` runs
it with as many steps as one likes. At s = t it is the slope itself. A consistency model is the case s = 0 alone, where
x_0 = x0, and is an ordinary denoiser.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import Composed, Denoiser, call, together
from suffuse.parameterize import Prediction
from suffuse.schedules import Schedule, left

__all__ = ["along", "believed", "flow_step", "jump", "mean_slope", "slope", "squares", "tau", "two_time"]


def tau(schedule: Schedule, t: Tensor) -> Tensor:
    """sigma / (alpha + sigma) at times (B,): 0 is data, 1 is pure noise."""
    alpha, sigma = schedule(t)
    return sigma / (alpha + sigma)


def slope(p: Prediction) -> Tensor:
    """u = eps - x0, like x."""
    return p.eps - p.x0


def jump(p: Prediction, schedule: Schedule, s: Tensor) -> Tensor:
    """x_s = alpha_s x0 + sigma_s eps, like x: the whole step, where p is a two-time network's with `to` = s."""
    alpha, sigma = schedule(s, like=p.x)
    return alpha * p.x0 + sigma * p.eps


def mean_slope(schedule: Schedule, x: Tensor, t: Tensor, y: Tensor, s: Tensor) -> Tensor:
    """(y_t - y_s) / (tau_t - tau_s) of states x at times t and y at times s < t, (B, ...)."""
    (a, b), (c, d) = schedule(t, like=x), schedule(s, like=x)
    return (x / (a + b) - y / (c + d)) / left(tau(schedule, t) - tau(schedule, s), x)


def flow_step(
    ask: Callable[[Tensor, Tensor], Prediction], schedule: Schedule, x: Tensor, t: Tensor, s: Tensor, order: int
) -> Tensor:
    """x_s from x at t along a flow: Euler's step in (y, tau), or Heun's where s > 0."""
    p = ask(x, t)
    y = jump(p, schedule, s)
    if order == 1:
        return y
    alpha, sigma = schedule(s, like=x)
    span = left(torch.where(s > 0, tau(schedule, t) - tau(schedule, s), 0.0), x)
    return y + (alpha + sigma) * span * (slope(p) - slope(ask(y, s.clamp(min=1e-3)))) / 2


def squares(x: Tensor) -> Tensor:
    """The mean of x^2 by row, (B,)."""
    return x.square().flatten(1).mean(1)


def believed(teacher: Any, student: Any, x: Tensor, t: Any, *, to: Any = None, w: float | Tensor = 1.0) -> Prediction:
    """What a teacher says of x, told what the student is told, and guided away from being told nothing.

    Args:
        teacher: a `Denoiser`, or one made of a single other as `.on(schedule)` makes it, which is told the student's
            conditions as far as it takes them; any other denoiser is asked as it is. student: with its conditions
            bound. w: guidance, 1 is off; a number, or (B,).
    Raises:
        ValueError: the teacher lives on another schedule; guidance of a teacher that is guided already.
    """
    if teacher.schedule != student.schedule:
        raise ValueError(
            f"the teacher lives on {teacher.schedule}, the student on {student.schedule}: use teacher.on(schedule)"
        )
    if not isinstance(w, Tensor) and w == 1:
        return call(_told_as(teacher, student), x, t, to)
    inner = teacher
    while isinstance(inner, Composed) and len(inner.parts) == 1:
        inner = inner.parts[0]
    if not isinstance(inner, Denoiser) or "w" in inner.conditions:
        raise ValueError(f"w would guide twice: {teacher!r} is guided already, give the model itself or leave w at 1")
    pos, neg = together([_told_as(teacher, student), teacher], x, t, to)
    return neg + (pos - neg) * (left(w, x) if isinstance(w, Tensor) else w)


def _told_as(teacher: Any, student: Any) -> Any:
    if not isinstance(teacher, Composed | Denoiser) or not isinstance(student, Denoiser):
        return teacher
    new: Any = copy.copy(teacher)
    if isinstance(teacher, Composed):
        new.parts = [_told_as(part, student) for part in new.parts] if len(new.parts) == 1 else new.parts
        return new
    new.bound = teacher.bound | {k: v for k, v in student.bound.items() if k in teacher.conditions and k != "to"}
    return new


def along(
    read: Callable[[Prediction], Tensor],
    model: Any,
    x: Tensor,
    t: Tensor,
    rate: Tensor,
    x0: Tensor,
    eps: Tensor,
    *,
    to: Any = None,
) -> Tensor:
    """The derivative of what is read off the model's prediction, along x_t = alpha x0 + sigma eps.

    One forward-mode pass, without a graph and in float32: d read/dc = (d read/dx) dx/dc + (d read/dt) dt/dc.

    Args:
        read: (Prediction) -> like x. rate: dt/dc, (B,), of the coordinate c. x0, eps: the line, like x.
    """
    da, ds = model.schedule.rates(t)
    dx = left(rate * da, x) * x0 + left(rate * ds, x) * eps
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return torch.func.jvp(lambda x, t: read(call(model, x, t, to)), (x, t), (dx, rate))[1]


def two_time(model: Any, method: str) -> None:
    """Refuse a network that is not told where a step goes.

    Raises:
        ValueError: it has no condition `to`.
    """
    if isinstance(model, Denoiser) and "to" not in model.conditions:
        raise ValueError(
            f"{method} trains a two-time network, {type(model.net).__name__} is not told where a step goes: build it "
            'with conditions={..., "to": nets.Scalar()}'
        )
