"""ReSample: in some steps x0 is moved until it explains y, and the state is drawn anew from it and from the old one.

x0*  = argmin |y - A(x0)|^2, from the model's x0, no further than the noise of y allows
x_b  ~ N((g x_b* + s x_b)/(g + s), g s/(g + s) I),    x_b* = alpha_b x0*,  s = sigma_b^2,
       g = strength (sigma_b/alpha_a)^2 (1 - (alpha_a/alpha_b)^2)

the paper's resampling for any schedule. Made for latents, where A is `A @ operators.Decode(codec)`: a decoder is not
linear, and no projection is known.

Approximated: x0* is a point where p(x0 | x_t, y) is spread, and what y does not see keeps the prior's x0; between those
steps y is forgotten. The spread is too small, and weights of modes are wrong.

Song et al. 2024 (Solving inverse problems with latent diffusion models via hard data consistency), algorithm 1; their
strength is 40.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suffuse import grids
from suffuse.inverse.measured import checked, checked_sigma, residual
from suffuse.operators import Operator
from suffuse.random import noise as normal
from suffuse.samplers import ddim, run

__all__ = ["resample"]

_STREAM = 0x4E5A  # of its own: the noise of what is drawn anew


def explained(A: Operator, y: Tensor, x0: Tensor, sigma: float, *, rate: float, steps: int) -> Tensor:
    """x0 moved by Adam until |y - A(x0)|^2 is what noise of sigma leaves; a row that is there is left alone."""
    enough = sigma**2 * y[0].numel()
    m, v = torch.zeros_like(x0), torch.zeros_like(x0)
    for k in range(1, steps + 1):
        r = residual(A, x0, y)
        going = r.square().flatten(1).sum(1) > enough
        if not bool(going.any()):
            break
        g = -A.vjp(x0, r)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        step = rate * (m / (1 - 0.9**k)) / ((v / (1 - 0.99**k)).sqrt() + 1e-8)
        x0 = torch.where(going.reshape(-1, *[1] * (x0.ndim - 1)), x0 - step, x0)
    return x0


@torch.no_grad()
def resample(
    model: Any,
    A: Operator,
    y: Tensor,
    noise: Tensor,
    sigma: float,
    *,
    steps: int,
    every: int = 5,
    below: float = 0.9,
    rate: float = 0.02,
    inner: int = 100,
    strength: float = 40.0,
    seed: int,
    first: int = 0,
) -> Tensor:
    """Samples that explain y, of any operator with a gradient.

    Args:
        model: the prior, a denoiser. A: any operator with a gradient. y: (1 or B, ...); noise: (B, ...).
        sigma: of the measurement's noise, at least 0: where to stop moving x0.
        steps: of the grid `grids.flow`, one evaluation each. every: in each how-manyeth of them, and in the last, x0
            is moved, once t is at most `below`. rate, inner: of that, by Adam; no vjp of the model.
        strength: how much a new state may differ from the old one. seed, first: as for `sf.sample`.
    Returns:
        (B, ...), latents of a latent model.
    Raises:
        TypeError: A has no gradient. ValueError: y has a NaN, or does not fit; a negative sigma; steps, every or inner
            below 1.
    """
    A, y = checked("resample", A, y, linear=False, gradient=True)
    sigma = checked_sigma("resample", sigma)
    if every < 1:
        raise ValueError(f"every counts steps, at least 1, got {every}")
    if inner < 1:
        raise ValueError(f"inner counts gradient steps, at least 1, got {inner}")
    y, x = y.to(noise), noise
    for step in run(model, noise, sampler=ddim, grid=grids.flow(model.schedule, steps)):
        x, (alpha, _), (alpha_b, sigma_b) = step.x, model.schedule(step.t), model.schedule(step.s)
        if step.s > 0 and (step.t > below or (step.n - step.k - 1) % every):  # type: ignore[operator]
            continue
        x0 = explained(A, y, step.prediction.x0, sigma, rate=rate, steps=inner)
        if sigma_b == 0:
            step.x = x = x0
            continue
        s, g = sigma_b**2, strength * (sigma_b / max(alpha, 1e-3)) ** 2 * (1 - (alpha / alpha_b) ** 2)
        z = normal(tuple(x.shape), seed, stream=_STREAM, step=step.k, first=first, dtype=x.dtype, device=x.device)
        step.x = x = (g * alpha_b * x0 + s * x) / (g + s) + (g * s / (g + s)) ** 0.5 * z
    return x
