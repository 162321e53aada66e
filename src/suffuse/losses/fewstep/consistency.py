"""Consistency models: every point of a path of the flow is mapped to its end, in one evaluation.

    f(x_t, t) = x0 of the network,    loss = d(f(x_t, t), sg f(x_s, s)) / (tau_t - tau_s),    s just below t

where x_s lies on the same path: by a step of a teacher's flow (distillation), or on the same line to the same data and
noise (training), which agrees with it on average as s -> t. f(x, 0) = x holds by construction for every network
that does not predict x0 itself. A two-time network is trained as f(x, t, to = 0).

d is the square, or pseudo-Huber sqrt(|a - b|^2 + c^2) - c with c = 0.00054 sqrt(D). What is targeted is the student
itself without a gradient, not an average of it (Song & Dhariwal 2023, section 3.2).

Song et al. 2023, algorithms 2 and 3; Song & Dhariwal 2023 (iCT); Geng et al. 2024 (ECT), whose gap shrinks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import Denoiser
from suffuse.losses.couplings import Coupling, independent
from suffuse.losses.denoising import corrupt
from suffuse.losses.fewstep.straight import believed, flow_step, tau
from suffuse.losses.times import Times, stratified
from suffuse.schedules import Schedule

__all__ = ["Gap", "consistency_distillation", "consistency_training", "intervals", "ratio"]

Gap = Callable[[Tensor], Tensor]
"""tau_t (B,) -> tau_s below it."""


def intervals(n: float) -> Gap:
    """tau_s = max(tau_t - 1/n, 0): n equal intervals; iCT doubles n as training goes on, from 10 to 1,280."""
    return lambda at: (at - 1 / n).clamp(min=0)


def ratio(r: float) -> Gap:
    """tau_s = r tau_t: r = 0 is plain denoising, and ECT brings it towards 1 in stages, 1 - r halving."""
    return lambda at: r * at


def consistency_training(
    model: Denoiser,
    batch: Mapping[str, Tensor],
    *,
    gap: Gap,
    times: Times = stratified,
    huber: float | None = 0.00054,
    dropout: float = 0.0,
    coupling: Coupling = independent,
) -> Tensor:
    """Consistency of two points on the line through one data point and one noise, by row.

    Args:
        model: what is trained: any network but one that predicts x0, so that f(x, 0) = x.
        batch: "x" is clean data (B, ...); every other entry is a condition by name.
        gap: `intervals` or `ratio`, best through `Annealed`. times: as for `denoising`.
        huber: c / sqrt(D) of the pseudo-Huber distance, or None for the mean square.
        dropout, coupling: as for `denoising`.
    Returns:
        (B,).
    Raises:
        ValueError: the network predicts x0.
    """
    model, x0, eps, x, t = corrupt(model, batch, times, dropout, coupling)
    s = below(model.schedule, t, gap)
    alpha, sigma = model.schedule(s, like=x)
    return agreement(model, x, t, alpha * x0 + sigma * eps, s, huber)


def consistency_distillation(
    model: Denoiser,
    batch: Mapping[str, Tensor],
    *,
    teacher: Any,
    gap: Gap,
    order: int = 2,
    w: float | Tensor = 1.0,
    times: Times = stratified,
    huber: float | None = 0.00054,
    dropout: float = 0.0,
    coupling: Coupling = independent,
) -> Tensor:
    """Consistency of two points on one path of a teacher's flow, by row.

    Args:
        model, batch, gap, times, huber, dropout, coupling: as for `consistency_training`.
        teacher: any denoiser on the student's schedule. order: of the step along its flow: 1 Euler, 2 Heun.
        w: guidance of the teacher, 1 is off; a number, or (B,).
    Returns:
        (B,).
    Raises:
        ValueError: the network predicts x0; order; the teacher's schedule, or guidance twice.
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 (Euler) or 2 (Heun), got {order}")
    model, _, _, x, t = corrupt(model, batch, times, dropout, coupling)
    s = below(model.schedule, t, gap)
    with torch.no_grad():
        y = flow_step(lambda x, t: believed(teacher, model, x, t, to=s, w=w), model.schedule, x, t, s, order)
    return agreement(model, x, t, y, s, huber)


def agreement(model: Denoiser, x: Tensor, t: Tensor, y: Tensor, s: Tensor, huber: float | None) -> Tensor:
    """d(f(x, t), sg f(y, s)) / (tau_t - tau_s), by row."""
    if model.parameterization.name == "x0":
        raise ValueError(
            'a consistency model is the identity at t = 0, which a network that predicts "x0" is not by construction: '
            "predict velocity, v or edm"
        )
    end = torch.zeros_like(t)
    with torch.no_grad():
        target = model(y, s, to=end).x0
    apart = (model(x, t, to=end).x0 - target).flatten(1)
    if huber is None:
        distance = apart.square().mean(1)
    else:
        c = huber * apart.shape[1] ** 0.5
        distance = (apart.square().sum(1) + c * c).sqrt() - c
    return distance / (tau(model.schedule, t) - tau(model.schedule, s)).clamp(min=1e-6)


def below(schedule: Schedule, t: Tensor, gap: Gap) -> Tensor:
    """The times (B,) that the gap leads to from t, exactly 0 where tau is."""
    at = gap(tau(schedule, t))
    return torch.where(at > 0, schedule.time(2 * (torch.log1p(-at) - at.log())), 0.0).clamp(0, 1)
