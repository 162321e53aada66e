"""Posterior distillation sampling: edit so that the stochastic latents of source and target agree.

    z(x) = (x_s - mu(x_t; s, t)) / std,    mu, std of the DDPM posterior q(x_s | x_t, x0_hat(x_t)),    s = t - gap
    g = z(x; target) - z(original; source text)

Both noises, that of x_t and that of x_s, are shared by the two. What the target is told pulls, and what is not named
holds: written out, g = c [(x - original) - (x0_hat - x0_hat of the original)], with c = (weight of x0 in mu) / std.

Koo et al. 2024 (posterior distillation sampling).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import call
from suffuse.losses import weights
from suffuse.losses.distillation.dds import alike
from suffuse.losses.distillation.push import push, weighed, window
from suffuse.losses.times import Times
from suffuse.losses.weights import Weight

__all__ = ["pds", "stochastic_latent"]


def stochastic_latent(model: Any, x: Tensor, t: Tensor, s: Tensor, eps_t: Tensor, eps_s: Tensor) -> Tensor:
    """z, like x: the noise that DDPM's step from x_t to x_s would have drawn, as the model sees it.

    Args:
        x: clean data (B, ...). t, s: (B,) with s < t. eps_t, eps_s: the noise of x_t and of x_s, like x.
    """
    (a, b), (c, d) = model.schedule(t, like=x), model.schedule(s, like=x)
    ratio = (a * d / (c * b)).square()  # of snr(t) to snr(s)
    x_t, x_s = a * x + b * eps_t, c * x + d * eps_s
    mean = c * (1 - ratio) * call(model, x_t, t).x0 + a * d * d / (c * b * b) * x_t
    return (x_s - mean) / (d * (1 - ratio).sqrt())


def pds(
    target: Any,
    x: Tensor,
    source: Any,
    original: Tensor,
    *,
    times: Times | None = None,
    gap: float = 0.02,
    weight: Weight = weights.x0,
) -> Tensor:
    """A loss (B,) whose gradient in x is w (z(x; target) - z(original; source)).

    Args:
        target, x, source, original: as for `dds`.
        times: of t; by default `window(0.05, 0.98)`, from 2 `gap` on. gap: t - s, but at most t / 2. weight: a
            function of logsnr at t; the default evens out c, which grows without bound towards clean data.
    Raises:
        ValueError: images of different shapes; denoisers on different schedules; gap is not positive.
    """
    alike(target, x, source, original)
    if not gap > 0:
        raise ValueError(f"gap must be a positive step of time, got {gap:g}")
    t = (times or window(max(0.05, 2 * gap), 0.98))(len(x), x.device)
    s = torch.maximum(t - gap, t / 2)
    with torch.no_grad():
        eps_t, eps_s = torch.randn_like(x), torch.randn_like(x)
        g = stochastic_latent(target, x, t, s, eps_t, eps_s) - stochastic_latent(source, original, t, s, eps_t, eps_s)
    return push(x, weighed(target, weight, t, g))
