"""CFG-Zero*: the negative's velocity is scaled to fit the positive's before it is pushed away from.

s = <u_pos, u_neg> / |u_neg|^2,    u = s u_neg + w (u_pos - s u_neg),    u = 0 for t > 1 - zero_init       w = 1 is off

u is the velocity alpha' x0 + sigma' eps, products are each sample's own. Early in training, and near t = 1, the
negative's velocity is wrong in its size more than in its direction: s takes that out.

Fan et al. 2025 (CFG-Zero*: improved classifier-free guidance for flow matching models).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import Composed, call, denoiser, together
from suffuse.guidance.guided import Guided, by_row, check_scale
from suffuse.parameterize import Prediction, velocity
from suffuse.schedules import left

__all__ = ["cfg_zero"]


def cfg_zero(pos: Any, neg: Any, w: float | Tensor, *, zero_init: float = 0.0) -> Composed:
    """Guide with the best multiple of the negative's velocity.

    Args:
        pos, neg, w: as for `guide`.
        zero_init: share of time at the noisy end in which nothing moves; 0 is off. The paper leaves out the first step
            of N, which any value below the length of that step does. For samplers of flows, such as `ddim`.
    Raises:
        ValueError: w is not finite; zero_init out of [0, 1); different schedules.
    """
    check_scale(w, pos, neg)
    if not 0 <= zero_init < 1:
        raise ValueError(f"zero_init is a share of time in [0, 1), got {zero_init:g}")
    settings = {"w": w} | ({"zero_init": zero_init} if zero_init else {})
    return denoiser(
        _zero, parts=[pos, neg], name="cfg_zero", settings=settings, rows={"w": w}, extra={"zero_init": zero_init}
    )


def _zero(x: Tensor, t: Any, to: Any, pos: Any, neg: Any, *, w: float | Tensor, zero_init: float) -> Prediction:
    if not isinstance(w, Tensor) and w == 1:
        alone = call(pos, x, t, to)
        return Guided.of(alone, alone, lambda: call(neg, x, t, to))
    yes, no = together([pos, neg], x, t, to)
    row = velocity.row(pos.schedule, t, yes.alpha, yes.sigma)
    u, base = velocity.write(yes.x0, yes.eps, row), velocity.write(no.x0, no.eps, row)
    fit = (u * base).flatten(1).sum(1) / base.flatten(1).square().sum(1).clamp(min=1e-12)
    base = fit.reshape(-1, *[1] * (x.ndim - 1)) * base
    w = by_row(w, x)
    u = base + w * (u - base)
    if zero_init:
        late = t > 1 - zero_init
        u = torch.where(left(late, x) > 0, 0, u) if isinstance(late, Tensor) else 0 * u if late else u
    out = velocity.read(u, x, yes.alpha, yes.sigma, row)
    out.fraction = yes.fraction
    return Guided.of(out, yes, no)
