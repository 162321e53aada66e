"""What personal models are judged by: is the subject there, are the other words obeyed, is its class still various.

Whether a subject is there is read without a network: at the place where it fits best, a picture is compared with
drawings of the subject, of other shapes and colours with its texture, and of other textures on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from suffuse import metrics
from suffuse.data.shapes import BACKGROUNDS, COLOURS, SHAPES, STYLES, SUBJECTS, Attributes, palette
from suffuse.data.shapes.attributes import DIAMETERS
from suffuse.data.shapes.outlines import TEXTURES
from suffuse.data.shapes.render import Batch
from suffuse.data.shapes.scene import Decor

SIDE, LARGE, SMALL = 32, DIAMETERS[2] / 2, DIAMETERS[0] / 2
OUTLINED = ("circle", "square", "triangle", "star", "cross", "heart")
CLOSE = 0.25
"""Mean absolute difference of pixels well inside the subject, at most."""
AS_NEAR = 1.1
"""A codec mixes the two colours of fine checks: red and yellow ones come back as near to orange and yellow."""


@dataclass(frozen=True)
class Context:
    """A prompt with room for the subject, and what it says besides.

    Attributes:
        text: with {} for the subject. other: shape and colour of a small object, or None.
        relation: of the subject to it, "above", "below" or "left of". background, style: or None where not said.
    """

    text: str
    other: tuple[str, str] | None = None
    relation: str = ""
    background: str | None = None
    style: str | None = None


CONTEXTS = (
    Context("a {} on a striped green background", background="green", style="striped"),
    Context("a {} above a small blue ring", ("ring", "blue"), "above"),
    Context("a {} to the left of a small pink cross on a purple background", ("cross", "pink"), "left of", "purple"),
    Context("a {} on a gradient pink background", background="pink", style="gradient"),
    Context("a {} below a small white star on a blue background", ("star", "white"), "below", "blue"),
)


def drawn(
    shape: str,
    colour: str,
    texture: str | None,
    place: Tensor,
    *,
    other: tuple[str, str] | None = None,
    beside: Tensor | None = None,
    background: Tensor | None = None,
    style: str = "plain",
) -> Batch:
    """Scenes (N) of one large object centred at place (N, 2), and another small one beside it.

    Args:
        texture: of `TEXTURES`, or None. other: shape and colour of the small one, at beside (N, 2).
        background: (N,) colours' indices, by default black.
    """
    n, two = len(place), other is not None
    other = other or ("circle", "red")

    def pair(first: float, second: float) -> Tensor:
        return torch.tensor([first, second if two else -1]).expand(n, 2)

    at = torch.full_like(place, -1.0) if beside is None else beside
    attributes = Attributes(
        count=torch.full((n,), 1 + two),
        shape=pair(SHAPES.index(shape), SHAPES.index(other[0])),
        colour=pair(COLOURS.index(colour), COLOURS.index(other[1])),
        size=pair(2, 0),
        fill=pair(0, 0),
        x=torch.stack([place[:, 0], at[:, 0]], 1),
        y=torch.stack([place[:, 1], at[:, 1]], 1),
        background=torch.full((n,), COLOURS.index("black")) if background is None else background,
        style=torch.full((n,), STYLES.index(style)),
        depth=pair(0, 1),
        side=SIDE,
    )
    decor = Decor(
        radius=torch.tensor([LARGE, SMALL]).expand(n, 2),
        pose=torch.zeros(n, 2, 8, dtype=torch.int64),
        direction=torch.arange(n) % 4,
        phase=torch.zeros(n, 2),
        start=torch.zeros(n),
        texture=torch.tensor([-1 if texture is None else TEXTURES.index(texture), -1]).expand(n, 2),
    )
    return Batch(attributes, decor, SIDE, lambda scenes: [""] * len(scenes))


def recognised(number: int, images: Tensor) -> tuple[Tensor, Tensor]:
    """Which pictures (N, 3, 32, 32) show the subject, (N,), and where it would be, (N, 2).

    Well inside it they differ from its drawing by less than `CLOSE`; and with its surroundings they are as near to it
    as to any other outline or colour with its texture, to it with another texture, and to its outline in one colour,
    up to `AS_NEAR`.
    """
    shape, colour, texture = SUBJECTS[number]
    line = torch.arange(LARGE - 1, SIDE - LARGE + 1.01, 0.5)
    places = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).flatten(0, 1)
    own = drawn(shape, colour, texture, places)
    inside = (own.masks[:, 0] > 0.95).float()
    gaps = torch.stack(
        [
            ((images - one).abs().mean(1) * mask).flatten(1).sum(1) / mask.sum()
            for one, mask in zip(own.images, inside, strict=True)
        ],
        1,
    )
    best, at = gaps.min(1)
    place = places[at]

    def off(shape: str, colour: str, texture: str | None) -> Tensor:
        """Mean absolute difference within and around, on the one colour that suits the surroundings best."""
        scene = drawn(shape, colour, texture, place)
        cover = scene.masks[:, :1]
        pixel = torch.arange(SIDE) + 0.5
        far = (pixel - place[:, :1])[:, None] ** 2 + (pixel - place[:, 1:])[:, :, None] ** 2
        near = (far <= (LARGE + 2.5) ** 2).float()[:, None]
        around = near * (cover < 0.05)
        ground = (images * around).sum((2, 3), keepdim=True) / around.sum((2, 3), keepdim=True).clamp(min=1)
        black = palette()[COLOURS.index("black")].view(1, 3, 1, 1)
        template = scene.images + (1 - cover) * (ground - black)
        return ((images - template).abs().mean(1, keepdim=True) * near).sum((1, 2, 3)) / near.sum((1, 2, 3))

    rivals = [(s, c, texture) for s in OUTLINED for c in COLOURS if (s, c) != (shape, colour)]
    rivals += [(shape, c, None) for c in COLOURS] + [(shape, colour, t) for t in TEXTURES if t != texture]
    nearest = torch.stack([off(*rival) for rival in rivals]).amin(0)
    return (best < CLOSE) & (off(shape, colour, texture) < AS_NEAR * nearest), place


def obeyed(contexts: Sequence[Context], images: Tensor, place: Tensor, judge: Any) -> Tensor:
    """(N,) bool: whether all but the subject is as the context says, given where the subject is, (N, 2)."""
    read = judge.read(images)
    right = torch.ones(len(images), dtype=torch.bool)
    for i, context in enumerate(contexts):
        if context.background is not None:
            right[i] &= bool(read.background[i] == COLOURS.index(context.background))
        if context.style is not None:
            right[i] &= bool(read.style[i] == STYLES.index(context.style))
        if context.other is None:
            continue
        shape, colour = SHAPES.index(context.other[0]), COLOURS.index(context.other[1])
        is_it = read.present[i] & (read.shape[i] == shape) & (read.colour[i] == colour) & (read.size[i] == 0)
        dx, dy = read.x[i] - place[i, 0], read.y[i] - place[i, 1]
        across = dx.abs() >= dy.abs()
        there = {"left of": across & (dx > 0), "above": ~across & (dy > 0), "below": ~across & (dy < 0)}
        right[i] &= bool((is_it & there[context.relation]).any())
    return right


def ideal(number: int, contexts: Sequence[Context], seed: int = 0) -> Tensor:
    """The subject drawn in these contexts, (N, 3, 32, 32): what a perfect model would make."""
    shape, colour, texture = SUBJECTS[number]
    chance = torch.Generator().manual_seed(seed)
    made = []
    for context in contexts:
        u = torch.rand(4, generator=chance)
        free = [c for c in BACKGROUNDS if c != colour and (context.other is None or c != context.other[1])]
        ground = context.background or free[int(torch.randint(len(free), (1,), generator=chance))]
        if context.other is None:
            place, beside = torch.stack([10 + 12 * u[0], 10 + 12 * u[1]]), None
        else:
            aside, far = 11 + 10 * u[:2], torch.tensor([LARGE + 0.5, SIDE - SMALL - 0.5])
            first, second = SIDE - far if context.relation == "below" else far
            flat = context.relation == "left of"
            place = torch.stack([first, aside[0]] if flat else [aside[0], first])
            beside = torch.stack([second, aside[1]] if flat else [aside[1], second])
        made.append(
            drawn(
                shape,
                colour,
                texture,
                place[None],
                other=context.other,
                beside=None if beside is None else beside[None],
                background=torch.tensor([COLOURS.index(ground)]),
                style=context.style or "plain",
            ).images
        )
    return torch.cat(made)


def variety(noun: str, images: Tensor, judge: Any) -> tuple[metrics.Measured, metrics.Measured]:
    """How various pictures of "a NOUN" are, and the share of them that show one.

    The first: of colour, size and filling of the first such object of two pictures, the share that differ.
    """
    read = judge.read(images)
    is_class = read.present & (read.shape == SHAPES.index(noun))
    shown, first = is_class.any(1), is_class.to(torch.int8).argmax(1)
    rows = shown.nonzero()[:, 0]
    if len(rows) < 2:  # no two to differ
        rows = rows[:0]
    each = torch.zeros(len(rows) or len(images))
    for values in (read.colour, read.size, read.fill):
        v = values[rows, first[rows]]
        each += (v[:, None] != v).sum(1) / (len(rows) - 1) / 3 if len(rows) else 0
    how = "share of colour, size and filling in which two pictures of the class differ"
    share = metrics.proportion(int(shown.sum()), len(images), f"share of pictures of 'a {noun}' that show one")
    return metrics.mean(each, how), share
