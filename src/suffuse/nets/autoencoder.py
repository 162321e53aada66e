"""Encoder and decoder of pictures, and the autoencoder and codec made of them, for 1-D, 2-D or 3-D data.

z ~ N(mean(x), exp(logvar(x)))  at 1/2^(levels - 1) of the resolution,    x = decode(z)

Kingma & Welling 2013; Rombach et al. 2022 (latent diffusion), section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse.nets.attention import SelfAttention, zero
from suffuse.nets.blocks import check_dims, check_image
from suffuse.nets.unet import convolution, group_norm
from suffuse.random import noise

__all__ = ["Autoencoder", "Decoder", "Encoder", "LatentCodec"]


class Residual(nn.Module):
    """h + conv(silu(norm(conv(silu(norm(h)))))), the last convolution starting at zero."""

    def __init__(self, wide_in: int, wide_out: int, dims: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(wide_in), convolution(dims, wide_in, wide_out)
        self.norm2, self.conv2 = group_norm(wide_out), zero(convolution(dims, wide_out, wide_out))
        self.skip = convolution(dims, wide_in, wide_out, kernel=1) if wide_in != wide_out else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        """(B, in, *spatial) -> (B, out, *spatial)."""
        return self.skip(h) + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(h))))))


class Looking(nn.Module):
    """Attention of all places to all others, starting at zero."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), SelfAttention(width, heads)
        zero(self.attention.out)

    def forward(self, h: Tensor) -> Tensor:
        """(B, width, *spatial), the same shape."""
        flat = h.flatten(2).transpose(1, 2)
        return h + self.attention(self.norm(flat)).transpose(1, 2).reshape(h.shape)


class Encoder(nn.Sequential):
    """Pictures (B, channels, *spatial) -> maps (B, out, *spatial / 2^(levels - 1)).

    Args:
        channels: of x. out: of the result.
        width: channels of the finest level. multipliers: channels of each level, in units of `width`.
        blocks: residual blocks at each level. heads: of the attention at the coarsest level, 0 for none.
        dims: spatial dimensions, 1, 2 or 3.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        width: int = 32,
        multipliers: tuple[int, ...] = (1, 2, 4, 4),
        blocks: int = 1,
        heads: int = 0,
        dims: int = 2,
    ) -> None:
        now = width * multipliers[0]
        layers: list[nn.Module] = [convolution(dims, channels, now)]
        for level, multiplier in enumerate(multipliers):
            if level:
                layers.append(convolution(dims, now, now, stride=2))
            for _ in range(blocks):
                layers.append(Residual(now, width * multiplier, dims))
                now = width * multiplier
        if heads:
            layers.append(Looking(now, heads))
        super().__init__(*layers, Residual(now, now, dims), group_norm(now), nn.SiLU(), convolution(dims, now, out))


class Decoder(nn.Sequential):
    """Maps (B, channels, *spatial) -> pictures (B, out, *spatial 2^(levels - 1)); the mirror of `Encoder`.

    Args:
        channels: of the maps. out: of the pictures. width, multipliers, blocks, heads, dims: as for `Encoder`.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        width: int = 32,
        multipliers: tuple[int, ...] = (1, 2, 4, 4),
        blocks: int = 1,
        heads: int = 0,
        dims: int = 2,
    ) -> None:
        now = width * multipliers[-1]
        layers: list[nn.Module] = [convolution(dims, channels, now), Residual(now, now, dims)]
        if heads:
            layers.append(Looking(now, heads))
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks):
                layers.append(Residual(now, width * multiplier, dims))
                now = width * multiplier
            if level:
                layers += [nn.Upsample(scale_factor=2, mode="nearest"), convolution(dims, now, now)]
        super().__init__(*layers, group_norm(now), nn.SiLU(), convolution(dims, now, out))


@dataclass(eq=False, repr=False)
class Autoencoder(nn.Module):
    """An encoder to a diagonal Gaussian of latents, and a decoder; `sf.losses.autoencoding` trains it.

    Args:
        channels: of x. latent: channels of z. width, multipliers, blocks, heads, dims: as for `Encoder`.
    Raises:
        ValueError: dims out of range.
    """

    channels: int
    latent: int = 8
    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 1
    heads: int = 0
    dims: int = 2

    def __post_init__(self) -> None:
        super().__init__()
        check_dims(self.dims)
        rest = (self.width, tuple(self.multipliers), self.blocks, self.heads, self.dims)
        self.encoder = Encoder(self.channels, 2 * self.latent, *rest)
        self.decoder = Decoder(self.latent, self.channels, *rest)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log variance) of z, (B, latent, *spatial) each, of x (B, channels, *spatial).

        Raises:
            ValueError: a shape that does not fit.
        """
        halved = len(self.multipliers) - 1
        why = f"Autoencoder with {halved + 1} levels halves {halved} times"
        check_image("Autoencoder", x, self.channels, self.dims, 2**halved, why)
        mean, logvar = self.encoder(x).chunk(2, 1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, z: Tensor) -> Tensor:
        """x (B, channels, *spatial) of z (B, latent, *spatial)."""
        return self.decoder(z)

    def forward(self, x: Tensor) -> Tensor:
        """What becomes of x on the way through the mean."""
        return self.decode(self.encode(x)[0])


class LatentCodec:
    """An autoencoder as a `Codec`: z = scale (latent - shift), latent ~ N(mean(x), exp(logvar(x))).

    Args:
        net: with `encode` and `decode` as of `Autoencoder`. scale, shift: such that z has mean 0 and variance 1.
    """

    def __init__(self, net: Autoencoder, scale: float = 1.0, shift: float = 0.0) -> None:
        self.net, self.scale, self.shift = net, float(scale), float(shift)

    @property
    def factor(self) -> int:
        """Data points per latent and side."""
        return 2 ** (len(self.net.multipliers) - 1)

    @classmethod
    def of(cls, net: Autoencoder, x: Tensor, *, seed: int = 0) -> LatentCodec:
        """With scale and shift estimated from pictures x (N, ...), no gradients kept."""
        with torch.no_grad():
            plain = cls(net)
            z = torch.cat([plain.encode(part, seed + i) for i, part in enumerate(x.split(64))]).double()
        return cls(net, 1 / z.std().item(), z.mean().item())

    def encode(self, x: Tensor, seed: int | None) -> Tensor:
        """Latents (B, latent, *spatial) of x: one draw, `sf.noise` of this seed, or the mean."""
        weight = next(self.net.parameters())
        mean, logvar = self.net.encode(x.to(weight))
        if seed is not None:
            draw = noise(tuple(mean.shape), seed, device=mean.device, dtype=mean.dtype)
            mean = mean + (0.5 * logvar).exp() * draw
        return ((mean - self.shift) * self.scale).to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """Data of latents z (B, latent, *spatial)."""
        weight = next(self.net.parameters())
        return self.net.decode((z / self.scale + self.shift).to(weight)).to(z.dtype)
