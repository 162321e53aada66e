"""CFG rescale: a guided output gets back the spread that the positive's had.

y = guided output,   y' = y std(y_pos)/std(y),   output = phi y' + (1 - phi) y          std over each sample

Guidance with a large w makes outputs too large, and pictures overexposed. phi = 0 is off.

Lin et al. 2023 (Common diffusion noise schedules and sample steps are flawed), section 3.4.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from suffuse.denoise import Composed, call, denoiser
from suffuse.guidance.guided import Guided
from suffuse.parameterize import Parameterization, Prediction, named

__all__ = ["rescale"]


def rescale(guided: Any, phi: float = 0.7, *, of: str | Parameterization = "v") -> Composed:
    """Give a guided denoiser's output the spread of its positive.

    Args:
        guided: a denoiser whose predictions know their positive: `guide`, `apg`, `cfg_zero`, `classifier`, or what
            `threshold` and `interval` make of them.
        phi: how much of it, 0 to 1; 0 is off.
        of: which output is meant: "v" as in the paper, "x0", "eps", "velocity"; at t = 1 it must not be "eps".
    Raises:
        ValueError: phi out of [0, 1]; when asked, a prediction without a positive, or samples of one number, which
            have no spread.
    """
    if not 0 <= phi <= 1:
        raise ValueError(f"phi is a share in [0, 1], got {phi:g}")
    row = named(of)
    settings = {"phi": phi} | ({} if row.name == "v" else {"of": row.name})
    return denoiser(_rescaled, parts=[guided], name="rescale", settings=settings, extra={"phi": phi, "of": row})


def _rescaled(x: Tensor, t: Any, to: Any, guided: Any, *, phi: float, of: Parameterization) -> Prediction:
    p = call(guided, x, t, to)
    if not isinstance(p, Guided):
        raise ValueError(f"rescale compares with the positive, and {guided!r} has none: hand it a guided denoiser")
    if phi == 0 or p.off:
        return p
    if x[0].numel() < 2:
        raise ValueError(f"rescale compares spreads within a sample, and one of shape {tuple(x.shape[1:])} has none")
    row = of.row(guided.schedule, t, p.alpha, p.sigma)
    y, pos = of.write(p.x0, p.eps, row), of.write(p.positive.x0, p.positive.eps, row)

    def spread(v: Tensor) -> Tensor:
        return v.flatten(1).std(1).reshape(-1, *[1] * (v.ndim - 1))

    y = phi * (y * (spread(pos) / spread(y).clamp(min=1e-12))) + (1 - phi) * y
    out = of.read(y, x, p.alpha, p.sigma, row)
    out.fraction = p.fraction
    return Guided.of(out, p.positive, p._negative)
