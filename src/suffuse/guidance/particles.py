"""Particles: which of a weighted group go on.

Systematic resampling: particle i has K w_i descendants, rounded up or down, K in all. Kitagawa 1996. Places are turned
round by a random number, so that each place alone holds particle i with probability w_i.
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
    places = torch.arange(k, device=w.device)

    def word(stream: int) -> Tensor:
        return bits((groups,), seed, stream=stream, step=step, first=first, device=w.device)[:, None]

    at = ((places + word(_STREAM + 1)) % k + (word(_STREAM).to(w) + 0.5) * 2.0**-32) / k
    drawn = torch.searchsorted(w.cumsum(1).contiguous(), at.contiguous()).clamp(max=k - 1)
    index = torch.where(thin, drawn, places) + k * torch.arange(groups, device=w.device)[:, None]
    return index.flatten(), torch.where(thin, 0, log_w)
