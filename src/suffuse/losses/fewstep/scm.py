"""Continuous-time consistency: the gap between the two times goes to 0, and the tangent of f along the path remains.

With tan a = sigma / (alpha s), s the data's standard deviation, every schedule is TrigFlow:

    y = x / q = cos a (x0/s) + sin a eps,   F = cos a eps - sin a (x0/s) predicted,   f = cos a y - sin a F
    df/da = cos a (dy/da - F) - r sin a (y + dF/da)
    g = cos a df/da,   g <- g / (|g| + c),    loss = |F - sg(F + g)|^2 / D

dF/da is one forward-mode pass (torch.func.jvp) along dy/da, which is the teacher's v (distillation), or that of the data
and noise at hand (training): the same on average. r rises from 0 to 1, as the second half of the tangent is what
makes early training unstable.

Lu & Song 2024 (sCM), algorithm 1, without its learned weight.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import Denoiser
from suffuse.losses.couplings import Coupling, independent
from suffuse.losses.denoising import corrupt
from suffuse.losses.fewstep.straight import along, believed, squares
from suffuse.losses.times import Times, stratified
from suffuse.parameterize import Prediction
from suffuse.schedules import left

__all__ = ["continuous_consistency"]


def continuous_consistency(
    model: Denoiser,
    batch: Mapping[str, Tensor],
    *,
    teacher: Any = None,
    w: float = 1.0,
    data_std: float = 1.0,
    warmup: float = 1.0,
    normalise: float | None = 0.1,
    times: Times = stratified,
    dropout: float = 0.0,
    coupling: Coupling = independent,
) -> Tensor:
    """|F - sg(F + tangent)|^2 by row, whose value is the tangent's own size and not a measure of progress.

    Args:
        model: what is trained: any network but one that predicts x0.
        batch: "x" is clean data (B, ...); every other entry is a condition by name.
        teacher: any denoiser on the student's schedule (sCD), or None: from data alone (sCT). w: its guidance.
        data_std: s. warmup: r in [0, 1], best through `Annealed`.
        normalise: c of g / (|g| + c), |g| the norm over sqrt(D); None leaves the tangent as it is.
        times, dropout, coupling: as for `denoising`.
    Returns:
        (B,).
    Raises:
        ValueError: data_std is not positive, warmup out of [0, 1]; the teacher's schedule, or guidance twice.
    """
    if not data_std > 0 or not 0 <= warmup <= 1:
        raise ValueError(f"data_std must be positive and warmup in [0, 1], got {data_std:g} and {warmup:g}")
    model, x0, eps, x, t = corrupt(model, batch, times, dropout, coupling)
    alpha, sigma = model.schedule(t)
    da, ds = model.schedule.rates(t)
    square = (alpha * data_std) ** 2 + sigma**2
    cos, sin = left(alpha * data_std / square.sqrt(), x), left(sigma / square.sqrt(), x)
    end = torch.zeros_like(t)

    def field(p: Prediction) -> Tensor:
        q = ((p.alpha * data_std) ** 2 + p.sigma**2) ** 0.5
        return (p.alpha * data_std * p.eps - p.sigma * p.x0 / data_std) / q

    with torch.no_grad():
        if teacher is not None:
            p = believed(teacher, model, x, t, to=t, w=w)
            x0, eps = p.x0, p.eps
        y, dy = cos * x0 / data_std + sin * eps, cos * eps - sin * x0 / data_std
        rate = square / (data_std * (alpha * ds - sigma * da))  # dt/da
        slope = along(field, model, x, t, rate, x0, eps, to=end)
    out = field(model(x, t, to=end))
    with torch.no_grad():
        g = cos * (cos * (dy - out) - warmup * sin * (y + slope))
        if normalise is not None:
            g = g / (left(squares(g).sqrt(), x) + normalise)
    return squares(out - (out.detach() + g))
