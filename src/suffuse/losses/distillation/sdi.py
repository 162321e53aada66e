"""Score distillation via inversion: the noise is the one that DDIM would make this very image of.

    g = w(logsnr) (eps_hat(x_t) - kappa),    x_t = alpha x + sigma kappa,    kappa by DDIM inversion of x to t

SDS with a fresh eps is DDIM's trajectory of x0 with its noise replaced at every step, which blurs; inverted noise keeps
the image on one trajectory. t is one for the batch.

Lukoianov et al. 2024 (SDI), algorithm 1; they invert with guidance -7.5: `inverter=sf.guide(pos, neg, -7.5)`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suffuse.losses import weights
from suffuse.losses.distillation.push import eps_of, push, weighed
from suffuse.losses.weights import Weight
from suffuse.samplers import ddim, encode

__all__ = ["sdi"]


def sdi(
    model: Any, x: Tensor, *, t: float, inverter: Any = None, steps: int = 10, weight: Weight = weights.x0
) -> Tensor:
    """A loss (B,) whose gradient in x is w (eps_hat - kappa).

    Args:
        model: a denoiser, guided if wanted; not trained. x: images or latents (B, ...), with a graph.
        t: the time, falling as the optimisation goes on, as in `t = 0.98 - 0.96 * share`.
        inverter: the denoiser that inverts; by default the model. steps: of the inversion, one evaluation each.
        weight: as for `sds`.
    Raises:
        ValueError: t is not in (0, 1); steps < 1.
    """
    if not 0 < t < 1:
        raise ValueError(f"t must be in (0, 1), got {t:g}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    by = model if inverter is None else inverter
    alpha, sigma = model.schedule(t)
    grid = [t * (steps - k) / steps for k in range(steps + 1)]
    with torch.no_grad():
        noisy = encode(by, x.detach(), sampler=ddim, grid=grid) * (alpha**2 + sigma**2) ** 0.5
        kappa = (noisy - alpha * x) / sigma
    at = torch.full((len(x),), t, device=x.device)
    return push(x, weighed(model, weight, at, eps_of(model, noisy, at) - kappa))
