"""RED-diff: one picture, improved by gradient steps in which the denoiser is the regulariser.

loss(mu) = |y - A(mu)|^2/2 + w(t) <sg(eps(x_t) - eps), mu>,
x_t = alpha mu + sigma_t eps,    w(t) = weight sigma_t/alpha

by Adam, t falling.

Approximated: the posterior by a point, so there is no spread at all and one mode is chosen; `weight` stands in for the
measurement's noise. It shows as smooth pictures.

Mardani et al. 2024 (A variational perspective on solving inverse problems with diffusion models), algorithm 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suffuse import grids
from suffuse.denoise import call, evaluating, networks
from suffuse.inverse.measured import checked, residual
from suffuse.operators import Operator
from suffuse.random import noise as normal

__all__ = ["reddiff"]

_STREAM = 0x4EDD  # of its own: the noise of each look


@torch.no_grad()
def reddiff(
    model: Any,
    A: Operator,
    y: Tensor,
    start: Tensor,
    *,
    steps: int = 100,
    rate: float = 0.1,
    weight: float = 0.25,
    seed: int,
    first: int = 0,
) -> Tensor:
    """A picture that explains y and that the model finds likely.

    Args:
        model: the prior, a denoiser. A: any operator with a gradient. y: (1 or B, ...).
        start: (B, ...) where mu begins, such as `A.pinv(y)`.
        steps: of Adam, one evaluation each and no vjp of the model. rate: of Adam. weight: of the regulariser.
        seed, first: as for `sf.sample`.
    Returns:
        mu, (B, ...).
    Raises:
        TypeError: A has no gradient. ValueError: y has a NaN, or does not fit.
    """
    A, y = checked("reddiff", A, y, linear=False, gradient=True)
    mu, y = start.clone(), y.to(start)
    m, v = torch.zeros_like(mu), torch.zeros_like(mu)
    modules = [net for n in networks(model) for net in n.modules()]
    for k, t in enumerate(grids.uniform(model.schedule, steps, start=0.99).tolist()[:-1]):
        alpha, sigma = model.schedule(t)
        kind = {"dtype": mu.dtype, "device": mu.device}
        eps = normal(tuple(mu.shape), seed, stream=_STREAM, step=k, first=first, **kind)
        with evaluating(modules):
            seen = call(model, alpha * mu + sigma * eps, t).eps
        g = weight * sigma / alpha * (seen - eps) - A.vjp(mu, residual(A, mu, y))
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        mu = mu - rate * (m / (1 - 0.9 ** (k + 1))) / ((v / (1 - 0.99 ** (k + 1))).sqrt() + 1e-8)
    return mu
