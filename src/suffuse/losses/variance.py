"""Learning the variance of a step: the hybrid of the denoising loss and the variational bound.

loss = denoising + vlb T KL(q(x_b | x_a, x0) || N(mean, d^2)),    b = a - 1/T

    log d^2 = f log beta + (1 - f) log beta_small,    f = (v + 1)/2,

where v is the second half of the network's channels, and the mean is held fixed in the second term, so that v alone
learns from it. The last step, to t = 0, adds no noise and has no term.

Nichol & Dhariwal 2021, eqs. 15 and 16.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from suffuse.denoise import Denoiser
from suffuse.losses.denoising import corrupt, error
from suffuse.losses.times import Times, stratified
from suffuse.losses.weights import Weight
from suffuse.schedules import Schedule, left

__all__ = ["hybrid"]


def hybrid(
    model: Denoiser,
    batch: Mapping[str, Tensor],
    *,
    times: Times = stratified,
    weight: Weight | None = None,
    dropout: float = 0.0,
    steps: int = 1000,
    vlb: float = 1e-3,
) -> Tensor:
    """The denoising loss plus the bound that teaches the variance, by row.

    Args:
        model: a `Denoiser(..., variance="range")`, whose network answers twice the channels.
        batch, times, weight, dropout: as for `denoising`.
        steps: T, of the chain whose steps' variance is learned; sampling with fewer steps reads f as it is.
        vlb: weight of the bound, the paper's lambda.
    Returns:
        (B,), nats per number of x in the second term.
    Raises:
        ValueError: the model has no learned variance.
    """
    if model.variance != "range":
        raise ValueError(f"hybrid learns a variance: it needs Denoiser(..., variance='range'), got {model!r}")
    model, x0, eps, x, t = corrupt(model, batch, times, dropout)
    both, alpha, sigma, row = model._output(x, t, model.told(x))
    out, v = both.chunk(2, 1)
    simple = error(model, out, x0, eps, t, alpha, sigma, row, weight)
    believed = model.parameterization.read(out.detach(), x, alpha, sigma, row).x0
    wrong = (x0 - believed).square()
    bound = _kl(model.schedule, t, 1 / steps, wrong, (v + 1) / 2)
    return simple + vlb * steps * bound.flatten(1).mean(1)


def _kl(schedule: Schedule, t: Tensor, h: float, wrong: Tensor, fraction: Tensor) -> Tensor:
    """KL(N(m, small) || N(m', d^2)) elementwise, where |m - m'|^2 is on_x0^2 times the squared error of x0."""
    a = t.double()
    b = (a - h).clamp(min=0)
    (alpha_a, sigma_a), (alpha_b, sigma_b) = schedule(a), schedule(b)
    ends = b <= 0
    sigma_b = torch.where(ends, sigma_a, sigma_b)  # any number: the term is left out below
    large = (sigma_a**2 - (alpha_a / alpha_b * sigma_b) ** 2).clamp(min=1e-20)
    small = large * (sigma_b / sigma_a) ** 2
    on_x0 = alpha_b * large / sigma_a**2
    span, gain = (left(n, wrong) for n in ((large / small).log(), on_x0**2 / small))
    log_ratio = span * fraction
    kl = 0.5 * ((-log_ratio).exp() * (1 + gain * wrong) - 1 + log_ratio)
    return kl.masked_fill(left(ends, wrong).bool(), 0.0)
