"""Dynamic thresholding: what a denoiser believes stays in the range of the data.

s = max(limit, percentile of |x0| in each sample),   x0 <- clip(x0, -s, s) limit/s

Without a percentile (static thresholding) s = limit. Saharia et al. 2022 (Imagen), section 2.3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import Composed, call, denoiser
from suffuse.guidance.guided import rebuilt
from suffuse.parameterize import Prediction

__all__ = ["threshold"]


def threshold(model: Any, percentile: float | None = 99.5, *, limit: float = 1.0) -> Composed:
    """Keep x0 in [-limit, limit]; eps goes with it.

    Args:
        model: any denoiser of data with hard limits: pixels, not latents.
        percentile: of |x0| within one sample, in (0, 100], that is scaled down to the limit where it lies beyond; None
            clips only.
        limit: of the data.
    Raises:
        ValueError: percentile or limit out of range; a model of latents, and no limit of theirs.
    """
    if percentile is not None and not 0 < percentile <= 100:
        raise ValueError(f"percentile must be in (0, 100], got {percentile:g}")
    if not limit > 0:
        raise ValueError(f"limit must be positive, got {limit:g}")
    if limit == 1 and getattr(model, "codec", None) is not None:
        raise ValueError("latents do not end at 1: thresholding is for pixels, or takes the latents' own limit=")
    settings = {"percentile": percentile} | ({} if limit == 1 else {"limit": limit})
    return denoiser(
        _thresholded,
        parts=[model],
        name="threshold",
        settings=settings,
        extra={"percentile": percentile, "limit": limit},
    )


def _thresholded(x: Tensor, t: Any, to: Any, model: Any, *, percentile: float | None, limit: float) -> Prediction:
    p = call(model, x, t, to)

    def x0() -> Tensor:
        if percentile is None:
            return p.x0.clamp(-limit, limit)
        s = torch.quantile(p.x0.flatten(1).abs(), percentile / 100, dim=1).clamp(min=limit)
        s = s.reshape(-1, *[1] * (x.ndim - 1))
        return p.x0.clamp(-s, s) * (limit / s)

    return rebuilt(p, x0)
