"""Particles: which of a weighted group go on.

Systematic resampling: particle i of K has round(K w_i) or one more descendants, K in all. Kitagawa 1996.
"""

from __future__ import annotations

import torch
from torch import Tensor

from suffuse.random import bits

__all__ = ["resample"]

_STREAM = 0x7D5  # of its own: where resampling begins to count


def resample(log_w: Tensor, share: float, seed: int, *, step: int = 0, first: int = 0) -> tuple[Tensor, Tensor]:
    """Rows that go on, and their log weights; a group with enough effective particles 1/sum w^2 keeps its own.

    Args:
        log_w: (G, K) log weights of G groups, up to a constant each.
        share: of K; below so many effective particles a group is resampled. Above 1: always.
        seed, step, first: what is drawn for group g depends on (seed, step, first + g) only.
    Returns:
        (G K,) rows, and (G, K) log weights, 0 where resampled.
    """
    groups, k = log_w.shape
    w = log_w.softmax(1)
    thin = (1 / w.square().sum(1) < share * k)[:, None]
    u = (bits((groups,), seed, stream=_STREAM, step=step, first=first, device=w.device).to(w) + 0.5) * 2.0**-32
    at = (torch.arange(k, device=w.device) + u[:, None]) / k
    drawn = torch.searchsorted(w.cumsum(1).contiguous(), at.contiguous()).clamp(max=k - 1)
    kept = torch.where(thin, drawn, torch.arange(k, device=w.device))
    index = kept + k * torch.arange(groups, device=w.device)[:, None]
    return index.flatten(), torch.where(thin, 0, log_w)
