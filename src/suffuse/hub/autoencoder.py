"""AutoencoderKL as a codec.

z = scale (latent - shift),   latent ~ N(mean(x), std(x)^2)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from suffuse.random import noise

__all__ = ["KLCodec"]


class KLCodec:
    """The `Codec` of an AutoencoderKL; data in [-1, 1].

    Args:
        net: the AutoencoderKL, whose config says scale and shift.
    """

    def __init__(self, net: Any) -> None:
        self.net = net
        self.scale, self.shift = float(net.config.scaling_factor), float(net.config.shift_factor or 0.0)

    def encode(self, x: Tensor, seed: int) -> Tensor:
        """Latents (B, c, h, w) of images x (B, C, H, W): one draw of the posterior, `sf.noise` of this seed."""
        posterior = self.net.encode(x.to(self.net.dtype)).latent_dist
        mean = posterior.mean
        draw = noise(tuple(mean.shape), seed, device=mean.device, dtype=mean.dtype)
        return ((mean + posterior.std * draw - self.shift) * self.scale).to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents z (B, c, h, w)."""
        return self.net.decode((z / self.scale + self.shift).to(self.net.dtype)).sample.to(z.dtype)
