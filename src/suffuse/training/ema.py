"""Exponential moving average of weights.

    average <- d average + (1 - d) weights,    d = min(decay, (1 + n) / (10 + n)) at update n

The second form lets a short run forget its random start.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from suffuse.training.sharded import local

__all__ = ["EMA"]


class EMA:
    """A second network that holds the average of the first.

    Args:
        net: the network that is trained.
        decay: in [0, 1); 0.999 averages over about the last thousand steps.
    Raises:
        ValueError: decay out of range.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema must be a decay in [0, 1), got {decay:g}")
        self.decay = decay
        self.nets = {"ema": copy.deepcopy(net).requires_grad_(False)}

    @property
    def net(self) -> nn.Module:
        """The average."""
        return self.nets["ema"]

    @torch.no_grad()
    def update(self, net: nn.Module, n: int) -> None:
        """Take in the weights after update n, counted from 1."""
        d = min(self.decay, (1 + n) / (10 + n))
        for a, b in zip(self.net.parameters(), net.parameters(), strict=True):
            local(a).lerp_(local(b), 1 - d)
        for a, b in zip(self.net.buffers(), net.buffers(), strict=True):
            a.copy_(b)
