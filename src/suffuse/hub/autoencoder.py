"""AutoencoderKL as a codec.

z = scale (latent - shift),   latent ~ N(mean(x), std(x)^2)
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.random import noise

__all__ = ["KLCodec"]


@contextlib.contextmanager
def resident(net: nn.Module, device: Any) -> Iterator[None]:
    """The network on this device, and back where it was afterwards; None leaves it where it is."""
    home = next(net.parameters()).device
    if device is None or torch.device(device) == home:
        yield
        return
    try:
        net.to(device)
        yield
    finally:
        net.to(home)


class KLCodec:
    """The `Codec` of an AutoencoderKL; data in [-1, 1].

    Args:
        net: the AutoencoderKL, whose config says scale and shift.
        device: where it goes while it works, if it waits elsewhere.
    Attributes:
        factor: data points per latent and side.
    """

    def __init__(self, net: Any, device: Any = None) -> None:
        self.net, self.device = net, device
        self.scale, self.shift = float(net.config.scaling_factor), float(net.config.shift_factor or 0.0)
        self.factor: int = 2 ** (len(net.config.block_out_channels) - 1)
        self.tile: int | None = None
        self.overlap = 0

    def tiled(self, size: int, overlap: int) -> KLCodec:
        """The same codec, working on one square tile at a time, so that memory does not grow with the picture.

        Neighbours are blended linearly over the middle half of their overlap: a network that looks no further than a
        quarter of it makes what it makes of the whole. Norms and attention look at all of a tile, so that a real
        autoencoder's result is not quite that of the whole: differences shrink with larger tiles.

        Args:
            size: side of a tile, in latents. overlap: of two neighbours, in latents.
        Raises:
            ValueError: not 0 <= overlap < size.
        """
        if not 0 <= overlap < size:
            raise ValueError(f"tiles must overlap by less than their size, got size={size} and overlap={overlap}")
        new = copy.copy(self)
        new.tile, new.overlap = size, overlap
        return new

    def encode(self, x: Tensor, seed: int | None) -> Tensor:
        """Latents (B, c, h, w) of images x (B, C, H, W): a posterior draw by `sf.noise` of this seed, or the mean."""
        with resident(self.net, self.device):
            mean, std = self._tiles(self._posterior, x.to(self.net.dtype), self.factor, 1).chunk(2, 1)
        if seed is not None:
            mean = mean + std * noise(tuple(mean.shape), seed, device=mean.device, dtype=mean.dtype)
        return ((mean - self.shift) * self.scale).to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents z (B, c, h, w)."""
        with resident(self.net, self.device):
            latent = (z / self.scale + self.shift).to(self.net.dtype)
            return self._tiles(lambda part: self.net.decode(part).sample, latent, 1, self.factor).to(z.dtype)

    def _posterior(self, x: Tensor) -> Tensor:
        posterior = self.net.encode(x).latent_dist
        return torch.cat([posterior.mean, posterior.std], 1)

    def _tiles(self, fn: Any, x: Tensor, before: int, after: int) -> Tensor:
        """fn of x, or of its tiles, blended; a latent is `before` wide in x and `after` wide in the result."""
        height, width = (n // before for n in x.shape[-2:])
        if self.tile is None or max(height, width) <= self.tile:
            return fn(x)
        total, weight = None, None
        for top, bottom in _spans(height, self.tile, self.overlap):
            for left, right in _spans(width, self.tile, self.overlap):
                part = fn(x[..., top * before : bottom * before, left * before : right * before])
                ramp = _ramp(top, bottom, height, self.overlap, after)[:, None]
                ramp = (ramp * _ramp(left, right, width, self.overlap, after)).to(part)
                if total is None or weight is None:
                    total = part.new_zeros(*part.shape[:-2], height * after, width * after)
                    weight = part.new_zeros(height * after, width * after)
                place = (..., slice(top * after, bottom * after), slice(left * after, right * after))
                total[place] = total[place] + part * ramp
                weight[place] = weight[place] + ramp
        assert total is not None and weight is not None
        return total / weight


def _spans(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Where tiles begin and end: all of one size, the last one at the edge."""
    size = min(size, length)
    starts = [*range(0, length - size, size - overlap), length - size]
    return [(start, start + size) for start in starts]


def _ramp(begin: int, end: int, length: int, overlap: int, scale: int) -> Tensor:
    """The weight of a tile along one side: rising over the middle half of the overlap, 1 at the edges of the whole."""
    n, o = (end - begin) * scale, max(overlap * scale, 1)
    at = torch.arange(n) + 0.5
    up = torch.ones(n) if begin == 0 else (2 * at / o - 0.5).clamp(0, 1)
    down = torch.ones(n) if end == length else (2 * (n - at) / o - 0.5).clamp(0, 1)
    return up * down
