"""Classifier-free guidance with a guidance interval, and autoguidance.

x0 = x0_neg + w (x0_pos - x0_neg)   for t in `between`, else x0_pos.       w = 1 is off.

Ho & Salimans 2022, eq. 6 (their w is ours minus one); Kynkaanniemi et al. 2024 for the interval;
Karras et al. 2024 (autoguidance) is the same line with a weaker model as `neg`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import Composed, call, denoiser, together
from suffuse.parameterize import Prediction
from suffuse.schedules import left

__all__ = ["guide"]


def guide(pos: Any, neg: Any, w: float | Tensor, *, between: tuple[float, float] = (0.0, 1.0)) -> Composed:
    """Extrapolate from what we do not want to what we want.

    Args:
        pos, neg: two bindings of one model (evaluated together, in one batch), or two models (autoguidance).
        w: scale, 1 is off and costs nothing; a number, or (B,) for one a row.
        between: times where guidance acts, inclusive; t=0 is data, t=1 is noise.
    Returns:
        A denoiser on the schedule of the two. Its predictions also offer the negative's (`Prediction.negative`), which
        CFG++ renoises with; outside `between`, where guidance is off, that is `pos` itself.
    Raises:
        ValueError: w is not finite; the interval is not within 0 <= low <= high <= 1; the two denoisers live on
            different schedules.
    """
    finite = bool(w.isfinite().all()) if isinstance(w, Tensor) else math.isfinite(w)
    if not finite:
        raise ValueError(f"w must be a finite number, got {w}")
    low, high = between
    if not 0 <= low <= high <= 1:
        raise ValueError(f"between must be two times 0 <= low <= high <= 1, got {between}")
    settings = {"w": w} | ({} if between == (0.0, 1.0) else {"between": between})
    return denoiser(
        _guided, parts=[pos, neg], name="guide", settings=settings, rows={"w": w}, extra={"between": between}
    )


def _guided(
    x: Tensor, t: Any, to: Any, pos: Any, neg: Any, *, w: float | Tensor, between: tuple[float, float]
) -> Prediction:
    low, high = between
    inside = None
    if isinstance(t, Tensor) and t.ndim:
        inside = left((t >= low) & (t <= high), x)
        w = torch.where(inside > 0, left(w, x) if isinstance(w, Tensor) else w, 1.0).to(x.dtype)
    elif not low <= float(t) <= high or (not isinstance(w, Tensor) and w == 1):
        alone = call(pos, x, t, to)
        # a sampler may ask for the negative all the same (CFG++): then, and only then, it is evaluated
        return alone.against(lambda: call(neg, x, t, to)) if low <= float(t) <= high else alone.against(alone)
    elif isinstance(w, Tensor):
        w = left(w, x)
    yes, no = together([pos, neg], x, t, to)
    out = no + (yes - no) * w
    out.fraction = yes.fraction  # a share of a range: the mean is guided, the variance is the positive's own
    return out.against(no if inside is None else lambda: yes + (no - yes) * inside)
