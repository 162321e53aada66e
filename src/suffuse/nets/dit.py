"""The diffusion transformer, for 1-D, 2-D or 3-D data.

Peebles & Xie 2023.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.nets.attention import CrossAttention, SelfAttention, SwiGLU, modulate, zero
from suffuse.nets.blocks import Conditioning, Told, check_dims, check_image
from suffuse.nets.conditions import Condition
from suffuse.nets.embed import positions, rotations

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
"""Depth, width and heads."""


@dataclass(eq=False, repr=False)
class DiT(nn.Module):
    """A transformer over patches, told its time and conditions by adaLN-Zero; a fresh one returns exactly 0.

    h <- h + gate1 attention(norm(h) (1 + scale1) + shift1)
    h <- h + cross-attention(norm(h), tokens)                    if it is told tokens
    h <- h + gate2 mlp(norm(h) (1 + scale2) + shift2)            all six from one W silu(time + conditions)

    Args:
        channels: channels of x.
        patch: side of a patch in pixels, the same along every axis.
        width: channels per patch; a multiple of `heads`.
        depth: blocks.
        heads: attentions side by side.
        mlp_ratio: hidden channels of a block's MLP, in units of `width`.
        dims: spatial dimensions, 1, 2 or 3.
        dropout: probability, on what each branch adds.
        out_channels: channels of the output, those of x by default.
        conditions: what it may be told, by name.
        rope: turn queries and keys by their positions instead of adding positions to the patches (Su et al. 2021).
        qk_norm: see `SelfAttention`. swiglu: gated MLPs of as many weights, see `SwiGLU`.
        registers: learned tokens beside the patches, to remember things in (Darcet et al. 2024).
        skips: block i hands its output to block depth - 1 - i, as in a U-Net (Bao et al. 2023, U-ViT).
    Raises:
        ValueError: dims, heads or registers out of range; rope with heads of odd size.

    Peebles & Xie 2023, section 3.2 and figure 3.
    """

    channels: int
    patch: int = 2
    width: int = 128
    depth: int = 6
    heads: int = 4
    mlp_ratio: float = 4.0
    dims: int = 2
    dropout: float = 0.0
    out_channels: int | None = None
    conditions: dict[str, Condition] = field(default_factory=dict)
    rope: bool = False
    qk_norm: bool = False
    swiglu: bool = False
    registers: int = 0
    skips: bool = False

    @classmethod
    def named(cls, name: str, channels: int = 4, **options: Any) -> DiT:
        """A size of the paper, "S/2" to "XL/8": S, B, L or XL, and the side of a patch.

        The paper's own have 4 channels (latents), `out_channels=8` and `conditions={"label": Label(1000)}`.

        Args:
            name: size/patch. channels: of x. options: any other argument.
        Raises:
            ValueError: no such size.

        Peebles & Xie 2023, table 1.
        """
        size, _, patch = name.partition("/")
        if size not in SIZES or not patch.isdigit() or int(patch) < 1:
            raise ValueError(f"a DiT's name is one of {', '.join(SIZES)} and a patch, such as 'S/2', got {name!r}")
        depth, width, heads = SIZES[size]
        chosen: dict[str, Any] = {"patch": int(patch), "width": width, "depth": depth, "heads": heads} | options
        return cls(channels, **chosen)

    def __post_init__(self) -> None:
        super().__init__()
        check_dims(self.dims)
        self.told = Conditioning("DiT", self.conditions, self.width)
        tokens = self.width if self.told.has_tokens else None
        conv = getattr(nn, f"Conv{self.dims}d")
        self.stem = conv(self.channels + self.told.channels, self.width, self.patch, stride=self.patch)
        hidden = int(self.width * self.mlp_ratio)
        if self.registers < 0:
            raise ValueError(f"registers must be at least 0, got {self.registers}")
        if self.rope and self.width // self.heads % 2:
            raise ValueError(
                f"rope turns pairs of channels: heads must have an even size, got {self.width // self.heads}"
            )
        self.blocks = nn.ModuleList(
            _Block(self.width, self.heads, hidden, tokens, self.dropout, self.qk_norm, self.swiglu)
            for _ in range(self.depth)
        )
        self.register = nn.Parameter(0.02 * torch.randn(self.registers, self.width)) if self.registers else None
        half = self.depth // 2 if self.skips else 0
        self.joins = nn.ModuleList(nn.Linear(2 * self.width, self.width) for _ in range(half)) if half else []
        self.norm = nn.LayerNorm(self.width, elementwise_affine=False, eps=1e-6)
        self.modulation = zero(nn.Linear(self.width, 2 * self.width))
        self.out = zero(nn.Linear(self.width, (self.out_channels or self.channels) * self.patch**self.dims))

    def forward(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """Map noisy images to whatever the network is trained to predict.

        Args:
            x: (B, channels, *spatial), every spatial size a multiple of `patch`.
            t: (B,), times in [0, 1].
            conditions: every condition it was built with, B rows each.
        Returns:
            (B, out_channels, *spatial).
        Raises:
            TypeError: a condition is missing or unknown.
            ValueError: a wrong shape.
        """
        check_image("DiT", x, self.channels, self.dims, self.patch, f"DiT cuts patches of side {self.patch}")
        x, told = self.told(x, t, conditions)
        h = self.stem(x)
        grid = h.shape[2:]
        h = h.flatten(2).mT.contiguous()  # else every layer keeps the transposed layout, and copies it for its norm
        turns = None
        if self.rope:
            turns = rotations(grid, self.width // self.heads, self.registers, x.device)
        else:
            h = h + positions(grid, self.width, x.device).to(x.dtype)
        if self.register is not None:
            h = torch.cat([self.register.to(h.dtype).expand(len(h), -1, -1), h], 1)
        kept, half = [], len(self.joins)
        for i, block in enumerate(self.blocks):
            if kept and i >= self.depth - half:
                h = self.joins[i - self.depth + half](torch.cat([h, kept.pop()], -1))
            h = block(h, told, turns)
            if i < half:
                kept.append(h)
        h = h[:, self.registers :]
        shift, scale = self.modulation(told.embedding)[:, None].chunk(2, -1)
        return self._join(self.out(modulate(self.norm(h), shift, scale)), grid)

    def _join(self, patches: Tensor, grid: torch.Size) -> Tensor:
        """(B, n_1 * ... * n_d, C * patch^d) -> (B, C, n_1 * patch, ..., n_d * patch)."""
        d = self.dims
        cells = patches.view(len(patches), *grid, -1, *[self.patch] * d)
        pairs = [axis for i in range(d) for axis in (1 + i, 2 + d + i)]
        return cells.permute(0, 1 + d, *pairs).reshape(len(patches), -1, *[n * self.patch for n in grid])


class _Block(nn.Module):
    def __init__(
        self, width: int, heads: int, hidden: int, tokens: int | None, dropout: float, qk_norm: bool, swiglu: bool
    ) -> None:
        super().__init__()
        self.modulation = zero(nn.Linear(width, 6 * width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.self_attention = SelfAttention(width, heads, qk_norm=qk_norm)
        self.cross_attention = None if tokens is None else CrossAttention(width, tokens, heads)
        if swiglu:
            self.mlp: nn.Module = SwiGLU(width, hidden)
        else:
            self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, told: Told, turns: tuple[Tensor, Tensor] | None = None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(told.embedding)[:, None].chunk(6, -1)
        h = torch.addcmul(
            h, gate1, self.dropout(self.self_attention(modulate(self.norm(h), shift1, scale1), None, turns))
        )
        if self.cross_attention is not None:
            h = h + self.dropout(self.cross_attention(h, told.tokens, told.visible))
        return torch.addcmul(h, gate2, self.dropout(self.mlp(modulate(self.norm(h), shift2, scale2))))
