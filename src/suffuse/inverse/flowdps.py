"""FlowDPS: the flow's guess of the data is moved towards y, and its guess of the noise is partly drawn anew.

x0' = (1 - v) x0 + v x0*,                 x0* = some gradient steps of |y - A(x0)|^2/2 from x0
x_b = alpha_b x0' + sigma_b (sqrt(v_b) eps + sqrt(1 - v_b) z),    v = sigma/(alpha + sigma), the flow's time

Approximated: d x0/d x_t by the identity, and the likelihood's scale by the number and length of the gradient steps: no
vjp of the model. What was moved hardly counts towards the end (v -> 0), where the model has the last word: y is met
less closely than its noise, and the spread is too small where y is informative.

Kim et al. 2025 (FlowDPS: flow-driven posterior sampling for inverse problems).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suffuse import grids
from suffuse.inverse.measured import checked, residual
from suffuse.operators import Operator
from suffuse.random import noise as normal
from suffuse.samplers import ddim, run
from suffuse.samplers.flow import share

__all__ = ["flowdps"]

_STREAM = 0xF10D  # of its own: the noise that is drawn anew


@torch.no_grad()
def flowdps(
    model: Any,
    A: Operator,
    y: Tensor,
    noise: Tensor,
    *,
    steps: int,
    inner: int = 3,
    scale: float = 1.0,
    seed: int,
    first: int = 0,
) -> Tensor:
    """Samples steered towards y, of a flow or any other denoiser, of data or of latents.

    Args:
        model: the prior, a denoiser. A: any operator with a gradient, such as `A @ operators.Decode(codec)`.
        y: (1 or B, ...). noise: (B, ...).
        steps: of the grid `grids.flow`, one evaluation each. inner: gradient steps in each, of length `scale`; above
            2 / (largest singular value of A)^2 they do not settle.
        seed, first: as for `sf.sample`.
    Returns:
        (B, ...), latents of a latent model.
    Raises:
        TypeError: A has no gradient. ValueError: y has a NaN, or does not fit; steps or inner below 1.
    """
    A, y = checked("flowdps", A, y, linear=False, gradient=True)
    if inner < 1:
        raise ValueError(f"inner counts gradient steps, at least 1, got {inner}")
    y, x, schedule = y.to(noise), noise, model.schedule
    for step in run(model, noise, sampler=ddim, grid=grids.flow(schedule, steps)):
        p, (alpha, sigma), v = step.prediction, schedule(step.s), share(schedule, step.s)
        moved = p.x0
        for _ in range(inner):
            moved = moved + scale * A.vjp(moved, residual(A, moved, y))
        at = share(schedule, step.t)
        z = normal(tuple(x.shape), seed, stream=_STREAM, step=step.k, first=first, dtype=x.dtype, device=x.device)
        x0 = (1 - at) * p.x0 + at * moved
        step.x = x = alpha * x0 + sigma * (v**0.5 * p.eps + (1 - v) ** 0.5 * z) if sigma > 0 else x0
    return x
