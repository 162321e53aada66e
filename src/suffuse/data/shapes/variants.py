"""Variants of the world: crops of an endless frieze, and textured objects given by four pictures each."""

from __future__ import annotations

import torch
from torch import Tensor

from suffuse.data.shapes.attributes import COLOURS, DIAMETERS, FIGURE, SHAPES, STYLES, Attributes, outlineable
from suffuse.data.shapes.outlines import TEXTURES
from suffuse.data.shapes.render import Batch
from suffuse.data.shapes.scene import Decor, Draw, combinations, first_valid, numbered

__all__ = ["SUBJECTS", "Frieze", "subject"]

_FRIEZE, _SLOT, _CROP = 4, 5, 6
_LIMIT = 2**24
"""Places of one frieze."""


class Frieze:
    """Crops of friezes that go on to the right for 10 million heights; a crop may cut objects. Item i is of frieze i.

    Args:
        seed: 0 to 2^64 - 1. size: height of the crops in pixels, a multiple of 32. width: in pixels, by default `size`.
    Raises:
        ValueError: a size out of range; when asked, an item not in 0 to 2^39 - 1, a crop beyond the end.
    """

    def __init__(self, seed: int = 0, size: int = 32, width: int | None = None) -> None:
        width = size if width is None else width
        if size < 32 or size % 32 or width < 1:
            raise ValueError(f"size must be a multiple of 32 and width positive, got {size} and {width}")
        self.seed, self.size, self.width = seed, size, width

    def __call__(self, first: int, n: int) -> Batch:
        """Items first to first + n - 1."""
        return self[numbered(first, n)]

    def __getitem__(self, index: Tensor) -> Batch:
        return self.crop(index, Draw(self.seed, index, _CROP).below(64 * self.size, 1)[:, 0])

    def crop(self, index: Tensor, start: Tensor) -> Batch:
        """Of friezes `index` (B,) the parts that begin `start` (B,) whole pixels, at least 0, from their left ends."""
        step = 5 * self.size // 8
        end = _LIMIT * step - self.width
        if start.shape != index.shape:
            raise ValueError(f"there must be as many crops as friezes, got {start.numel()} and {index.numel()}")
        if bool((index >= 2**63 // _LIMIT).any()):
            raise ValueError(f"friezes are numbered 0 to 2^39 - 1, got {int(index.max())}")
        if start.is_floating_point() or bool(((start < 0) | (start > end)).any()):
            raise ValueError(f"a crop begins at a whole pixel from 0 to {end}, got {start.dtype} {start.tolist()[:8]}")
        draw = Draw(self.seed, index, _FRIEZE)
        background, style = draw.below(len(COLOURS) - 2, 1)[:, 0] + 2, draw.below(len(STYLES), 1)[:, 0]
        direction = torch.where(style == STYLES.index("gradient"), 1, draw.below(4, 1)[:, 0])  # from top to bottom
        slots = self.width // step + 3
        place = (start // step - 1)[:, None] + torch.arange(slots)
        number = (index[:, None] * _LIMIT + place.clamp(min=0)).flatten()
        each = Draw(self.seed, number, _SLOT)
        pool = combinations(False)
        pool = pool[pool[:, 0] != FIGURE]
        options = pool[each.below(len(pool), 16)]
        pair, _ = first_valid(options, options[..., 1] != background.repeat_interleave(slots)[:, None])
        size = each.below(2, 1)[:, 0]
        radius = torch.tensor(DIAMETERS)[size] * (self.size / 64) * (0.95 + 0.05 * each.unit(1)[:, 0])
        fill = ((each.unit(1)[:, 0] < 0.35) & outlineable(pair[:, 0], size)).long()
        u = each.unit(2)
        # whole pixels first: far from the left end they are exact as integers only
        x = (place * step - start[:, None]) + step / 2 + ((2 * u[:, 0] - 1) * (step / 2 - radius)).view(-1, slots)
        y = radius + u[:, 1] * (self.size - 2 * radius)
        touches = (place >= 0) & (x + radius.view(-1, slots) > 0) & (x - radius.view(-1, slots) < self.width)
        order = (~touches).to(torch.int8).argsort(dim=1, stable=True)  # those seen come first

        def ordered(value: Tensor) -> Tensor:
            value = value.view(-1, slots)
            return torch.where(touches, value, -1).gather(1, order)

        attributes = Attributes(
            count=touches.sum(1),
            shape=ordered(pair[:, 0]),
            colour=ordered(pair[:, 1]),
            size=ordered(size),
            fill=ordered(fill),
            x=ordered(x),
            y=ordered(y),
            background=background,
            style=style,
            depth=torch.where(touches.gather(1, order), torch.arange(slots), -1),
            side=self.size,
        )
        pose = torch.zeros(len(index), slots, 8, dtype=torch.int64)
        nothing = torch.full((len(index), slots), -1)
        decor = Decor(ordered(radius).abs(), pose, direction, draw.unit(2), start.double(), nothing)
        return Batch(attributes, decor, self.width, _ground)


def _ground(scenes: Attributes) -> list[str]:
    pairs = zip(scenes.style.tolist(), scenes.background.tolist(), strict=True)
    return [f"shapes on a {STYLES[style]} {COLOURS[colour]} background" for style, colour in pairs]


SUBJECTS = (
    ("heart", "red", "checks"),
    ("square", "blue", "stripes"),
    ("circle", "green", "spots"),
    ("star", "orange", "halves"),
)
"""Shape, first colour and texture of the objects of `subject`."""


def subject(number: int, size: int = 32) -> Batch:
    """The four pictures there are of a textured object: large, alone, in four places on four backgrounds.

    Args:
        number: 0 to 3, of `SUBJECTS`. size: of the square canvas in pixels, a multiple of 32.
    Raises:
        ValueError: there is no such object, or the size is none of these.
    """
    if size < 32 or size % 32:
        raise ValueError(f"size must be 32 or a multiple of it, got {size}")
    if not 0 <= number < len(SUBJECTS):
        raise ValueError(f"a subject's number must be 0 to {len(SUBJECTS) - 1}, got {number}")
    shape, colour, texture = SUBJECTS[number]

    def slots(*values: float) -> Tensor:
        return torch.tensor([[value, -1] for value in values])

    def every(value: int) -> Tensor:
        return slots(value, value, value, value)

    attributes = Attributes(
        count=torch.ones(4, dtype=torch.int64),
        shape=every(SHAPES.index(shape)),
        colour=every(COLOURS.index(colour)),
        size=every(2),
        fill=every(0),
        x=slots(10, 21, 16, 20) * (size / 32) + 0.0,
        y=slots(11, 20, 15, 11) * (size / 32) + 0.0,
        background=torch.tensor([COLOURS.index(name) for name in ("white", "black", "cyan", "yellow")]),
        style=torch.arange(4),
        depth=every(0),
        side=size,
    )
    decor = Decor(
        radius=torch.full((4, 2), DIAMETERS[2] * size / 64),
        pose=torch.zeros(4, 2, 8, dtype=torch.int64),
        direction=torch.arange(4),
        phase=torch.zeros(4, 2),
        start=torch.zeros(4),
        texture=every(TEXTURES.index(texture)),
    )
    return Batch(attributes, decor, size, lambda scenes: [f"a large {colour} {shape}"] * len(scenes))
