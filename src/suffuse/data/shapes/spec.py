"""What must hold in a picture, and whether it does."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from suffuse.data.shapes.attributes import Attributes

__all__ = ["MOST", "Match", "Spec", "match"]

MOST = 3
"""Objects that a caption names, at most."""


@dataclass(frozen=True, eq=False)
class Spec:
    """What must hold in B pictures. -1 is not said.

    Attributes:
        count: (B,) objects. shape, colour, size, fill: (B, 3). background, style: (B,).
        relation: (B,) that of object 0 to object 1.
    """

    count: Tensor
    shape: Tensor
    colour: Tensor
    size: Tensor
    fill: Tensor
    background: Tensor
    style: Tensor
    relation: Tensor

    def __len__(self) -> int:
        return len(self.count)

    @staticmethod
    def of(scenes: Attributes) -> Spec:
        """All that is so in scenes of at most three objects: the caption that leaves nothing out.

        Raises:
            ValueError: scenes with room for more.
        """
        if (slots := scenes.shape.shape[1]) > MOST:
            raise ValueError(f"a caption tells of at most {MOST} objects, got {slots} slots for them")

        def padded(value: Tensor) -> Tensor:
            return torch.nn.functional.pad(value, (0, MOST - value.shape[1]), value=-1)

        return Spec(
            count=scenes.count,
            shape=padded(scenes.shape),
            colour=padded(scenes.colour),
            size=padded(scenes.size),
            fill=padded(scenes.fill),
            background=scenes.background,
            style=scenes.style,
            relation=scenes.relation,
        )


@dataclass(frozen=True, eq=False)
class Match:
    """How pictures meet a `Spec`, by attribute: count, shape, colour, size, fill, background, style, relation.

    Attributes:
        right: (B,) bool each: what the caption says of it holds for every object, or it says nothing.
        said: (B,) bool each: it says something.
    """

    right: dict[str, Tensor]
    said: dict[str, Tensor]

    @property
    def all(self) -> Tensor:
        """(B,) bool: everything that the caption says holds."""
        return torch.stack(list(self.right.values())).all(0)


def match(spec: Spec, seen: Attributes) -> Match:
    """Compare captions with what pictures show.

    Which object of the picture is which of the caption is the assignment under which most of what is said holds.

    Args:
        spec: of B captions, from `parse`. seen: of B pictures: a scene's own attributes, or what a judge read.
    Raises:
        ValueError: there are not as many captions as pictures.
    """
    if len(spec) != len(seen):
        raise ValueError(f"{len(spec)} captions cannot be matched with {len(seen)} pictures")
    slots = max(MOST, seen.shape.shape[1])
    ways = torch.tensor(list(itertools.permutations(range(slots), MOST)), device=seen.count.device)

    def padded(value: Tensor) -> Tensor:
        return torch.nn.functional.pad(value, (0, slots - value.shape[1]), value=-1)

    said, hits = {}, {}
    for name in ("shape", "colour", "size", "fill"):
        wanted = getattr(spec, name)
        said[name] = wanted >= 0
        hits[name] = (padded(getattr(seen, name))[:, ways] == wanted[:, None]) | ~said[name][:, None]
    k = seen.shape.shape[1]
    relations = torch.full((len(seen), slots, slots), -1, dtype=torch.int64, device=ways.device)
    relations[:, :k, :k] = seen.relations
    related = (relations[:, ways[:, 0], ways[:, 1]] == spec.relation[:, None]) | (spec.relation < 0)[:, None]
    score = torch.stack([hit.sum(-1) for hit in hits.values()]).sum(0) + related
    best = score.argmax(1)
    rows = torch.arange(len(best), device=best.device)
    right = {name: hit[rows, best].all(-1) for name, hit in hits.items()}
    right = {"count": (seen.count == spec.count) | (spec.count < 0)} | right | {"relation": related[rows, best]}
    right["background"] = (seen.background == spec.background) | (spec.background < 0)
    right["style"] = (seen.style == spec.style) | (spec.style < 0)
    told = {name: value.any(-1) for name, value in said.items()}
    told |= {"count": spec.count >= 0} | {n: getattr(spec, n) >= 0 for n in ("relation", "background", "style")}
    return Match(right, {name: told[name] for name in right})
