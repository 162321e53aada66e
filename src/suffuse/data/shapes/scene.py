"""Scenes drawn at random: which objects, where, on what. Item i is a function of (seed, i) alone.

Nothing is rejected and drawn again: each choice is made among what the earlier ones leave, for all items at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from suffuse.data.shapes.attributes import COLOURS, DIAMETERS, FIGURE, SHAPES, Attributes, held_out, outlineable
from suffuse.random import philox

__all__ = ["Decor", "Draw", "combinations", "first_valid", "numbered", "scene"]

_LOW = 0xFFFFFFFF
_TRIES = 16


def numbered(first: int, n: int) -> Tensor:
    """(n,) numbers of items: first to first + n - 1.

    Raises:
        ValueError: n is negative.
    """
    if n < 0:
        raise ValueError(f"n must be at least 0, got {n}")
    return torch.arange(first, first + n)


class Draw:
    """Random numbers for items of a seed, one after the other.

    Args:
        seed: 0 to 2^64 - 1. items: (B,) int64, the items' numbers. stream: another stream is independent.
    Raises:
        ValueError: the seed or an item is out of range.
    """

    def __init__(self, seed: int, items: Tensor, stream: int) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise ValueError(f"seed must be an integer in 0..2^64 - 1, got {seed!r}")
        if items.ndim != 1 or items.dtype != torch.int64 or bool((items < 0).any()):
            raise ValueError(f"items must be numbers from 0, int64 of shape (B,), got {items.dtype} {items}")
        self._key, self._items, self._stream = (seed & _LOW, seed >> 32), items[:, None], stream
        self._words, self._used = items.new_empty(len(items), 0), 0

    def words(self, n: int) -> Tensor:
        """(B, n) words of 32 bits."""
        while self._words.shape[1] - self._used < n:
            start = self._words.shape[1] // 4
            block = torch.arange(start, start + 16, device=self._items.device)[None]
            new = philox((self._items & _LOW, self._items >> 32, block, self._stream), self._key)
            new = torch.stack(torch.broadcast_tensors(*new), -1).flatten(1)
            self._words = torch.cat([self._words, new], 1)
        self._used += n
        return self._words[:, self._used - n : self._used]

    def below(self, n: int, k: int) -> Tensor:
        """(B, k) integers in 0..n-1."""
        return self.words(k) * n >> 32

    def unit(self, k: int) -> Tensor:
        """(B, k) float32 in [0, 1)."""
        return (self.words(k) >> 8).float() * 2.0**-24

    def chosen(self, weights: tuple[float, ...]) -> Tensor:
        """(B,) indices with these probabilities."""
        u, total = self.unit(1)[:, 0], 0.0
        index = torch.zeros_like(self._items[:, 0])
        for weight in weights[:-1]:
            total += weight
            index = index + (u >= total)
        return index


@dataclass(frozen=True, eq=False)
class Decor:
    """What a scene shows that its attributes do not say.

    Attributes:
        radius: (B, K) half the drawn diameter in pixels. pose: (B, K, 8) indices into the table of angles.
        direction: (B,) of stripes or gradient, 0 to 3. phase: (B, 2) of the pattern, in periods.
        start: (B,) where the pattern is cut, in pixels from the left. texture: (B, K) index, -1 for none.
    """

    radius: Tensor
    pose: Tensor
    direction: Tensor
    phase: Tensor
    start: Tensor
    texture: Tensor


def combinations(held: bool | None) -> Tensor:
    """(N, 2) combinations of shape and colour: all, those held out, or the others."""
    grid = torch.cartesian_prod(torch.arange(len(SHAPES)), torch.arange(len(COLOURS)))
    return grid if held is None else grid[held_out(grid[:, 0], grid[:, 1]) == held]


def first_valid(candidates: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Of (B, T, 2) candidates the first valid one (B, 2), and whether there was one."""
    at = valid.to(torch.int8).argmax(1)
    return candidates[torch.arange(len(at)), at], valid.any(1)


def scene(
    draw: Draw, side: int, counts: tuple[float, ...], unseen: bool, dotted: bool, identical: float
) -> tuple[Attributes, Decor]:
    """Draw scenes.

    Args:
        draw: random numbers of B items. side: of the canvas in pixels. counts: probabilities of 1 to K objects.
        unseen: every scene has at least one held-out combination; else it has none. dotted: all that can have an
            outline have a dotted one. identical: share of scenes of several objects in which the first two are alike.
    """
    slots = max(len(counts), 2)
    count = draw.chosen(counts) + 1
    kind = draw.chosen((0.36, 0.36, 0.28))
    alike = (draw.unit(1)[:, 0] < identical) & (count > 1)
    kind = torch.where(alike & (kind == 2), 0, kind)
    pair, kind = _combine(draw, slots, count, kind, alike, unseen)
    present = torch.arange(slots) < count[:, None]
    size = _sizes(draw, pair[..., 0], count, kind, alike, (pair[:, :2, 1].diff(dim=1) == 0)[:, 0])
    radius = torch.tensor(DIAMETERS)[size] * (side / 64) * (0.95 + 0.05 * draw.unit(slots))
    fill = (draw.unit(slots) < 0.35).long()
    fill[:, 1] = torch.where(alike, fill[:, 0], fill[:, 1])
    fill = torch.where(outlineable(pair[..., 0], size), 2 if dotted else fill, 0)
    x, y = _places(draw, side, radius, count, kind, (pair[:, :2, 1].diff(dim=1) == 0)[:, 0])
    depth = draw.words(slots).masked_fill(~present, _LOW + 1).argsort(dim=1, stable=True).argsort(dim=1)
    swap = (kind == 2) & (count > 1) & (depth[:, 0] > depth[:, 1])  # what is inside lies on top
    depth[:, :2] = torch.where(swap[:, None], depth[:, :2].flip(1), depth[:, :2])
    start = draw.below(len(COLOURS) - 2, 1)
    turn = (start + torch.arange(slots + 1)) % (len(COLOURS) - 2) + 2
    used = torch.where(present, pair[..., 1], -1)
    free = (turn[:, :, None] != used[:, None, :]).all(-1)
    background = turn.gather(1, free.to(torch.int8).argmax(1, keepdim=True))[:, 0]

    def keep(value: Tensor) -> Tensor:
        return torch.where(present, value, -1)

    attributes = Attributes(
        count=count,
        shape=keep(pair[..., 0]),
        colour=keep(pair[..., 1]),
        size=keep(size),
        fill=keep(fill),
        x=keep(x),
        y=keep(y),
        background=background,
        style=draw.below(4, 1)[:, 0],
        depth=keep(depth),
        side=side,
    )
    pose = draw.words(slots * 8).reshape(-1, slots, 8)
    decor = Decor(
        radius, pose, draw.below(4, 1)[:, 0], draw.unit(2), torch.zeros(len(count)), torch.full_like(size, -1)
    )
    return attributes, decor


def _combine(draw: Draw, slots: int, count: Tensor, kind: Tensor, alike: Tensor, unseen: bool) -> tuple[Tensor, Tensor]:
    """Shape and colour of every object (B, K, 2), all different but for those alike, and the relation they allow.

    What is inside lies in a circle or square of another colour, with no figure. A scene has one figure at most.
    """
    others = combinations(None if unseen else False)
    special = combinations(True) if unseen else others

    def candidates(pool: Tensor) -> Tensor:
        return pool[draw.below(len(pool), _TRIES)]

    where = draw.below(2, 1)[:, 0] if unseen else torch.zeros_like(count)
    where = torch.where((count > 1) & ~alike, where, 0)
    shared, held = candidates(others), candidates(special)
    options = torch.where((where == 0)[:, None, None], held, shared)
    one, _ = first_valid(options, ~(((kind == 2) & (count > 1) | alike)[:, None] & (options[..., 0] == FIGURE)))
    chosen = [one]
    shared, held = candidates(others), candidates(special)
    options = torch.where((where == 1)[:, None, None], held, shared)
    for k in range(1, slots):
        if k > 1:
            options = candidates(others)
        valid = torch.ones_like(options[..., 0], dtype=torch.bool)
        for before in chosen:
            valid &= (options != before[:, None]).any(-1)
            valid &= ~((options[..., 0] == FIGURE) & (before[:, None, 0] == FIGURE))
        if k == 1:
            hosts = (options[..., 0] <= 1) & (options[..., 1] != one[:, None, 1])
            new, found = first_valid(options, valid & (hosts | (kind != 2)[:, None]))
            plain, _ = first_valid(options, valid)
            new = torch.where(found[:, None], new, plain)
            kind = torch.where(found | (kind != 2), kind, 0)
            new = torch.where(alike[:, None], one, new)
        else:
            new, _ = first_valid(options, valid & ~((kind == 2)[:, None] & (options[..., 0] == FIGURE)))
        chosen.append(new)
    return torch.stack(chosen, 1), kind


def _sizes(draw: Draw, shape: Tensor, count: Tensor, kind: Tensor, alike: Tensor, same: Tensor) -> Tensor:
    """(B, K) sizes that fit: figures are large, one object at most is, and one of the same colour beside it small."""
    slots = shape.shape[1]
    free, less = draw.below(3, slots), draw.below(2, slots)
    figure = (shape == FIGURE) & (torch.arange(slots) < count[:, None])
    size = torch.where(figure.any(1, keepdim=True) | (count > 2)[:, None], less, free)
    size[:, 1] = torch.where(size[:, 0] == 2, less[:, 1], size[:, 1])
    size = torch.where(figure, 2, size)
    several = count > 1
    size[:, 1] = torch.where(several & alike, less[:, 0], size[:, 1])
    size[:, 0] = torch.where(several & alike, less[:, 0], size[:, 0])
    inside = several & (kind == 2)
    size[:, 0] = torch.where(inside, 0, size[:, 0])
    size[:, 1] = torch.where(inside, 2, size[:, 1])
    crowded = (several & same & ~alike | (count > 2)) & (size[:, :slots] == 2).any(1)
    return torch.where(crowded[:, None] & (size < 2), 0, size)


def _places(draw: Draw, side: int, radius: Tensor, count: Tensor, kind: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (B, K) in pixels: u along the axis of the relation, v across it.

    The first two lie in one band across, a third in the other; centres differ along the axis by 3 pixels (of 32) more
    than across it, where neighbours overlap by at most 8 % of r_0 + r_1, and those of one colour not at all.
    """
    pixel = side / 32
    r0, r1 = radius[:, 0], radius[:, 1]
    inside, single = (kind == 2) & (count > 1), count == 1
    u = draw.unit(8)
    both = torch.maximum(r0, torch.where(single, r0, r1))
    third = torch.zeros_like(r0)
    if radius.shape[1] > 2:
        room = side - 2 * pixel - 2 * both - 2 * radius[:, 2]
        third = torch.where(count > 2, 2 * radius[:, 2] + pixel + u[:, 0] * room, third)
    low, high = 0.5 * pixel, side - 0.5 * pixel
    top = high - third  # where the first two's band ends

    def within(at: Tensor, start: Tensor | float, end: Tensor | float) -> Tensor:
        return start + at * (end - start)

    least = torch.where(same, r0 + r1 + 1.5 * pixel, 0.92 * (r0 + r1))
    far = torch.maximum(high - low - r0 - r1, least)
    apart = within(u[:, 1], least, far)
    lone, host = single | inside, torch.where(inside, r1, r0)
    u0 = torch.where(lone, within(u[:, 2], low + host, high - host), low + r0 + u[:, 2] * (far - apart))
    u1 = u0 + apart
    v0 = torch.where(lone, within(u[:, 3], low + host, top - host), within(u[:, 3], low + r0, top - r0))
    reach = apart - 3 * pixel
    v1 = within(u[:, 4], torch.maximum(low + r1, v0 - reach), torch.minimum(top - r1, v0 + reach))
    shift = (u[:, 5:7] - 0.5) * pixel
    u1, v1 = torch.where(inside, u0, u1), torch.where(inside, v0, v1)
    u0, v0 = torch.where(inside, u0 + shift[:, 0], u0), torch.where(inside, v0 + shift[:, 1], v0)
    along, across = [u0, u1], [v0, v1]
    if radius.shape[1] > 2:
        r2 = radius[:, 2]
        along.append(within(u[:, 7], low + r2, high - r2))
        across.append(high - within(draw.unit(1)[:, 0], r2, third - r2 - pixel))
    flip = draw.below(2, 1) == 0  # the third object's band on either side
    a, c = torch.stack(along, 1), torch.stack(across, 1)
    c = torch.where(flip, side - c, c)
    vertical = ((kind == 1) | inside & (draw.below(2, 1)[:, 0] == 0))[:, None]
    return torch.where(vertical, c, a), torch.where(vertical, a, c)
