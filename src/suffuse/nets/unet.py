"""The U-Net of diffusion models, for 1-D, 2-D or 3-D data.

Ho et al. 2020, appendix B; Dhariwal & Nichol 2021, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse.nets.attention import CrossAttention, SelfAttention, zero
from suffuse.nets.blocks import Conditioning, Told, check_dims, check_image
from suffuse.nets.conditions import Condition
from suffuse.nets.quick import Pointwise, Stem, ToldNorm, quick

ADM: dict[str, dict[str, Any]] = {
    "ADM-64": {"width": 192, "multipliers": (1, 2, 3, 4), "blocks": 3, "attention": (1, 2, 3)},
    "ADM-128": {"width": 256, "multipliers": (1, 1, 2, 3, 4), "blocks": 2, "attention": (2, 3, 4)},
    "ADM-256": {"width": 256, "multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2, "attention": (3, 4, 5)},
    "ADM-512": {"width": 256, "multipliers": (0.5, 1, 1, 2, 2, 4, 4), "blocks": 2, "attention": (4, 5, 6)},
}


@dataclass(eq=False, repr=False)
class UNet(nn.Module):
    """A U-Net of residual blocks with attention at the coarse levels; a fresh one returns exactly 0.

    Level i has width * multipliers[i] channels and 1 / 2^i of the resolution.

    Args:
        channels: channels of x.
        width: channels of the finest level.
        multipliers: channels of each level, in units of `width`; as many as there are levels.
        blocks: residual blocks per level on the way down (one more on the way up).
        attention: levels with attention, 0 is the finest and -1 the coarsest; the middle always has it.
        heads: attentions side by side.
        dims: spatial dimensions, 1, 2 or 3.
        dropout: probability, inside the residual blocks.
        out_channels: channels of the output, those of x by default.
        conditions: what it may be told, by name; tokens are attended to wherever there is attention.
        head_width: channels of a head, in place of `heads`: wider levels have more.
        resample: "conv", or "block" for residual blocks that halve and double by averaging and repeating (ADM).
    Raises:
        ValueError: dims, a level, heads or resample out of range.

    Dhariwal & Nichol 2021, section 3.
    """

    channels: int
    width: int = 64
    multipliers: tuple[float, ...] = (1, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (-1,)
    heads: int = 4
    dims: int = 2
    dropout: float = 0.0
    out_channels: int | None = None
    conditions: dict[str, Condition] = field(default_factory=dict)
    head_width: int | None = None
    resample: str = "conv"

    @classmethod
    def named(cls, name: str, channels: int = 3, **options: Any) -> UNet:
        """A network of the paper: "ADM-64", "ADM-128", "ADM-256" or "ADM-512", by the side of its pictures.

        The paper's own have `out_channels=6` and `conditions={"label": Label(1000)}`.

        Args:
            name: of the network. channels: of x. options: any other argument.
        Raises:
            ValueError: no such network.

        Dhariwal & Nichol 2021, table 4 and appendix I.
        """
        if name not in ADM:
            raise ValueError(f"a UNet's name is one of {', '.join(ADM)}, got {name!r}")
        chosen: dict[str, Any] = {"head_width": 64, "resample": "block"} | ADM[name] | options
        return cls(channels, **chosen)

    def __post_init__(self) -> None:
        super().__init__()
        check_dims(self.dims)
        if self.resample not in ("conv", "block"):
            raise ValueError(f"resample must be 'conv' or 'block', got {self.resample!r}")
        levels = len(self.multipliers)
        for level in self.attention:
            if not -levels <= level < levels:
                raise ValueError(f"attention must name levels in {-levels}..{levels - 1}, got {level}")
        attending = {level % levels for level in self.attention}
        told = 4 * self.width
        self.told = Conditioning("UNet", self.conditions, told)
        tokens = told if self.told.has_tokens else None

        def step(wide_in: int, wide_out: int, attends: bool) -> _Step:
            heads = self.heads if self.head_width is None else max(1, wide_out // self.head_width)
            attention = _Attention(wide_out, tokens, heads) if attends else None
            return _Step(_ResBlock(wide_in, wide_out, told, self.dims, self.dropout), attention)

        now, convs = self.width, self.resample == "conv"
        wide = self.channels + self.told.channels
        self.stem = Stem(wide, now, 3, padding=1) if self.dims == 2 else convolution(self.dims, wide, now)
        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        skips = [now]
        for level, multiplier in enumerate(self.multipliers):
            if level:
                self.down.append(_Shrink(now, self.dims) if convs else _ShrinkBlock(now, told, self.dims, self.dropout))
                skips.append(now)
            for _ in range(self.blocks):
                self.down.append(step(now, int(multiplier * self.width), level in attending))
                now = int(multiplier * self.width)
                skips.append(now)
        self.middle.extend([step(now, now, True), step(now, now, False)])
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            if level < levels - 1:
                self.up.append(_Grow(now, self.dims) if convs else _GrowBlock(now, told, self.dims, self.dropout))
            for _ in range(self.blocks + 1):
                self.up.append(step(now + skips.pop(), int(multiplier * self.width), level in attending))
                now = int(multiplier * self.width)
        self.norm = group_norm(now)
        self.out = zero(convolution(self.dims, now, self.out_channels or self.channels))

    def forward(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """Map noisy images to whatever the network is trained to predict.

        Args:
            x: (B, channels, *spatial), every spatial size a multiple of 2^(levels - 1).
            t: (B,), times in [0, 1].
            conditions: every condition it was built with, B rows each.
        Returns:
            (B, out_channels, *spatial).
        Raises:
            TypeError: a condition is missing or unknown.
            ValueError: a wrong shape.
        """
        levels = len(self.multipliers)
        why = f"UNet with {levels} levels halves {levels - 1} times"
        check_image("UNet", x, self.channels, self.dims, 2 ** (levels - 1), why)
        x, told = self.told(x, t, conditions)
        h = self.stem(x)
        skips = [h]
        for layer in self.down[: self.blocks]:
            h = layer(h, told)
            skips.append(h)
        h = self.deep(h, told)
        for layer in self.up[-self.blocks - 1 :]:
            h = layer(torch.cat([h, skips.pop()], 1), told)
        return self.out(F.silu(self.norm(h)))

    def deep(self, h: Tensor, told: Told) -> Tensor:
        """All below the finest level, (B, C, *spatial) -> (B, C', *spatial): what `cached` spares."""
        skips = []
        for layer in self.down[self.blocks :]:
            h = layer(h, told)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, told)
        for layer in self.up[: -self.blocks - 1]:
            h = layer(h if isinstance(layer, _Grow) else torch.cat([h, skips.pop()], 1), told)
        return h


class _Step(nn.Module):
    """A residual block and, at some levels, attention after it."""

    def __init__(self, block: _ResBlock, attention: _Attention | None) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, h: Tensor, told: Told) -> Tensor:
        h = self.block(h, told.embedding)
        return h if self.attention is None else self.attention(h, told)


class _Shrink(nn.Module):
    """Half the resolution, by a convolution of stride 2."""

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        self.conv = convolution(dims, width, width, stride=2)

    def forward(self, h: Tensor, told: Told) -> Tensor:
        return quick(self.conv(h))


class _Grow(nn.Module):
    """Twice the resolution: every value repeated, then a convolution."""

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        self.conv = convolution(dims, width, width)

    def forward(self, h: Tensor, told: Told) -> Tensor:
        return self.conv(_repeated(h))


class _ShrinkBlock(nn.Module):
    """Half the resolution, by a residual block that averages 2^d neighbours on both of its paths."""

    def __init__(self, width: int, told: int, dims: int, dropout: float) -> None:
        super().__init__()
        self.block = _ResBlock(width, width, told, dims, dropout)
        self.resized = partial(_averaged, getattr(F, f"avg_pool{dims}d"))

    def forward(self, h: Tensor, told: Told) -> Tensor:
        return self.block(h, told.embedding, self.resized)


class _GrowBlock(_Grow):
    """Twice the resolution, by a residual block that repeats every value on both of its paths."""

    def __init__(self, width: int, told: int, dims: int, dropout: float) -> None:
        nn.Module.__init__(self)
        self.block = _ResBlock(width, width, told, dims, dropout)
        self.resized = _repeated

    def forward(self, h: Tensor, told: Told) -> Tensor:
        return self.block(h, told.embedding, self.resized)


def _averaged(pool: Callable[..., Tensor], h: Tensor) -> Tensor:
    return quick(pool(h, kernel_size=2))


def _repeated(h: Tensor) -> Tensor:
    return F.interpolate(quick(h, 2), scale_factor=2, mode="nearest")


class _ResBlock(nn.Module):
    """h + conv(silu(norm(conv(silu(norm(h)))) (1 + scale) + shift)), the last convolution starting at zero."""

    def __init__(self, wide_in: int, wide_out: int, told: int, dims: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(wide_in)
        self.conv1 = convolution(dims, wide_in, wide_out)
        self.modulation = nn.Linear(told, 2 * wide_out)
        self.norm2 = ToldNorm(groups(wide_out), wide_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(convolution(dims, wide_out, wide_out))
        self.skip: nn.Module = nn.Identity()
        if wide_in != wide_out:
            self.skip = Pointwise(wide_in, wide_out) if dims == 2 else convolution(dims, wide_in, wide_out, kernel=1)

    def forward(self, h: Tensor, embedding: Tensor, resized: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        new = F.silu(self.norm1(h))
        if resized is not None:
            new, h = resized(new), resized(h)
        new = self.norm2(self.conv1(new), *self.modulation(embedding).chunk(2, -1))
        return self.skip(h) + self.conv2(self.dropout(F.silu(new)))


class _Attention(nn.Module):
    """Attention to itself and, if there are any, to tokens; both outputs start at zero."""

    def __init__(self, width: int, tokens: int | None, heads: int) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = SelfAttention(width, heads)
        zero(self.self_attention.out)
        self.cross_attention = None if tokens is None else CrossAttention(width, tokens, heads)

    def forward(self, h: Tensor, told: Told) -> Tensor:
        flat = h.flatten(2).transpose(1, 2)
        flat = flat + self.self_attention(self.self_norm(flat))
        if self.cross_attention is not None:
            flat = flat + self.cross_attention(flat, told.tokens, told.visible)
        return flat.transpose(1, 2).reshape(h.shape)


def convolution(dims: int, wide_in: int, wide_out: int, *, kernel: int = 3, stride: int = 1) -> nn.Module:
    """A convolution of 1, 2 or 3 dimensions that keeps the size, but for its stride."""
    return getattr(nn, f"Conv{dims}d")(wide_in, wide_out, kernel, stride=stride, padding=kernel // 2)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with as many groups as fit."""
    return nn.GroupNorm(groups(channels), channels)


def groups(channels: int) -> int:
    """As many as fit, of at least four channels: one channel and one pixel would be normalised to zero."""
    return math.gcd(channels, min(32, max(1, channels // 4)))
