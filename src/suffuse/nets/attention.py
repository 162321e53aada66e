"""Attention layers, and the two small things that every block is built with."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse.nets.taps import Attention

M = TypeVar("M", bound=nn.Module)


class SelfAttention(nn.Module):
    """Attend from every position of x to every other: (B, L, width) -> (B, L, width).

    Args:
        width: channels; a multiple of `heads`.
        heads: attentions side by side.
        qk_norm: queries and keys of root mean square 1 times a learned scale (Dehghani et al. 2023), which keeps
            scores from growing with the weights.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = check_heads(heads, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.scales = nn.Parameter(torch.ones(2, width // heads)) if qk_norm else None
        self.attention = Attention("self")
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, visible: Tensor | None = None, turns: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(B, L, width), bool (B, 1, 1, L), cosines and sines of `rotations` -> (B, L, width)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.scales is not None:
            q, k = (unit(y) * by for y, by in zip((q, k), self.scales.unbind(0), strict=True))
        if turns is not None:
            q, k = turned(q, *turns), turned(k, *turns)
        return self.out(self.attention(q, k, v, visible).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attend from every position of norm(x) to the tokens; the output layer starts at zero.

    Args:
        width: channels of x; a multiple of `heads`.
        tokens: channels of the tokens.
        heads: attentions side by side.
    """

    def __init__(self, width: int, tokens: int, heads: int) -> None:
        super().__init__()
        self.heads = check_heads(heads, width)
        self.norm = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(tokens, 2 * width)
        self.attention = Attention("cross")
        self.out = zero(nn.Linear(width, width))

    def forward(self, x: Tensor, tokens: Tensor, visible: Tensor) -> Tensor:
        """(B, L, width), (B, M, tokens), bool (B, 1, 1, M) -> (B, L, width)."""
        q = self.q(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(self.attention(q, k, v, visible).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A transformer layer without conditions: x <- x + attention(norm(x)), then x <- x + mlp(norm(x)).

    Args:
        width: channels; a multiple of `heads`.
        heads: attentions side by side.

    Vaswani et al. 2017, figure 1, with the norm before each part.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = SelfAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """(B, L, width), bool (B, 1, 1, L) -> (B, L, width)."""
        x = x + self.attention(self.norms[0](x), visible)
        return x + self.mlp(self.norms[1](x))


class SwiGLU(nn.Module):
    """W2 (silu(W1 x) * V x), with two thirds of an MLP's hidden channels and so its number of weights.

    Args:
        width: channels. hidden: of the MLP it takes the place of.

    Shazeer 2020, eq. 6.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        hidden = round(hidden * 2 / 3)
        self.both = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        gate, value = self.both(x).chunk(2, -1)
        return self.out(F.silu(gate) * value)


def unit(y: Tensor) -> Tensor:
    """y over the root of its mean square along the last axis."""
    return y * (y.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def turned(y: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn the pairs (y_k, y_{k + d/2}) by the angles of each position: (B, heads, L, d), (1, 1, L, d) twice."""
    a, b = y.chunk(2, -1)
    return y * cosines.to(y.dtype) + torch.cat([-b, a], -1) * sines.to(y.dtype)


def zero(layer: M) -> M:
    """Set all parameters of a layer to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift, the affine part of a norm told by the conditions (Perez et al. 2018, eq. 1)."""
    return torch.addcmul(shift, x, 1 + scale)


def check_heads(heads: int, width: int) -> int:
    """The heads, if they divide the width."""
    if heads < 1 or width % heads:
        raise ValueError(f"heads must divide the {width} channels of its layer, got {heads}")
    return heads
