"""Adversarial training of a generator, the historical rival of diffusion.

generator:      softplus(-D*(G(z)))
discriminator:  softplus(D(G*(z))) + softplus(-D(x)) + gamma/2 |dD(x)/dx|^2        (* is held fixed)

Goodfellow et al. 2014, section 3, the generator's side that does not saturate; Mescheder et al. 2018, eq. 9, for R1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GAN"]


class GAN(nn.Module):
    """A loss to `fit` a generator with; the discriminator learns in the same steps, and is kept by the checkpoints.

    Args:
        discriminator: D, x (B, ...) -> (B,). latent: length of z.
        gamma: of R1, which keeps the two from circling each other; 0 leaves it out.
        every: R1 is computed in one step of so many, drawn by chance, and weighs so much more there.
    Raises:
        ValueError: gamma is negative, every < 1.
    """

    def __init__(self, discriminator: nn.Module, latent: int, *, gamma: float = 1.0, every: int = 1) -> None:
        super().__init__()
        if gamma < 0 or every < 1:
            raise ValueError(f"gamma must be at least 0 and every at least 1, got {gamma:g} and {every}")
        self.discriminator, self.latent, self.gamma, self.every = discriminator, latent, gamma, every

    def forward(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Both sides' losses, (B,), of `model` (a generator z -> x) on batch["x"]: each reaches only its own side."""
        x = batch["x"]
        made = model(torch.randn(len(x), self.latent, device=x.device))
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        fooled = torch.func.functional_call(self.discriminator, fixed, (made,))
        loss = F.softplus(-fooled) + F.softplus(self.discriminator(made.detach())) + F.softplus(-self.discriminator(x))
        if self.gamma and (self.every == 1 or torch.rand(()) < 1 / self.every):
            loss = loss + self.every * self.gamma / 2 * self._slope(x)
        return loss

    def _slope(self, x: Tensor) -> Tensor:
        """|dD(x)/dx|^2, (B,)."""
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.discriminator(x).sum(), x, create_graph=True)
        return slope.flatten(1).square().sum(1)
