"""MeanFlow: the mean slope between two times, from one identity and nothing else.

    (tau_t - tau_s) u(x_t, t, s) = integral of v from s to t
    differentiated in tau_t:   u = v - (tau_t - tau_s) du/dtau_t,    loss = |u - sg(v - (tau_t - tau_s) du/dtau)|^2

v is the slope of data and noise at hand (from scratch) or a teacher's. du/dtau along v is one forward-mode pass. Most
rows have s = t, where this is flow matching. Each row is weighed by 1 / (its loss + c)^power.

Geng et al. 2025, eq. 6 and algorithm 1; the weight is their section 4.3, with c = 1e-3.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import Denoiser
from suffuse.losses.couplings import Coupling, independent
from suffuse.losses.denoising import corrupt
from suffuse.losses.fewstep.straight import along, believed, slope, squares, tau, two_time
from suffuse.losses.times import Times, logit_normal
from suffuse.schedules import left

__all__ = ["meanflow"]

_PUBLISHED = partial(logit_normal, mean=-0.4, std=1.0)


def meanflow(
    model: Denoiser,
    batch: Mapping[str, Tensor],
    *,
    teacher: Any = None,
    w: float = 1.0,
    apart: float = 0.25,
    power: float = 1.0,
    times: Times = _PUBLISHED,
    dropout: float = 0.0,
    coupling: Coupling = independent,
) -> Tensor:
    """The MeanFlow identity's error by row.

    Args:
        model: what is trained: a two-time network.
        batch: "x" is clean data (B, ...); every other entry is a condition by name.
        teacher: any denoiser on the student's schedule, or None: from data alone. w: its guidance, 1 is off.
        apart: share of the rows that go from t to an earlier time, the rest being plain flow matching.
        power: of the weight 1 / (loss + 1e-3)^power; 0 is the plain square.
        times: t and s are the larger and smaller of two draws. dropout, coupling: as for `denoising`.
    Returns:
        (B,).
    Raises:
        ValueError: the network is not told `to`; apart out of [0, 1]; the teacher's schedule, or guidance twice.
    """
    two_time(model, "meanflow")
    if not 0 <= apart <= 1:
        raise ValueError(f"apart must be a share in [0, 1], got {apart:g}")
    n, device = len(batch["x"]), batch["x"].device
    ends = torch.stack([times(n, device), times(n, device)])
    t, s = ends.amax(0), ends.amin(0)
    far = round(apart * n)  # rows are in random order, so the first ones are as good as any
    s = torch.where(torch.arange(n, device=device) < far, s, t)
    model, x0, eps, x, _ = corrupt(model, batch, lambda n, device: t, dropout, coupling)
    with torch.no_grad():
        if teacher is not None:
            p = believed(teacher, model, x, t, to=t, w=w)
            x0, eps = p.x0, p.eps
        target = eps - x0
        if far:
            rows, at = slice(0, far), t[:far]
            (alpha, sigma), (da, ds) = model.schedule(at), model.schedule.rates(at)
            rate = (alpha + sigma) ** 2 / (alpha * ds - sigma * da)  # dt/dtau
            du = along(slope, model.rows(rows), x[rows], at, rate, x0[rows], eps[rows], to=s[rows])
            span = left(tau(model.schedule, at) - tau(model.schedule, s[rows]), du)
            target = torch.cat([target[rows] - span * du, target[far:]])
    loss = squares(slope(model(x, t, to=s)) - target)
    return loss / (loss.detach() + 1e-3) ** power
