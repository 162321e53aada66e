"""A loss weighted by how uncertain it is: every noise level counts alike, whatever its size.

loss <- loss / e^u(logsnr) + u(logsnr),    at its least where e^u is the expected loss at that noise level

Kendall et al. 2018; Karras et al. 2024 (EDM2), section 2 and appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Uncertain"]


class Uncertain(nn.Module):
    """A denoising loss with a learned log variance u; `fit` trains it along with the network and keeps it.

    u = W sqrt(2) cos(2 pi (f logsnr / 8 + phase)): random Fourier features and one linear layer, at first 0.

    Args:
        loss: `losses.denoising`, or it with options: `partial(losses.denoising, weight=losses.weights.edm())`.
        features: how many. seed: of the random features, which are kept with the weights.
    """

    f: Tensor
    phase: Tensor

    def __init__(self, loss: Callable[..., Tensor], *, features: int = 128, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.loss = loss
        self.register_buffer("f", torch.randn(features, generator=generator))
        self.register_buffer("phase", torch.rand(features, generator=generator))
        self.linear = nn.Linear(features, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def logvar(self, logsnr: Tensor) -> Tensor:
        """u at these logsnr, like them; levels beyond +-20 count as +-20."""
        at = logsnr.clamp(-20, 20).to(self.f)[..., None] / 8
        return self.linear(math.sqrt(2) * (2 * math.pi * (self.f * at + self.phase)).cos())[..., 0]

    def forward(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """(B,) losses, which may be negative."""
        return self.loss(model, batch, logvar=self.logvar)
