"""The diffusion transformer, for 1-D, 2-D or 3-D data.

Peebles & Xie 2023.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from suffuse.nets.attention import CrossAttention, SelfAttention, modulate, zero
from suffuse.nets.blocks import Conditioning, Told, check_dims, check_image
from suffuse.nets.conditions import Condition
from suffuse.nets.embed import positions


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
    Raises:
        ValueError: dims or heads out of range.

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

    def __post_init__(self) -> None:
        super().__init__()
        check_dims(self.dims)
        self.told = Conditioning("DiT", self.conditions, self.width)
        tokens = self.width if self.told.has_tokens else None
        conv = getattr(nn, f"Conv{self.dims}d")
        self.stem = conv(self.channels + self.told.channels, self.width, self.patch, stride=self.patch)
        hidden = int(self.width * self.mlp_ratio)
        self.blocks = nn.ModuleList(
            _Block(self.width, self.heads, hidden, tokens, self.dropout) for _ in range(self.depth)
        )
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
        h = h.flatten(2).transpose(1, 2)
        h = h + positions(grid, self.width, x.device).to(x.dtype)
        for block in self.blocks:
            h = block(h, told)
        shift, scale = self.modulation(told.embedding)[:, None].chunk(2, -1)
        return self._join(self.out(modulate(self.norm(h), shift, scale)), grid)

    def _join(self, patches: Tensor, grid: torch.Size) -> Tensor:
        """(B, n_1 * ... * n_d, C * patch^d) -> (B, C, n_1 * patch, ..., n_d * patch)."""
        d = self.dims
        cells = patches.view(len(patches), *grid, -1, *[self.patch] * d)
        pairs = [axis for i in range(d) for axis in (1 + i, 2 + d + i)]
        return cells.permute(0, 1 + d, *pairs).reshape(len(patches), -1, *[n * self.patch for n in grid])


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, tokens: int | None, dropout: float) -> None:
        super().__init__()
        self.modulation = zero(nn.Linear(width, 6 * width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.self_attention = SelfAttention(width, heads)
        self.cross_attention = None if tokens is None else CrossAttention(width, tokens, heads)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, told: Told) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(told.embedding)[:, None].chunk(6, -1)
        h = torch.addcmul(h, gate1, self.dropout(self.self_attention(modulate(self.norm(h), shift1, scale1))))
        if self.cross_attention is not None:
            h = h + self.dropout(self.cross_attention(h, told.tokens, told.visible))
        return torch.addcmul(h, gate2, self.dropout(self.mlp(modulate(self.norm(h), shift2, scale2))))
