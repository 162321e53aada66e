"""Data known to lie in a range: x0 clamped to [-limit, limit], eps rebuilt from x.

What DDPMScheduler does by default (clip_sample).   Ho et al. 2020, their code.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from suffuse.denoise import Composed, call, denoiser
from suffuse.parameterize import Prediction

__all__ = ["clip"]


def clip(part: Any, limit: float = 1.0) -> Composed:
    """Believe that no value of x0 is beyond +-limit.

    Args:
        part: a denoiser of data in a known range (images in [-1, 1], not latents).
        limit: the largest magnitude, in the data's units.
    Raises:
        ValueError: the limit is not a positive number.
    """
    if not (limit > 0 and math.isfinite(limit)):
        raise ValueError(f"limit must be a positive number, got {limit}")
    return denoiser(_clipped, parts=[part], name="clip", settings={"limit": limit}, extra={"limit": limit})


def _clipped(x: Tensor, t: Any, to: Any, part: Any, *, limit: float) -> Prediction:
    inner = call(part, x, t, to)
    return Prediction(x, inner.alpha, inner.sigma, x0=lambda: inner.x0.clamp(-limit, limit))
