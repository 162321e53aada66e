"""The noun `Codec`: what turns data into latents and back, for latent diffusion."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Codec"]


@runtime_checkable
class Codec(Protocol):
    """Data to latents and back: decode(encode(x)) is close to x, and latents have about unit variance.

    `scale` is what the latents of its network were multiplied with for that, after a shift where it has one.

    `sample` returns what it sampled, latents included; it never decodes silently.
    """

    scale: float

    def encode(self, x: Tensor, seed: int | None) -> Tensor:
        """Latents of x (B, ...); the seed draws the posterior's noise, None takes its mean."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Data of latents z (B, ...)."""
        ...
