"""Classifier-free guidance with a guidance interval, and autoguidance.

x0 = x0_neg + w (x0_pos - x0_neg)   for t in `between`, else x0_pos.       w = 1 is off.

Ho & Salimans 2022, eq. 6 (their w is ours minus one, see `scale`); Kynkaanniemi et al. 2024 for the interval;
Karras et al. 2024 (autoguidance) is the same line with a weaker model as `neg`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import Composed, call, denoiser, together
from suffuse.guidance.guided import Guided, by_row, check_scale
from suffuse.guidance.interval import Pair, bounds, inside
from suffuse.parameterize import Prediction

__all__ = ["guide"]


def guide(pos: Any, neg: Any, w: float | Tensor, *, between: Pair = (0.0, 1.0), logsnr: Pair | None = None) -> Composed:
    """Extrapolate from what we do not want to what we want.

    Args:
        pos, neg: two bindings of one model (evaluated together, in one batch), or two models (autoguidance). A
            negative prompt is what `neg` is told; told nothing, it is classifier-free guidance.
        w: scale, 1 is off and costs nothing; a number, or (B,) for one a row. A tensor is never off.
        between: times where guidance acts, inclusive; t=0 is data, t=1 is noise. Or
        logsnr: the interval as log(alpha^2/sigma^2), inclusive.
    Returns:
        A denoiser on the schedule of the two. Its predictions also offer the negative's (`Prediction.negative`), which
        CFG++ renoises with; outside the interval, where guidance is off, that is `pos` itself.
    Raises:
        ValueError: w is not finite; w = 1 with a negative prompt, which would never be asked; the interval is not
            within 0 <= low <= high <= 1; the two denoisers live on different schedules.
    """
    check_scale(w, pos, neg)
    within = bounds(pos.schedule, None if logsnr is not None and between == (0.0, 1.0) else between, logsnr)
    settings = {"w": w} | ({"logsnr": logsnr} if logsnr else {} if between == (0.0, 1.0) else {"between": between})
    return denoiser(_guided, parts=[pos, neg], name="guide", settings=settings, rows={"w": w}, extra={"within": within})


def _guided(x: Tensor, t: Any, to: Any, pos: Any, neg: Any, *, w: float | Tensor, within: Pair) -> Prediction:
    mask = inside(t, within, x)
    if mask is False or (not isinstance(w, Tensor) and w == 1):
        alone = call(pos, x, t, to)

        def asked() -> Prediction:  # by a sampler (CFG++): then, and only then, it is evaluated
            no = call(neg, x, t, to)
            return alone + (no - alone) * mask if isinstance(mask, Tensor) else no

        return Guided.of(alone, alone, alone if mask is False else asked)
    w = by_row(w, x)
    if isinstance(mask, Tensor):
        w = torch.where(mask > 0, w, 1.0).to(x.dtype)
    yes, no = together([pos, neg], x, t, to)
    out = no + (yes - no) * w
    out.fraction = yes.fraction  # a share of a range: the mean is guided, the variance is the positive's own
    return Guided.of(out, yes, (lambda: yes + (no - yes) * mask) if isinstance(mask, Tensor) else no)
