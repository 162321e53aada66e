"""What is in a picture of the shapes world: the words for it, its colours, and the relations that hold.

A judge reads a picture into the same `Attributes` that the renderer draws from, so one `match` serves both.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "DIAMETERS",
    "FILLS",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "STYLES",
    "Attributes",
    "held_out",
    "outlineable",
    "palette",
]

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "figure")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white", "black")
BACKGROUNDS = COLOURS[2:]
SIZES = ("small", "medium", "large")
FILLS = ("filled", "outlined", "dotted")
STYLES = ("plain", "striped", "dotted", "gradient")
RELATIONS = ("left of", "above", "inside")

RING, FIGURE = SHAPES.index("ring"), SHAPES.index("figure")
DIAMETERS = (10.0, 13.0, 18.0)
"""Pixels across, at most, on a canvas of 32; an object is drawn at 0.95 to 1 of it. Larger canvases scale them."""

_RGB = (
    (215, 35, 35),
    (245, 135, 20),
    (250, 225, 50),
    (35, 150, 60),
    (60, 205, 225),
    (35, 80, 215),
    (150, 55, 185),
    (245, 145, 195),
    (250, 250, 250),
    (20, 20, 20),
)


def palette(device: Any = None) -> Tensor:
    """The colours, (10, 3) in [-1, 1], in the order of `COLOURS`."""
    return torch.tensor(_RGB, dtype=torch.float32, device=device) / 127.5 - 1


def outlineable(shape: Tensor, size: Tensor) -> Tensor:
    """Whether an object may be drawn by its outline: not rings and figures, nor small stars, crosses and hearts."""
    intricate = (shape == SHAPES.index("star")) | (shape == SHAPES.index("cross")) | (shape == SHAPES.index("heart"))
    return (shape != RING) & (shape != FIGURE) & ~(intricate & (size == 0))


def held_out(shape: Tensor, colour: Tensor) -> Tensor:
    """Whether a combination is kept from training: (shape + colour) divisible by 6, which is 13 of the 80."""
    return (shape >= 0) & (colour >= 0) & ((shape + colour) % 6 == 0)


@dataclass(frozen=True, eq=False)
class Attributes:
    """What B pictures show, in up to K objects each.

    Attributes:
        count: (B,) objects. The slots after them hold -1.
        shape, colour, size, fill: (B, K) indices into `SHAPES`, `COLOURS`, `SIZES`, `FILLS`; -1 is none of them.
        x, y: (B, K) centres in pixels, from the left and the top edge.
        background: (B,) index into `COLOURS`. style: (B,) index into `STYLES`; -1 is none of them.
        depth: (B, K) 0 is the nearest; -1 when it is not known.
        side: the canvas's height in pixels, which the sizes refer to.
    """

    count: Tensor
    shape: Tensor
    colour: Tensor
    size: Tensor
    fill: Tensor
    x: Tensor
    y: Tensor
    background: Tensor
    style: Tensor
    depth: Tensor
    side: int

    def __len__(self) -> int:
        return len(self.count)

    def __getitem__(self, index: Any) -> Attributes:
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "side"})

    @property
    def present(self) -> Tensor:
        """(B, K) bool: which slots hold an object."""
        return torch.arange(self.shape.shape[1], device=self.count.device) < self.count[:, None]

    @property
    def relations(self) -> Tensor:
        """(B, K, K): index into `RELATIONS` where object i is left of, above or inside object j, else -1.

        i is inside j when it is smaller and its centre lies within r_j - r_i / 2 of j's. Otherwise the axis along
        which the centres differ more decides between left of and above.
        """
        pair = self.present[:, :, None] & self.present[:, None, :]
        dx, dy = (v[:, None, :] - v[:, :, None] for v in (self.x, self.y))
        half = torch.tensor(DIAMETERS, device=self.x.device)[self.size.clamp(0, len(SIZES) - 1)] * (self.side / 64)
        small, large = half[:, :, None], half[:, None, :]
        near = dx * dx + dy * dy <= (torch.maximum(small, large) - torch.minimum(small, large) / 2) ** 2
        within = near & (small != large)
        kind = torch.full_like(pair, -1, dtype=torch.int64)
        kind = torch.where(~within & (dx > 0) & (dx.abs() >= dy.abs()), 0, kind)
        kind = torch.where(~within & (dy > 0) & (dx.abs() < dy.abs()), 1, kind)
        kind = torch.where(within & (small < large), 2, kind)
        return torch.where(pair, kind, -1)

    @property
    def relation(self) -> Tensor:
        """(B,): that of object 0 to object 1; -1 for a single object and for two that look the same."""
        if self.shape.shape[1] < 2:
            return torch.full_like(self.count, -1)
        alike = (self.shape[:, 0] == self.shape[:, 1]) & (self.colour[:, 0] == self.colour[:, 1])
        return torch.where(alike, -1, self.relations[:, 0, 1])
