"""Delta denoising score: edit an image by the difference of two distillations, which share time and noise.

    g = w(logsnr) (eps_hat(x_t; target) - eps_hat(source_t; source text)),    x_t and source_t with one eps

Where the image matches the source text, SDS's own noise and blur are the same in both terms, and leave.

Hertz et al. 2023 (delta denoising score).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suffuse.losses import weights
from suffuse.losses.distillation.push import eps_of, noised, push, weighed, window
from suffuse.losses.times import Times
from suffuse.losses.weights import Weight

__all__ = ["alike", "dds"]


def dds(
    target: Any, x: Tensor, source: Any, original: Tensor, *, times: Times | None = None, weight: Weight = weights.x0
) -> Tensor:
    """A loss (B,) whose gradient in x is w (eps_target(x_t) - eps_source(original_t)).

    Args:
        target: a denoiser told what x shall be; guided if wanted. x: the image being edited (B, ...), with a graph.
        source: the same model told what `original` is. original: the image it was (B, ...).
        times, weight: as for `sds`.
    Raises:
        ValueError: images of different shapes; denoisers on different schedules.
    """
    alike(target, x, source, original)
    noisy, t, eps = noised(target, x, times or window())
    alpha, sigma = target.schedule(t, like=x)
    with torch.no_grad():
        before = alpha * original + sigma * eps
        g = eps_of(target, noisy, t) - eps_of(source, before, t)
    return push(x, weighed(target, weight, t, g))


def alike(target: Any, x: Tensor, source: Any, original: Tensor) -> None:
    """Refuse an edit whose two sides do not match."""
    if x.shape != original.shape:
        raise ValueError(f"the image has shape {tuple(x.shape)}, the one it is edited from {tuple(original.shape)}")
    if target.schedule != source.schedule:
        raise ValueError(f"the target lives on {target.schedule}, the source on {source.schedule}: use .on(schedule)")
