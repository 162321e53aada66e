"""Two networks that read a picture of the shapes world, alike in what they are asked and unlike in how they look.

Every cell of an 8 x 8 grid says, for each size, how near it is to the centre of an object of that size, and which
object that is; a shape of "none" is an object that is no shape, and a background may be "none". `ConvJudge` looks with
convolutions only, `PatchJudge` with attention between patches.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse.data.shapes import COLOURS, FILLS, SHAPES, SIZES, STYLES, Attributes
from suffuse.nets.attention import SelfAttention
from suffuse.nets.embed import positions

__all__ = ["IGNORE", "ConvJudge", "PatchJudge"]

SIDE, CELL = 32, 4
GRID = SIDE // CELL
IGNORE = -100
"""Where a target says nothing."""

_PARTS = (len(SHAPES) + 1, len(COLOURS), len(FILLS))
_GROUND = (len(COLOURS) + 1, len(STYLES) + 1)


def _entropy(scores: Tensor, target: Tensor) -> Tensor:
    """Cross entropy over the last axis, 0 where the target is negative."""
    index = torch.where(target < 0, IGNORE, target).flatten()
    flat = F.cross_entropy(scores.flatten(0, -2), index, reduction="none", ignore_index=IGNORE)
    return flat.view(target.shape)


def _or_none(index: Tensor, known: int) -> Tensor:
    return torch.where(index < known, index, -1)


def _ground_loss(scores: Tensor, target: Attributes) -> Tensor:
    colour, style = scores.split(_GROUND, -1)
    return _entropy(colour, target.background) + _entropy(style, target.style)


def _read(count: Tensor, parts: Tensor, size: Tensor, x: Tensor, y: Tensor, ground: Tensor) -> Attributes:
    shape, colour, fill = (scores.argmax(-1) for scores in parts.split(_PARTS, -1))
    empty = torch.arange(size.shape[1], device=size.device) >= count[:, None]

    def keep(value: Tensor) -> Tensor:
        return torch.where(empty, -1, value)

    background, style = (scores.argmax(-1) for scores in ground.split(_GROUND, -1))
    return Attributes(
        count=count,
        shape=keep(_or_none(shape, len(SHAPES))),
        colour=keep(colour),
        size=keep(size),
        fill=keep(fill),
        x=keep(x),
        y=keep(y),
        background=_or_none(background, len(COLOURS)),
        style=_or_none(style, len(STYLES)),
        depth=torch.full_like(size, -1),
        side=SIDE,
    )


class _CellReader(nn.Module):
    """What both judges share: the heads on their cells, the loss, and reading.

    Args:
        width: channels of a cell. pooled: length of what `features` says of the picture as a whole.
    """

    slots = 4

    def __init__(self, width: int, pooled: int) -> None:
        super().__init__()
        self.heat = nn.Conv2d(width, len(SIZES), 3, padding=1)
        nn.init.constant_(self.heat.bias, -3.0)  # type: ignore[arg-type]
        self.parts = nn.Conv2d(width, len(SIZES) * (sum(_PARTS) + 2), 1)
        self.ground = nn.Sequential(nn.Linear(pooled, width), nn.SiLU(), nn.Linear(width, sum(_GROUND)))

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 32, 32) -> cells (B, width, 8, 8) and the whole (B, pooled)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, 32, 32) -> heat (B, 3, 8, 8), parts (B, 3, 8, 8, 24), ground (B, 16)."""
        cells, whole = self.features(x)
        parts = self.parts(cells).unflatten(1, (len(SIZES), -1)).permute(0, 1, 3, 4, 2)
        return self.heat(cells).float(), parts.float(), self.ground(whole).float()

    def loss(self, x: Tensor, target: Attributes) -> Tensor:
        """(B,): distance of the heat from bumps at the centres, and cross entropies in the four cells around each."""
        heat, parts, ground = self(x)
        centres = (torch.arange(GRID, device=x.device) + 0.5) * CELL
        dx = target.x[..., None, None] - centres
        dy = target.y[..., None, None] - centres[:, None]
        bump = torch.exp(-(dx * dx + dy * dy) / (2 * (0.8 * CELL) ** 2))
        bump = torch.where(target.present[..., None, None], bump, 0)
        size = F.one_hot(target.size.clamp(min=0), len(SIZES)).float()
        wanted = torch.einsum("bkhw,bks->bskhw", bump, size).amax(2)
        known = ((target.size != IGNORE) | ~target.present).all(1)
        total = F.binary_cross_entropy_with_logits(heat, wanted, reduction="none").sum((1, 2, 3)) * known
        rows = torch.arange(len(x), device=x.device)[:, None]
        for oy, ox in itertools.product((0, 1), (0, 1)):
            i, j = ((v / CELL - 0.5).floor().long() + o for v, o in ((target.y, oy), (target.x, ox)))
            inside = (i >= 0) & (i < GRID) & (j >= 0) & (j < GRID) & target.present & (target.size >= 0)
            i, j = i.clamp(0, GRID - 1), j.clamp(0, GRID - 1)
            here = parts[rows, target.size.clamp(min=0), i, j]
            weight = torch.where(inside, bump.flatten(2).gather(2, (i * GRID + j)[..., None])[..., 0], 0)
            shape, colour, fill, offset = here.split((*_PARTS, 2), -1)
            cost = _entropy(shape, target.shape) + _entropy(colour, target.colour) + _entropy(fill, target.fill)
            true = torch.stack((target.x / CELL - j, target.y / CELL - i), -1) - 0.5
            cost = cost + 2 * (offset - true).abs().sum(-1)
            total = total + (weight * cost).sum(1)
        return total + _ground_loss(ground, target)

    def read(self, x: Tensor) -> Attributes:
        """Peaks of the heat above 0.3; of two beside each other whose sizes are neighbours, the higher."""
        heat, parts, ground = self(x)
        heat = heat.sigmoid()
        around = F.max_pool2d(heat, 3, 1, 1)
        peak = heat >= around
        peak[:, :2] &= heat[:, :2] > around[:, 1:]
        peak[:, 1:] &= heat[:, 1:] > around[:, :2]
        score, at = torch.where(peak & (heat > 0.3), heat, 0).flatten(1).topk(self.slots)
        size, i, j = at // GRID**2, at // GRID % GRID, at % GRID
        here = parts[torch.arange(len(x), device=x.device)[:, None], size, i, j]
        x_, y_ = (CELL * (v + 0.5 + here[..., k - 2]) for k, v in ((0, j), (1, i)))
        return _read((score > 0).sum(1), here[..., :-2], size, x_, y_, ground)


class ConvJudge(_CellReader):
    """Seven 3 x 3 convolutions with batch norm, from 32 x 32 to 8 x 8."""

    def __init__(self, width: int = 128) -> None:
        super().__init__(width, 3 * width)
        w = width

        def layer(a: int, b: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.SiLU())

        self.near = nn.Sequential(layer(3, w // 4), layer(w // 4, w // 2, 2), layer(w // 2, w // 2))
        self.cells = nn.Sequential(layer(w // 2, w, 2), layer(w, w), layer(w, w), layer(w, w))

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        near = self.near(x.contiguous(memory_format=torch.channels_last))
        cells = self.cells(near)
        return cells, torch.cat([near.mean((2, 3)), near.amax((2, 3)), cells.mean((2, 3)), cells.amax((2, 3))], 1)


class PatchJudge(_CellReader):
    """A transformer over 8 x 8 patches, which four convolutions of stride 2, 1, 2, 1 make, and one for the whole."""

    def __init__(self, width: int = 128, depth: int = 2) -> None:
        super().__init__(width, width)
        w = width

        def layer(a: int, b: int, kernel: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(a, b, kernel, stride, 1, bias=False), nn.BatchNorm2d(b), nn.GELU("tanh"))

        self.patches = nn.Sequential(
            layer(3, w // 2, 4, 2), layer(w // 2, w // 2, 3, 1), layer(w // 2, w, 4, 2), layer(w, w, 3, 1)
        )
        self.whole = nn.Parameter(0.1 * torch.randn(1, 1, w))
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                (
                    nn.Sequential(nn.LayerNorm(w), SelfAttention(w, w // 32)),
                    nn.Sequential(nn.LayerNorm(w), nn.Linear(w, 3 * w), nn.GELU("tanh"), nn.Linear(3 * w, w)),
                )
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(w)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.patches(x.contiguous(memory_format=torch.channels_last)).flatten(2).transpose(1, 2)
        h = h + positions((GRID, GRID), h.shape[-1], x.device).to(h.dtype)
        h = torch.cat([h, self.whole.expand(len(x), -1, -1).to(h.dtype)], 1)
        for attention, mlp in self.blocks:  # type: ignore[misc]
            h = h + attention(h)
            h = h + mlp(h)
        h = self.norm(h)
        return h[:, :-1].transpose(1, 2).unflatten(2, (GRID, GRID)), h[:, -1]
