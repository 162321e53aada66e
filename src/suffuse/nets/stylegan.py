"""A small StyleGAN2: a generator whose convolutions are modulated by a style, and the discriminator it plays against.

w = mapping(z),   weights'_oik = s_i(w) weights_oik / sqrt(sum_ik (s_i(w) weights_oik)^2 + 1e-8)

Karras et al. 2020 (StyleGAN2), eq. 1 to 3 and figure 7 (skips in the generator, residuals in the discriminator).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse.nets.blocks import check_image

__all__ = ["StyleDiscriminator", "StyleGenerator"]


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled by a style, and whose output is brought back to variance 1.

    Args:
        wide_in, wide_out: channels. kernel: odd. style: length of w. demodulate: whether the output is brought back.
    """

    def __init__(self, wide_in: int, wide_out: int, kernel: int, style: int, *, demodulate: bool = True) -> None:
        super().__init__()
        self.demodulate = demodulate
        self.weight = nn.Parameter(torch.randn(wide_out, wide_in, kernel, kernel) / math.sqrt(wide_in * kernel**2))
        self.scale = nn.Linear(style, wide_in)
        nn.init.ones_(self.scale.bias)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(B, in, H, W), (B, style) -> (B, out, H, W)."""
        s = self.scale(w)
        # Scaling what goes in and out is the convolution with weights of each row's own, without making these.
        y = F.conv2d(x * s[:, :, None, None], self.weight, padding=self.weight.shape[-1] // 2)
        if not self.demodulate:
            return y
        size = s.square() @ self.weight.square().sum((2, 3)).T
        return y * (size + 1e-8).rsqrt()[:, :, None, None]


class _Styled(nn.Module):
    """A modulated convolution, noise of a learned strength, a bias and a leaky slope."""

    def __init__(self, wide_in: int, wide_out: int, style: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(wide_in, wide_out, 3, style)
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(wide_out, 1, 1))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        y = self.conv(x, w)
        y = y + self.strength * torch.randn_like(y[:, :1]) if self.training else y
        return math.sqrt(2) * F.leaky_relu(y + self.bias, 0.2)


@dataclass(eq=False, repr=False)
class StyleGenerator(nn.Module):
    """Pictures from codes: a learned constant, grown level by level; each level adds to the picture so far.

    Args:
        channels: of the pictures.
        side: of the pictures; the constant has side / 2^(levels - 1).
        width: channels of the finest level. multipliers: of each level, in units of `width`, the finest first.
        latent: length of z and of w. layers: of the mapping.
    Raises:
        ValueError: a side that cannot be halved so often.

    In eval mode no noise is drawn: the picture is a function of z alone.
    """

    channels: int
    side: int
    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4)
    latent: int = 64
    layers: int = 2

    def __post_init__(self) -> None:
        super().__init__()
        halvings = len(self.multipliers) - 1
        if self.side % 2**halvings:
            raise ValueError(
                f"{len(self.multipliers)} levels halve {halvings} times: side must be a multiple of {2**halvings}, "
                f"got {self.side}"
            )
        mapping: list[nn.Module] = []
        for _ in range(self.layers):
            mapping += [nn.Linear(self.latent, self.latent), nn.LeakyReLU(0.2)]
        self.mapping = nn.Sequential(*mapping)
        wide = [self.width * m for m in reversed(self.multipliers)]
        self.constant = nn.Parameter(torch.randn(wide[0], self.side // 2**halvings, self.side // 2**halvings))
        self.first = _Styled(wide[0], wide[0], self.latent)
        self.levels = nn.ModuleList(
            nn.ModuleList([_Styled(a, b, self.latent), _Styled(b, b, self.latent)])
            for a, b in zip(wide, wide[1:], strict=False)
        )
        self.shows = nn.ModuleList(ModulatedConv(b, self.channels, 1, self.latent, demodulate=False) for b in wide)

    def forward(self, z: Tensor) -> Tensor:
        """(B, latent) standard normal -> (B, channels, side, side).

        Raises:
            ValueError: codes of another length.
        """
        if z.ndim != 2 or z.shape[1] != self.latent:
            raise ValueError(f"StyleGenerator makes pictures of codes (B, {self.latent}), got {tuple(z.shape)}")
        w = self.mapping(z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt())
        h = self.first(self.constant.to(z.dtype).expand(len(z), -1, -1, -1), w)
        x = self.shows[0](h, w)
        for (grow, keep), show in zip(self.levels, self.shows[1:], strict=True):  # type: ignore[misc]
            h = keep(grow(_twice(h), w), w)
            x = _twice(x) + show(h, w)
        return x


@dataclass(eq=False, repr=False)
class StyleDiscriminator(nn.Module):
    """How real pictures look, one score each: residual levels, and how much a batch varies as one more channel.

    Args:
        channels, side, width, multipliers: as for `StyleGenerator`. group: rows whose spread is told to all of them.

    Karras et al. 2018 (progressive GAN), section 3, for the spread of a group.
    """

    channels: int
    side: int
    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4)
    group: int = 4

    def __post_init__(self) -> None:
        super().__init__()
        wide = [self.width * m for m in self.multipliers]
        self.stem = nn.Conv2d(self.channels, wide[0], 1)
        self.levels = nn.ModuleList(_Down(a, b) for a, b in zip(wide, wide[1:], strict=False))
        cells = (self.side // 2 ** (len(wide) - 1)) ** 2
        self.last = nn.Conv2d(wide[-1] + 1, wide[-1], 3, padding=1)
        self.out = nn.Sequential(
            nn.Flatten(), nn.Linear(wide[-1] * cells, wide[-1]), nn.LeakyReLU(0.2), nn.Linear(wide[-1], 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, side, side) -> (B,): high is real."""
        check_image("StyleDiscriminator", x, self.channels, 2, 2 ** len(self.levels), f"it halves {len(self.levels)} x")
        h = F.leaky_relu(self.stem(x), 0.2)
        for level in self.levels:
            h = level(h)
        spread = _spread(h, self.group)
        return self.out(F.leaky_relu(self.last(torch.cat([h, spread], 1)), 0.2))[:, 0]


class _Down(nn.Module):
    def __init__(self, wide_in: int, wide_out: int) -> None:
        super().__init__()
        self.keep, self.grow = nn.Conv2d(wide_in, wide_in, 3, padding=1), nn.Conv2d(wide_in, wide_out, 3, padding=1)
        self.skip = nn.Conv2d(wide_in, wide_out, 1, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        new = F.leaky_relu(self.grow(F.leaky_relu(self.keep(h), 0.2)), 0.2)
        return (F.avg_pool2d(new, 2) + self.skip(F.avg_pool2d(h, 2))) / math.sqrt(2)


def _spread(h: Tensor, group: int) -> Tensor:
    """(B, C, H, W) -> (B, 1, H, W): the mean standard deviation over the rows of each group."""
    n = len(h) if len(h) % group else group
    parts = h.unflatten(0, (-1, n))
    told = (parts.var(1, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
    return told.repeat_interleave(n)[:, None, None, None].expand(-1, 1, *h.shape[2:])


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
