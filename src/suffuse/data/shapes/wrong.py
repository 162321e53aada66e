"""Captions that are wrong in one way: what a model that binds words to things must tell from the true ones."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from suffuse.data.shapes.attributes import RELATIONS
from suffuse.data.shapes.caption import parse
from suffuse.data.shapes.render import Batch
from suffuse.data.shapes.spec import match

__all__ = ["CHANGES", "changed"]

CHANGES = ("colour", "order", "axis")
_TURNED = {
    "to the left of": "above",
    "left of": "above",
    "to the right of": "below",
    "right of": "below",
    "above": "to the left of",
    "below": "to the right of",
    "under": "right of",
}
_WAY = re.compile("|".join(_TURNED))


def changed(batch: Batch, change: str) -> tuple[list[str], Tensor]:
    """The captions of scenes made wrong in one way, and (B,) bool of which of them are.

    Args:
        batch: the scenes. change: "colour" exchanges the first two objects' colours, "order" the objects, so that the
            relation is reversed, "axis" turns left of into above and back.
    Raises:
        ValueError: another change.
    """
    a = batch.attributes
    if change not in CHANGES:
        raise ValueError(f"change must be one of {', '.join(map(repr, CHANGES))}, got {change!r}")
    if change == "axis":
        said = [_WAY.sub(lambda way: _TURNED[way[0]], caption) for caption in batch.captions]
        return said, ~match(parse(said), a).all
    pair = torch.arange(a.shape.shape[1])
    pair[:2] = torch.tensor([1, 0])
    several = (a.count > 1)[:, None]
    free = several & (a.relation != RELATIONS.index("inside"))[:, None]

    def exchanged(value: Tensor, where: Tensor) -> Tensor:
        return torch.where(where, value[:, pair], value)

    other = replace(a, colour=exchanged(a.colour, several))
    if change == "order":  # what is inside stays the smaller one
        other = replace(other, shape=exchanged(a.shape, several), size=exchanged(a.size, free))
        other = replace(other, fill=exchanged(a.fill, free))
    said = batch.say(other)
    return said, ~match(parse(said), a).all
