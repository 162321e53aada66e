"""Draw scenes: coverage of each pixel by each object, composited from the farthest to the nearest.

coverage = clamp(1/2 - d, 0, 1),   d the signed distance of a pixel's centre to the outline, in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from suffuse.data.shapes.attributes import FIGURE, SHAPES, STYLES, Attributes, palette
from suffuse.data.shapes.outlines import OUTLINES, joints, length, limbs, texture
from suffuse.data.shapes.scene import Decor

__all__ = ["Batch"]

STROKE = 1.7
"""Width of an outline in pixels on a canvas of 32."""


class Batch:
    """Scenes, and what can be made from them; everything is computed when it is first asked for.

    Args:
        attributes, decor: of B scenes. width: of the canvas; its height is the attributes' side.
        say: makes the captions, in the same words for other attributes.
    """

    def __init__(
        self, attributes: Attributes, decor: Decor, width: int, say: Callable[[Attributes], list[str]]
    ) -> None:
        self.attributes, self.decor, self.width, self.say = attributes, decor, width, say

    def __len__(self) -> int:
        return len(self.attributes)

    @property
    def captions(self) -> list[str]:
        """One for each scene."""
        return self._captions

    @cached_property
    def _captions(self) -> list[str]:
        return self.say(self.attributes)

    @cached_property
    def keypoints(self) -> Tensor:
        """(B, K, 13, 2): x and y in pixels of each figure's joints, NaN for all other objects."""
        a = self.attributes
        at = joints(self.decor.pose) * self.decor.radius[..., None, None]
        at = at + torch.stack((a.x, a.y), -1)[:, :, None]
        return at.masked_fill((a.shape != FIGURE)[..., None, None], math.nan)

    @cached_property
    def masks(self) -> Tensor:
        """(B, K, H, W): the share of each pixel in which each object is seen. Outlines do not hide what is in them."""
        return self._seen[0]

    @cached_property
    def images(self) -> Tensor:
        """(B, 3, H, W) in [-1, 1]."""
        seen, rest = self._seen
        image = self._ground * rest[:, None]
        paint = palette()[self.attributes.colour.clamp(min=0)]
        for k in range(seen.shape[1]):
            textured = bool((self.decor.texture[:, k] >= 0).any())
            colour = self._textured(k, paint) if textured else paint[:, k, :, None, None]
            image += seen[:, k, None] * colour
        return image

    @cached_property
    def edges(self) -> Tensor:
        """(B, 1, H, W) in [0, 1]: lines 1.5 pixels wide along the outlines that are not hidden."""
        a = self.attributes
        line = (0.5 - (self._distance.abs() - 0.75)).clamp(0, 1)
        solid = (0.5 - self._distance).clamp(0, 1)
        total = torch.zeros_like(line[:, 0])
        for i in range(line.shape[1]):
            clear = torch.ones_like(total)
            for j in range(line.shape[1]):
                above = (a.depth[:, j] >= 0) & (a.depth[:, j] < a.depth[:, i])
                clear = torch.where(above[:, None, None], clear * (1 - solid[:, j]), clear)
            total = torch.maximum(total, line[:, i] * clear)
        return total[:, None]

    @cached_property
    def depth(self) -> Tensor:
        """(B, 1, H, W) in [0, 1]: 1 for the nearest object, evenly down to 0 for the background."""
        a = self.attributes
        near = 1 - a.depth / a.count[:, None]
        total = torch.zeros_like(self.masks[:, 0])
        for k in range(self.masks.shape[1]):
            total = total + torch.where(a.present[:, k, None, None], self.masks[:, k] * near[:, k, None, None], 0)
        return total[:, None]

    @cached_property
    def _grid(self) -> tuple[Tensor, Tensor]:
        """x (1, 1, W) and y (1, H, 1) of the pixels' centres."""
        return torch.arange(self.width)[None, None] + 0.5, torch.arange(self.attributes.side)[None, :, None] + 0.5

    @cached_property
    def _distance(self) -> Tensor:
        """(B, K, H, W) signed distance in pixels to each object's outline; far away for none."""
        a, (gx, gy) = self.attributes, self._grid
        shape = a.shape.flatten()
        x, y, r = (v.flatten()[:, None, None] for v in (a.x, a.y, self.decor.radius))
        result = torch.full((len(shape), a.side, self.width), 1e6)
        for number in range(FIGURE + 1):
            rows = (shape == number).nonzero()[:, 0]
            if len(rows):
                radius = r[rows]
                u, v = (gx - x[rows]) / radius, (gy - y[rows]) / radius
                if number == FIGURE:
                    unit = limbs(u, v, joints(self.decor.pose.flatten(0, 1)[rows]))
                else:
                    unit = OUTLINES[number](u, v)
                result[rows] = unit * radius
        return result.unflatten(0, a.shape.shape)

    @cached_property
    def _coverage(self) -> Tensor:
        """(B, K, H, W) share of each pixel that each object covers: its inside, its stroke, or dots along it."""
        a, pixel = self.attributes, self.attributes.side / 32
        d = self._distance
        stroke = torch.where(a.fill > 0, STROKE * pixel, 1e6)[:, :, None, None]
        within = (-d).sub_(stroke)
        cover = torch.maximum(d, within, out=within).neg_().add_(0.5).clamp_(0, 1)
        for b, k in (a.fill == 2).nonzero().tolist():
            cover[b, k] = cover[b, k] * self._dots(b, k)
        return cover

    def _dots(self, b: int, k: int) -> Tensor:
        """(H, W): eight dashes around an object, cos(8 angle) > 0, by doubling the cosine three times."""
        a, (gx, gy) = self.attributes, self._grid
        u, v = gx - a.x[b, k], gy - a.y[b, k]
        r = length(u, v).clamp(min=1e-6)
        c = v / r
        for _ in range(3):
            c = 2 * c * c - 1
        return (0.5 + c * r / 4)[0].clamp(0, 1)

    @cached_property
    def _seen(self) -> tuple[Tensor, Tensor]:
        """What is seen of each object (B, K, H, W), and of the background (B, H, W)."""
        cover, depth = self._coverage, self.attributes.depth
        order = torch.where(depth < 0, len(SHAPES), depth).argsort(dim=1)
        rest, seen, rows = torch.ones_like(cover[:, 0]), torch.empty_like(cover), torch.arange(len(depth))
        for k in order.unbind(1):  # what is absent covers nothing
            part = cover[rows, k].mul_(rest)
            seen[rows, k] = part
            rest = rest - part
        return seen, rest

    @cached_property
    def _ground(self) -> Tensor:
        """(B, 3, H, W): the background, a colour mixed with a darker or lighter tone of it by its pattern."""
        a, pixel, (gx, gy) = self.attributes, self.attributes.side / 32, self._grid
        start = self.decor.start[:, None, None].double()  # only what it is beyond whole periods is rounded
        base = palette()[a.background.clamp(min=0)]
        light = base.sum(1, keepdim=True) > -0.6
        tone = torch.where(light, base * 0.72 - 0.28, base * 0.72 + 0.28)
        share = torch.zeros(len(a), a.side, self.width)
        s = math.sqrt(0.5)
        axes = torch.tensor([(1.0, 0.0), (0.0, 1.0), (s, s), (s, -s)])[self.decor.direction]
        for style, name in enumerate(STYLES[1:], 1):
            rows = (a.style == style).nonzero()[:, 0]
            if not len(rows):
                continue
            ax, ay = (axes[rows, i, None, None] for i in (0, 1))
            phase = self.decor.phase[rows]
            if name == "striped":
                period = 6 * pixel
                q = (gx * ax + gy * ay) / period + (start[rows] * ax / period).frac().float() + phase[:, 0, None, None]
                q = (q - q.floor() - 0.5).abs() - 0.25
                share[rows] = (0.5 + q * period).clamp(0, 1)
            elif name == "dotted":
                period = 7 * pixel
                qx, qy = (g / period + phase[:, i, None, None] for i, g in enumerate((gx, gy)))
                qx = qx + (start[rows] / period).frac().float()
                r = length((qx - qx.floor() - 0.5) * period, (qy - qy.floor() - 0.5) * period)
                share[rows] = (0.5 + 1.9 * pixel - r).clamp(0, 1)
            else:
                q = ((gx - self.width / 2) * ax + (gy - a.side / 2) * ay) / a.side
                sign = 1 - 2 * (phase[:, 0, None, None] < 0.5).float()
                share[rows] = (0.6 + 1.2 * q * sign).clamp(0, 1.2)
        return (share[:, None] * (tone - base)[:, :, None, None]).add_(base[:, :, None, None])

    def _textured(self, k: int, paint: Tensor) -> Tensor:
        """(B, 3, H, W): the colour of object k, or its texture."""
        a, d, (gx, gy) = self.attributes, self.decor, self._grid
        colour = paint[:, k, :, None, None].repeat(1, 1, a.side, self.width)
        for b in (d.texture[:, k] >= 0).nonzero()[:, 0].tolist():
            r = d.radius[b, k]
            other, share = texture(int(d.texture[b, k]), (gx - a.x[b, k]) / r, (gy - a.y[b, k]) / r, float(r))
            colour[b] = colour[b] + (palette()[other][:, None, None] - colour[b]) * share
        return colour
