"""Reading colours by rule, with nothing learned: a cross-check of the judges on the shapes world.

A pixel has a colour of the palette when all its channels lie within `NEAR` of it, unless it is a mixture: between its
two neighbours along some line, and off both. The background has the colour of most of the border; every other
connected piece of one colour with at least `LEAST` pixels is a piece of an object.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from suffuse.data.shapes import BACKGROUNDS, COLOURS, palette

__all__ = ["Rules", "read_by_rules"]

NEAR, LEAST = 0.3, 5
_LINES = ((0, 1), (1, 0), (1, 1), (1, -1))


@dataclass(frozen=True, eq=False)
class Rules:
    """What the rules find in B pictures.

    Attributes:
        background: (B,) index into `COLOURS`, -1 when no border pixel has a colour. pieces: (B, 10) how many connected
            pieces of each colour there are, the background's colour apart.
    """

    background: Tensor
    pieces: Tensor

    @property
    def colours(self) -> Tensor:
        """(B, 10) bool: the colours that objects have."""
        return self.pieces > 0


def _shifted(x: Tensor, dy: int, dx: int, fill: float) -> Tensor:
    """x (..., H, W) moved so that each pixel holds its neighbour at (dy, dx)."""
    h, w = x.shape[-2:]
    return F.pad(x, (1, 1, 1, 1), value=fill)[..., 1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]


def _mixed(images: Tensor) -> Tensor:
    """(B, H, W): pixels between two unlike neighbours on opposite sides, v = l + s (r - l) with 0.1 < s < 0.9."""
    found = torch.zeros_like(images[:, 0], dtype=torch.bool)
    for dy, dx in _LINES:
        left, right = _shifted(images, -dy, -dx, 9.0), _shifted(images, dy, dx, 9.0)
        across, along = right - left, images - left
        share = (across * along).sum(1) / (across * across).sum(1).clamp(min=1e-6)
        rest = (along - share[:, None] * across).abs().amax(1)
        unlike = (across.abs().amax(1) > 0.4) & (left.amax(1) < 5) & (right.amax(1) < 5)
        found |= unlike & (share > 0.1) & (share < 0.9) & (rest < 0.15)
    return found


def _pieces(kind: Tensor) -> Tensor:
    """(B, H, W) kinds, -1 for none -> (B, H, W): the number of each pixel's connected piece, 0 for none."""
    n, h, w = kind.shape
    start = torch.arange(1, h * w + 1, device=kind.device).view(1, h, w).expand(n, h, w)
    label = torch.where(kind >= 0, start, 0)
    same = [(dy, dx, _shifted(kind, dy, dx, -1) == kind) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    while True:
        new = label
        for dy, dx, alike in same:
            new = torch.where(alike & (kind >= 0), torch.maximum(new, _shifted(new, dy, dx, 0)), new)
        if torch.equal(new, label):
            return label
        label = new


def read_by_rules(images: Tensor) -> Rules:
    """Colours of the background and of the objects.

    Args:
        images: (B, 3, H, W) in [-1, 1].
    """
    b, _, h, w = images.shape
    distance = (images[:, None] - palette(images.device)[:, :, None, None]).abs().amax(2)
    least, kind = distance.min(1)
    kind = torch.where(least < NEAR, kind, -1)
    rim = torch.cat([kind[:, 0], kind[:, -1], kind[:, 1:-1, 0], kind[:, 1:-1, -1]], 1)
    known = torch.tensor([COLOURS.index(name) for name in BACKGROUNDS], device=images.device)
    votes = (rim[..., None] == known).sum(1)
    background = torch.where(votes.amax(1) > 0, known[votes.argmax(1)], -1)
    kind = torch.where(_mixed(images) | (kind == background[:, None, None]), -1, kind)
    label = _pieces(kind).flatten(1)
    area = torch.zeros(b, h * w + 1, dtype=torch.int64, device=images.device)
    area.scatter_add_(1, label, torch.ones_like(label))
    area[:, 0] = 0
    root = (label == torch.arange(1, h * w + 1, device=images.device)) & (area[:, 1:] >= LEAST)
    colour = F.one_hot(kind.flatten(1).clamp(min=0), len(COLOURS))
    return Rules(background, (colour * root[..., None]).sum(1))
