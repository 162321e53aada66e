"""Embeddings of times, positions and conditions.

emb(u) = [cos(u w_k), sin(u w_k)],  w_k = 10000^(-k / K),  k = 0..K-1.

Vaswani et al. 2017, section 3.5; for times as in Ho et al. 2020, where u = 1000 t.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse.nets.attention import Layer


def sinusoid(u: Tensor, size: int) -> Tensor:
    """Embed numbers as cosines and sines of geometrically spaced frequencies.

    emb(u) = [cos(u w_k), sin(u w_k)],  w_k = 10000^(-k / K),  K = size // 2.

    Args:
        u: numbers of any shape (...); half precision is raised to float32, where 1000 t still has its digits.
        size: length of the embedding; an odd size ends in a zero.
    Returns:
        (..., size) in float32 or float64.
    """
    u = u.to(torch.promote_types(u.dtype, torch.float32))
    angles = u[..., None] * _waves(size, u)
    return F.pad(torch.cat([angles.cos(), angles.sin()], -1), (0, size % 2))


def _waves(size: int, like: Tensor) -> Tensor:
    """The frequencies w_k of `sinusoid`, (size // 2,)."""
    half = size // 2
    return torch.exp(torch.arange(half, device=like.device, dtype=like.dtype) * (-math.log(10000) / max(half, 1)))


def positions(shape: tuple[int, ...], size: int, device: torch.device) -> Tensor:
    """Embed the index of every cell of a grid: the channels are shared out evenly between its axes.

    Args:
        shape: cells along each axis (n_1, ..., n_d).
        size: channels; what 2 d does not divide stays zero.
        device: where to make it.
    Returns:
        (n_1 * ... * n_d, size) in float32, the last axis of the grid running fastest.
    """
    share = size // (2 * len(shape)) * 2
    tables = []
    for axis, cells in enumerate(shape):
        table = sinusoid(torch.arange(cells, device=device, dtype=torch.float32), share)
        others = [cells if other == axis else 1 for other in range(len(shape))]
        tables.append(table.view(*others, share).expand(*shape, share))
    return F.pad(torch.cat(tables, -1).flatten(0, -2), (0, size - share * len(shape)))


def rotations(shape: tuple[int, ...], size: int, still: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Angles by which queries and keys turn at every cell of a grid, so that q.k depends on their distance alone.

    angle = n w_k along each axis,  w_k = 100^(-k / K),  K = size // (2 d) frequencies to an axis.

    Args:
        shape: cells along each axis (n_1, ..., n_d). size: channels of a head, even; what d does not divide is still.
        still: tokens before those of the grid, which do not turn.
        device: where to make it.
    Returns:
        Cosines and sines, each (1, 1, still + n_1 * ... * n_d, size) in float32.

    Su et al. 2021, eq. 15; along axes as in Heo et al. 2024, section 3.
    """
    each = size // (2 * len(shape))
    frequencies = torch.exp(torch.arange(each, device=device) * (-math.log(100) / max(each, 1)))
    at = torch.cartesian_prod(*[torch.arange(cells, device=device, dtype=torch.float32) for cells in shape])
    angles = (at.view(-1, len(shape), 1) * frequencies).flatten(1)
    angles = F.pad(angles, (0, size // 2 - angles.shape[1], still, 0)).repeat(1, 2)[None, None]
    return angles.cos(), angles.sin()


class Project(nn.Linear):
    """`nn.Linear` for inputs of any float dtype: they are cast to the weight's."""

    def forward(self, input: Tensor) -> Tensor:
        """W x + b: (..., in) -> (..., out)."""
        return super().forward(input.to(self.weight.dtype))


class TimeEmbedding(nn.Module):
    """Embed a time in [0, 1], or any number of that order, by W2 silu(W1 sinusoid(1000 t)).

    Args:
        width: length of the embedding.
        frequencies: length of the sinusoidal embedding it starts from.
    """

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.first = Project(frequencies, width)
        self.second = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, width)."""
        return self.second(F.silu(self.first(sinusoid(1000 * t, self.frequencies))))

    def calm(self, fastest: float = 100.0) -> None:
        """Silence the waves that turn by more than `fastest` radians while t goes from 0 to 1, and let none be learned.

        What a network learned from noise alone leaves ripples of them, which hardly show in what it says, and are most
        of its exact derivative in t.
        """
        turns = 1000 * _waves(self.frequencies, self.first.weight)
        slow = F.pad((turns <= fastest).repeat(2), (0, self.frequencies % 2)).to(self.first.weight)
        self.first.weight.data *= slow
        self.first.weight.register_hook(lambda gradient: gradient * slow)


class OrNull(nn.Module):
    """`embed`, or a learned vector for rows with NaN."""

    def __init__(self, embed: nn.Module, width: int) -> None:
        super().__init__()
        self.embed = embed
        self.null = nn.Parameter(torch.zeros(width))

    def forward(self, value: Tensor) -> Tensor:
        """(B, ...) -> (B, width)."""
        nan = value.isnan()
        # NaN must be gone before the first product: 0 * NaN is NaN, and would be so in the gradient.
        embedded = self.embed(value.masked_fill(nan, 0))
        return torch.where(nan.reshape(len(nan), -1).any(1, keepdim=True), self.null, embedded)


class ImageOrNull(nn.Module):
    """The image, or a learned colour where it is NaN."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.zeros(channels))

    def forward(self, value: Tensor) -> Tensor:
        """(B, channels, *spatial) -> the same shape, without NaN."""
        return torch.where(value.isnan(), self.null.view(-1, *[1] * (value.ndim - 2)), value)


class TokenEmbedding(nn.Module):
    """Tokens behind a learned "nothing", which is visible to the rows that have no token, and to no other.

    Args:
        size: of a feature vector. vocab: ids 0..vocab-1, or None where tokens are features already.
        width: of what comes out. layers: transformer layers that let the tokens read each other.
    """

    def __init__(self, size: int, vocab: int | None, width: int, layers: int = 0) -> None:
        super().__init__()
        self.lookup = None if vocab is None else nn.Embedding(vocab, size)
        self.project = Project(size, width)
        self.nothing = nn.Parameter(torch.zeros(width))
        if layers:
            heads = max(h for h in (1, 2, 3, 4) if width % h == 0)
            self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
            self.norm = nn.LayerNorm(width)

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, size) or (B, L) -> features (B, 1 + L, width), visible (B, 1 + L)."""
        if self.lookup is None:
            nan = value.isnan()
            visible, features = ~nan.any(-1), value.masked_fill(nan, 0)
        else:
            visible, features = value >= 0, self.lookup(value.clamp_min(0))
            features = features + positions(value.shape[1:], features.shape[-1], value.device)
        tokens = self.project(features)
        tokens = torch.cat([self.nothing.expand(len(tokens), 1, -1).to(tokens.dtype), tokens], 1)
        visible = torch.cat([~visible.any(1, keepdim=True), visible], 1)
        if hasattr(self, "layers"):
            for layer in self.layers:
                tokens = layer(tokens, visible[:, None, None])
            tokens = self.norm(tokens)
        return tokens, visible
