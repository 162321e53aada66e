"""Signed distances to the outlines of the shapes, negative inside; and the textures of a few objects.

Each takes u, v: coordinates of pixels relative to an object's centre, in units of its radius, v downwards, broadcast
to (N, H, W). Between -1 and 1 lies the shape. Only sums, products, quotients and roots occur, which every device and
every vector width rounds alike: a pixel has the same bits in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["JOINTS", "OUTLINES", "TEXTURES", "joints", "length", "limbs", "texture"]


def length(u: Tensor, v: Tensor) -> Tensor:
    """sqrt(u^2 + v^2)."""
    return (u * u + v * v).sqrt()


def circle(u: Tensor, v: Tensor) -> Tensor:
    """Radius 1."""
    return length(u, v) - 1


def square(u: Tensor, v: Tensor) -> Tensor:
    """Half side 0.95."""
    return torch.maximum(u.abs(), v.abs()) - 0.95


def triangle(u: Tensor, v: Tensor) -> Tensor:
    """Corners (0, -1), (1, 0.8) and (-1, 0.8)."""
    slope = 1.8
    side = (slope * u.abs() - (v + 1)) * (1 / math.hypot(slope, 1))
    return torch.maximum(side, v - 0.8)


def star(u: Tensor, v: Tensor, inner: float = 0.46) -> Tensor:
    """Five tips at radius 1, the first on top, and five notches at `inner`: mirrors fold all edges onto one."""
    s, c = math.sin(math.pi / 5), math.cos(math.pi / 5)
    u, v = _mirror(u.abs(), v, math.radians(72))
    u, v = _mirror(u.abs(), v, math.radians(36))
    edge = math.hypot(inner * s, 1 - inner * c)  # from the tip (0, -1) to the notch inner (s, -c)
    return u * ((1 - inner * c) / edge) - (v + 1) * (inner * s / edge)


def _mirror(u: Tensor, v: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """Reflect what lies beyond an axis at this angle, clockwise from the top, onto its near side."""
    a, b = math.cos(angle), math.sin(angle)
    beyond = (u * a + v * b).clamp(min=0)
    return u - beyond * (2 * a), v - beyond * (2 * b)


def ring(u: Tensor, v: Tensor) -> Tensor:
    """Between the radii 0.45 and 1."""
    return (length(u, v) - 0.725).abs() - 0.275


def cross(u: Tensor, v: Tensor) -> Tensor:
    """Two bars, 2 by 0.7."""
    a, b = u.abs(), v.abs()
    return torch.maximum(torch.maximum(a, b) - 1, torch.minimum(a, b) - 0.35)


def heart(u: Tensor, v: Tensor) -> Tensor:
    """A square on its corner, and a disc on each of its upper sides: 2 wide, from -0.9 to 0.93."""
    side = 2 / (1 + math.sqrt(0.5))
    u, v = u.abs(), v - 0.1
    disc = length(u - side / math.sqrt(8), v + side / math.sqrt(8)) - side / 2
    return torch.minimum((u + v.abs()) * math.sqrt(0.5) - side / 2, disc)


OUTLINES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (circle, square, triangle, star, ring, cross, heart)
"""In the order of `SHAPES`, which the figure ends."""

JOINTS = (
    "head",
    "left shoulder",
    "right shoulder",
    "left elbow",
    "right elbow",
    "left wrist",
    "right wrist",
    "left hip",
    "right hip",
    "left knee",
    "right knee",
    "left ankle",
    "right ankle",
)
ANGLES = 64
_BONES = ((1, 2), (1, 3), (3, 5), (2, 4), (4, 6), (7, 8), (7, 9), (9, 11), (8, 10), (10, 12))
_HEAD, _LIMB = 0.2, 0.09


def joints(pose: Tensor) -> Tensor:
    """Where a figure's 13 joints are.

    Args:
        pose: (..., 8) words: of each arm the upper and lower angle, then of each leg.
    Returns:
        (..., 13, 2), u and v in units of the radius, in the order of `JOINTS`.
    """
    turns = torch.arange(ANGLES, dtype=torch.float64) * (2 * math.pi / ANGLES)
    table = torch.stack((turns.sin(), turns.cos()), -1).float().to(pose.device)  # 0 is down, a quarter is outwards
    upper, lower = (-2, 25), (0, 13)  # in 64ths of a turn: the arm from -11 to 130 degrees, the forearm bends up
    thigh, shin = (1, 7), (-4, 1)
    u = torch.empty((*pose.shape[:-1], 13), device=pose.device)
    v = torch.empty_like(u)
    u[..., 0], v[..., 0] = 0.0, -0.7
    for limb, (root, first, second, at, reach) in enumerate(
        ((1, upper, lower, (0.24, -0.36), (0.28, 0.26)), (7, thigh, shin, (0.14, 0.16), (0.38, 0.35)))
    ):
        for right in (0, 1):
            sign = 1 - 2 * right
            words = pose[..., 4 * limb + 2 * right : 4 * limb + 2 * right + 2]
            a = first[0] + (words[..., 0] * (first[1] - first[0]) >> 32)
            b = a + second[0] + (words[..., 1] * (second[1] - second[0]) >> 32)
            x, y, k = torch.full_like(u[..., 0], at[0]), torch.full_like(u[..., 0], at[1]), root + right
            u[..., k], v[..., k] = x * sign, y
            for angle, part in ((a, reach[0]), (b, reach[1])):
                step = table[angle % ANGLES]
                x, y, k = x + step[..., 0] * part, y + step[..., 1] * part, k + 2
                u[..., k], v[..., k] = x * sign, y
    return torch.stack((u, v), -1)


def limbs(u: Tensor, v: Tensor, at: Tensor) -> Tensor:
    """Distance to a stick figure with joints `at` (N, 13, 2): a disc for the head, and bones."""

    def point(k: int) -> tuple[Tensor, Tensor]:
        return at[:, k, 0, None, None], at[:, k, 1, None, None]

    neck = ((at[:, 1] + at[:, 2]) / 2, (at[:, 7] + at[:, 8]) / 2)
    bones = [(point(a), point(b)) for a, b in _BONES]
    bones.append(tuple((p[:, 0, None, None], p[:, 1, None, None]) for p in neck))  # type: ignore[arg-type]
    nearest = None
    for (ax, ay), (bx, by) in bones:
        ex, ey = bx - ax, by - ay
        px, py = u - ax, v - ay
        share = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        px, py = px - share * ex, py - share * ey
        squared = px * px + py * py
        nearest = squared if nearest is None else torch.minimum(nearest, squared)
    assert nearest is not None
    hx, hy = point(0)
    return torch.minimum(nearest.sqrt() - _LIMB, length(u - hx, v - hy) - _HEAD)


TEXTURES = ("checks", "stripes", "spots", "halves")
_SECOND = (2, 8, 7, 6)  # yellow, white, pink and purple, as indices of colours


def texture(number: int, u: Tensor, v: Tensor, radius: float) -> tuple[int, Tensor]:
    """The second colour of one of `TEXTURES`, and its share of each pixel.

    Args:
        number: of the texture. u, v: in units of the radius. radius: in pixels.
    """
    if TEXTURES[number] == "checks":
        a, b = ((g * 1.5 - (g * 1.5).floor() - 0.5).abs() - 0.25 for g in (u, v))
        signed = a.sign() * b.sign() * torch.minimum(a.abs(), b.abs()) / 1.5
    elif TEXTURES[number] == "stripes":
        g = (u + v) * 1.2
        signed = ((g - g.floor() - 0.5).abs() - 0.25) / 1.7
    elif TEXTURES[number] == "spots":
        a, b = ((g * 1.6 - (g * 1.6).floor() - 0.5) / 1.6 for g in (u, v))
        signed = 0.18 - length(a, b)
    else:
        signed = u + 0 * v
    return _SECOND[number], (0.5 + signed * radius).clamp(0, 1)
