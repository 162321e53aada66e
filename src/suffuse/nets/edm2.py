"""The U-Net whose layers keep the magnitude of what goes through them, for 1-D, 2-D or 3-D data.

conv:  w_i / |w_i|, so that unit inputs give unit outputs             sum:  ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)
silu:  silu(x) / 0.596                                                cat:  parts scaled to count t and 1 - t

Karras et al. 2024 (EDM2, Analyzing and improving the training dynamics of diffusion models), section 2, appendix B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse.nets.attention import unit
from suffuse.nets.blocks import Conditioning, check_dims, check_image
from suffuse.nets.conditions import Condition, Spatial, Tokens
from suffuse.nets.embed import sinusoid
from suffuse.nets.taps import Attention
from suffuse.nets.words import Words

SIZES = {"XS": 128, "S": 192, "M": 256, "L": 320, "XL": 384, "XXL": 448}
"""Width."""
BALANCE = 0.3
"""What a branch counts in its sum; 0.5 in concatenations and in the embedding."""


@dataclass(eq=False, repr=False)
class EDM2(nn.Module):
    """A magnitude-preserving U-Net for data of unit variance; a fresh one returns exactly 0.

    Weights are used over their norm, so that only their direction matters and nothing drifts in training. The paper
    also writes the normalised weights back in every step; here they may grow, which slows a fixed learning rate down.

    Args:
        channels, width, multipliers, blocks, attention, dims, out_channels: as for `UNet`; there are no biases.
        head_width: channels of a head.
        dropout: probability, inside the blocks.
        conditions: labels, vectors, scalars and images by name, not tokens.
    Raises:
        ValueError: dims, a level or head_width out of range; a condition of tokens.

    Karras et al. 2024, appendix B (config G).
    """

    channels: int
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention: tuple[int, ...] = (-2, -1)
    head_width: int = 64
    dims: int = 2
    dropout: float = 0.0
    out_channels: int | None = None
    conditions: dict[str, Condition] = field(default_factory=dict)

    @classmethod
    def named(cls, name: str, channels: int = 4, **options: Any) -> EDM2:
        """A size of the paper: "XS", "S", "M", "L", "XL" or "XXL", made for latents (4, 64, 64).

        Args:
            name: of the size. channels: of x. options: any other argument.
        Raises:
            ValueError: no such size.
        """
        if name not in SIZES:
            raise ValueError(f"an EDM2's name is one of {', '.join(SIZES)}, got {name!r}")
        chosen: dict[str, Any] = {"width": SIZES[name]} | options
        return cls(channels, **chosen)

    def __post_init__(self) -> None:
        super().__init__()
        check_dims(self.dims)
        levels = len(self.multipliers)
        for level in self.attention:
            if not -levels <= level < levels:
                raise ValueError(f"attention must name levels in {-levels}..{levels - 1}, got {level}")
        attending = {level % levels for level in self.attention}
        told = max(self.multipliers) * self.width
        self.told = _Told("EDM2", self.conditions, self.width, told)

        def block(wide_in: int, wide_out: int, attends: bool, flavour: str) -> _Block:
            heads = _heads(wide_out, self.head_width) if attends else 0
            return _Block(wide_in, wide_out, told, self.dims, heads, self.dropout, flavour)

        now = self.width
        self.stem = Conv(self.dims, self.channels + self.told.channels + 1, now, 3)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips = [now]
        for level, multiplier in enumerate(self.multipliers):
            if level:
                self.down.append(block(now, now, False, "shrink"))
                skips.append(now)
            for _ in range(self.blocks):
                self.down.append(block(now, multiplier * self.width, level in attending, "down"))
                now = multiplier * self.width
                skips.append(now)
        self.middle = nn.ModuleList([block(now, now, True, "up"), block(now, now, False, "up")])
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            if level < levels - 1:
                self.up.append(block(now, now, False, "grow"))
            for _ in range(self.blocks + 1):
                self.up.append(block(now + skips.pop(), multiplier * self.width, level in attending, "join"))
                now = multiplier * self.width
        self.out = Conv(self.dims, now, self.out_channels or self.channels, 3)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """As `UNet.forward`."""
        levels = len(self.multipliers)
        why = f"EDM2 with {levels} levels halves {levels - 1} times"
        check_image("EDM2", x, self.channels, self.dims, 2 ** (levels - 1), why)
        x, embedding = self.told(x, t, conditions)
        h = self.stem(torch.cat([x, torch.ones_like(x[:, :1])], 1))
        skips = [h]
        for layer in self.down:
            h = layer(h, embedding)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, embedding)
        for layer in self.up:
            h = layer(mp_cat(h, skips.pop()) if layer.flavour == "join" else h, embedding)
        return self.out(h) * self.gain


class Conv(nn.Module):
    """A convolution, or a linear layer for kernel 0, without bias, of weights over their norms.

    Args:
        dims: of its input. wide_in, wide_out: channels. kernel: its side.
    """

    def __init__(self, dims: int, wide_in: int, wide_out: int, kernel: int) -> None:
        super().__init__()
        self.dims, self.kernel = dims, kernel
        self.weight = nn.Parameter(torch.randn(wide_out, wide_in, *[kernel] * (dims if kernel else 0)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, wide_in, ...) -> (B, wide_out, ...)."""
        flat = self.weight.flatten(1)
        weight = (flat / (flat.norm(dim=1, keepdim=True) + 1e-6)).view_as(self.weight).to(x.dtype)
        if self.kernel == 0:
            return F.linear(x, weight)
        return getattr(F, f"conv{self.dims}d")(x, weight, padding=self.kernel // 2)


class _Told(Conditioning):
    """Time and conditions, each of unit magnitude, in one sum of unit magnitude."""

    def __init__(self, net: str, conditions: dict[str, Condition], width: int, told: int) -> None:
        odd = [name for name, spec in conditions.items() if isinstance(spec, Tokens | Words)]
        if odd:
            raise ValueError(f"EDM2 attends to nothing but itself: the condition {odd[0]!r} needs UNet, DiT or MMDiT")
        super().__init__(net, conditions, told)
        self.width = width
        self.time = Conv(0, width, told, 0)  # type: ignore[assignment]

    def forward(self, x: Tensor, t: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        self._check(x, t, given)
        total = self.time(math.sqrt(2) * sinusoid(1000 * t, self.width).to(self.time.weight.dtype))
        images, parts = [x], []
        for (name, spec), embed in zip(self.conditions.items(), self.embedders, strict=True):
            value = embed(given[name])
            if isinstance(spec, Spatial):
                images.append(value.to(x.dtype))
            else:
                parts.append(unit(value))
        if parts:
            total = mp_sum(total, torch.stack(parts).sum(0) / math.sqrt(len(parts)), 0.5)
        return torch.cat(images, 1), mp_silu(total)


class _Block(nn.Module):
    """A residual block and, at some levels, attention after it.

    Args:
        flavour: "down" or "shrink", which normalise each pixel; "up", "grow" or "join", which do not.
    """

    def __init__(
        self, wide_in: int, wide_out: int, told: int, dims: int, heads: int, dropout: float, flavour: str
    ) -> None:
        super().__init__()
        self.flavour, self.dims, self.heads = flavour, dims, heads
        encodes = flavour in ("down", "shrink")
        self.skip = Conv(dims, wide_in, wide_out, 1) if wide_in != wide_out else nn.Identity()
        self.conv1 = Conv(dims, wide_out if encodes else wide_in, wide_out, 3)
        self.modulation, self.gain = Conv(0, told, wide_out, 0), nn.Parameter(torch.zeros(()))
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv(dims, wide_out, wide_out, 3)
        if heads:
            self.qkv, self.attended = Conv(dims, wide_out, 3 * wide_out, 1), Conv(dims, wide_out, wide_out, 1)
            self.attention = Attention("self")

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        if self.flavour == "shrink":
            h = getattr(F, f"avg_pool{self.dims}d")(h, 2)
        elif self.flavour == "grow":
            h = F.interpolate(h, scale_factor=2, mode="nearest")
        if self.flavour in ("down", "shrink"):
            h = self.skip(h)
            h = h / (h.square().mean(1, keepdim=True).sqrt() + 1e-4)
        scale = 1 + self.gain * self.modulation(embedding)
        new = self.conv1(mp_silu(h)) * scale.view(*scale.shape, *[1] * self.dims)
        new = self.conv2(self.dropout(mp_silu(new)))
        h = mp_sum(h if self.flavour in ("down", "shrink") else self.skip(h), new, BALANCE)
        if not self.heads:
            return h
        q, k, v = (unit(y.mT) for y in self.qkv(h).flatten(2).unflatten(1, (3, self.heads, -1)).unbind(1))
        mixed = self.attention(q, k, v).mT.flatten(1, 2).view_as(h)
        return mp_sum(h, self.attended(mixed), BALANCE)


def mp_silu(x: Tensor) -> Tensor:
    """silu(x) / 0.596: of unit magnitude for normal x."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2): of unit magnitude for independent a and b."""
    return a.lerp(b, t) / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor) -> Tensor:
    """Channels of a and b, scaled to count alike however many they are."""
    n, m = a.shape[1], b.shape[1]
    return torch.cat([a * math.sqrt((n + m) / (2 * n)), b * math.sqrt((n + m) / (2 * m))], 1)


def _heads(width: int, head_width: int) -> int:
    heads = max(1, width // head_width)
    if head_width < 1 or width % heads:
        raise ValueError(f"head_width must divide the {width} channels of its level, got {head_width}")
    return heads
