"""The multimodal diffusion transformer: patches and tokens are two streams that meet in every attention.

Esser et al. 2024 (Scaling rectified flow transformers for high-resolution image synthesis), section 4 and figure 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.nets.attention import check_heads, modulate, zero
from suffuse.nets.blocks import Conditioning, check_dims, check_image
from suffuse.nets.conditions import Condition
from suffuse.nets.dit import DiT
from suffuse.nets.embed import positions
from suffuse.nets.taps import Attention


@dataclass(eq=False, repr=False)
class MMDiT(nn.Module):
    """A transformer over patches and tokens, each with weights of its own; a fresh one returns exactly 0.

    q, k, v of both streams, q and k normalised    ->    one attention over all of them
    h <- h + gate1 out(attention),   h <- h + gate2 mlp(norm(h) (1 + scale2) + shift2)          in either stream

    Modulations come from the time, the conditions and the mean of the tokens. Without tokens it is a DiT with
    normalised queries and keys.

    Args:
        channels, patch, width, depth, heads, mlp_ratio, dims, out_channels, conditions: as for `DiT`.
    Raises:
        ValueError: dims or heads out of range.
    """

    channels: int
    patch: int = 2
    width: int = 128
    depth: int = 6
    heads: int = 4
    mlp_ratio: float = 4.0
    dims: int = 2
    out_channels: int | None = None
    conditions: dict[str, Condition] = field(default_factory=dict)

    @classmethod
    def named(cls, name: str, channels: int = 16, **options: Any) -> MMDiT:
        """A network of depth d, width 64 d and d heads: "d24" is Stable Diffusion 3 medium, "d38" the paper's largest.

        The paper's own have `conditions={"text": Tokens(4096), "pooled": Vector(2048)}`.

        Args:
            name: "d" and the depth. channels: of x. options: any other argument.
        Raises:
            ValueError: no such name.

        Esser et al. 2024, section 4 and 5.3.
        """
        if not (name[:1] == "d" and name[1:].isdigit() and int(name[1:])):
            raise ValueError(f"an MMDiT's name is 'd' and its depth, such as 'd24', got {name!r}")
        d = int(name[1:])
        chosen: dict[str, Any] = {"width": 64 * d, "depth": d, "heads": d} | options
        return cls(channels, **chosen)

    def __post_init__(self) -> None:
        super().__init__()
        check_dims(self.dims)
        check_heads(self.heads, self.width)
        self.told = Conditioning("MMDiT", self.conditions, self.width, pool=True)
        conv = getattr(nn, f"Conv{self.dims}d")
        self.stem = conv(self.channels + self.told.channels, self.width, self.patch, stride=self.patch)
        hidden, two = int(self.width * self.mlp_ratio), self.told.has_tokens
        self.blocks = nn.ModuleList(
            _Block(self.width, self.heads, hidden, two, last=i == self.depth - 1) for i in range(self.depth)
        )
        self.norm = nn.LayerNorm(self.width, elementwise_affine=False, eps=1e-6)
        self.modulation = zero(nn.Linear(self.width, 2 * self.width))
        self.out = zero(nn.Linear(self.width, (self.out_channels or self.channels) * self.patch**self.dims))

    def forward(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """As `DiT.forward`."""
        check_image("MMDiT", x, self.channels, self.dims, self.patch, f"MMDiT cuts patches of side {self.patch}")
        x, told = self.told(x, t, conditions)
        h = self.stem(x)
        grid = h.shape[2:]
        h = h.flatten(2).mT.contiguous()  # as in DiT
        h = h + positions(grid, self.width, x.device).to(x.dtype)
        tokens, mask = told.tokens, None
        if tokens is not None and told.visible is not None:
            mask = torch.cat([told.visible, told.visible.new_ones(len(h), 1, 1, h.shape[1])], -1)
        for block in self.blocks:
            h, tokens = block(h, tokens, told.embedding, mask)
        shift, scale = self.modulation(told.embedding)[:, None].chunk(2, -1)
        return self._join(self.out(modulate(self.norm(h), shift, scale)), grid)

    _join = DiT._join


class _Stream(nn.Module):
    """What one modality has of its own in a block.

    Args:
        lends: it gives keys and values only, and is not looked at afterwards: the tokens of the last block.
    """

    def __init__(self, width: int, heads: int, hidden: int, *, lends: bool = False) -> None:
        super().__init__()
        self.heads, self.lends = heads, lends
        self.modulation = zero(nn.Linear(width, (2 if lends else 6) * width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, (2 if lends else 3) * width)
        self.scales = nn.Parameter(torch.ones(1 if lends else 2, width // heads))
        if not lends:
            self.out = nn.Linear(width, width)
            self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width))

    def heard(self, h: Tensor, embedding: Tensor) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """[q,] k, v (B, heads, L, d), q and k of length sqrt(d) times a learned scale; and what `said` needs."""
        shift, scale, *rest = self.modulation(embedding)[:, None].chunk(2 if self.lends else 6, -1)
        parts = self.qkv(modulate(self.norm(h), shift, scale)).unflatten(
            -1, (-1, self.heads, h.shape[-1] // self.heads)
        )
        *looked, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        normed = [
            y * (y.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * by
            for y, by in zip(looked, self.scales.unbind(0), strict=True)
        ]
        return [*normed, v], tuple(rest)

    def said(self, h: Tensor, mixed: Tensor, rest: tuple[Tensor, ...]) -> Tensor:
        """The stream after attention (B, heads, L, d) and its MLP."""
        gate1, shift2, scale2, gate2 = rest
        h = torch.addcmul(h, gate1, self.out(mixed.transpose(1, 2).flatten(2)))
        return torch.addcmul(h, gate2, self.mlp(modulate(self.norm(h), shift2, scale2)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, two: bool, *, last: bool) -> None:
        super().__init__()
        self.patches = _Stream(width, heads, hidden)
        self.tokens = _Stream(width, heads, hidden, lends=last) if two else None
        self.attention = Attention("self")

    def forward(
        self, h: Tensor, tokens: Tensor | None, embedding: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        (q, k, v), rest = self.patches.heard(h, embedding)
        if self.tokens is None or tokens is None:
            return self.patches.said(h, self.attention(q, k, v), rest), None
        theirs, their_rest = self.tokens.heard(tokens, embedding)
        k, v = torch.cat([theirs[-2], k], 2), torch.cat([theirs[-1], v], 2)
        if self.tokens.lends:
            return self.patches.said(h, self.attention(q, k, v, mask), rest), None
        mixed = self.attention(torch.cat([theirs[0], q], 2), k, v, mask)
        length = tokens.shape[1]
        tokens = self.tokens.said(tokens, mixed[:, :, :length], their_rest)
        return self.patches.said(h, mixed[:, :, length:], rest), tokens
