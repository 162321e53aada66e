"""Shapes: a world of captioned scenes in which everything is known, made as fast as it is asked for.

scenes = sf.data.shapes.Scenes(seed=0)
batch = scenes(0, 64)                       # items 0 to 63, or scenes[torch.tensor([5, 3])]
batch.images, batch.captions, batch.attributes, batch.masks, batch.edges, batch.keypoints, batch.depth

Kept from training, unless asked for: combinations whose shape and colour indices add to a multiple of 6
(`held_out=True`), and dotted outlines (`dotted=True`). Variants: `Frieze`, and `subject`, four pictures of one thing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from suffuse.data.shapes.attributes import (
    BACKGROUNDS,
    COLOURS,
    FILLS,
    RELATIONS,
    SHAPES,
    SIZES,
    STYLES,
    Attributes,
    held_out,
    palette,
)
from suffuse.data.shapes.caption import VOCABULARY, describe, parse, words
from suffuse.data.shapes.outlines import JOINTS
from suffuse.data.shapes.render import Batch
from suffuse.data.shapes.scene import Draw, numbered, scene
from suffuse.data.shapes.spec import Match, Spec, match
from suffuse.data.shapes.variants import SUBJECTS, Frieze, subject
from suffuse.data.shapes.wrong import CHANGES, changed

__all__ = [
    "BACKGROUNDS",
    "CHANGES",
    "COLOURS",
    "FILLS",
    "JOINTS",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "STYLES",
    "SUBJECTS",
    "VOCABULARY",
    "Attributes",
    "Batch",
    "Frieze",
    "Match",
    "Scenes",
    "Spec",
    "captions",
    "changed",
    "describe",
    "held_out",
    "match",
    "palette",
    "parse",
    "subject",
    "words",
]

_SCENE, _CAPTION = 1, 2


class Scenes:
    """An endless set of captioned scenes; item i is the same bits in any batch.

    Args:
        seed: 0 to 2^64 - 1.
        size: of the square canvas in pixels, a multiple of 32.
        counts: probabilities of 1, 2 (and 3) objects; by default 0.3 and 0.7 at 32, and 0.2, 0.5, 0.3 above.
        held_out: every scene has at least one of the combinations kept from training; else it has none.
        dotted: outlines are dotted, a style kept from training.
        identical: share of the scenes of several objects in which two are alike, for counting.
        full: captions always say every shape and colour, and the relation.
    Raises:
        ValueError: seed, size, counts or identical out of range; when asked, items out of range.
    """

    def __init__(
        self,
        seed: int = 0,
        size: int = 32,
        *,
        counts: tuple[float, ...] | None = None,
        held_out: bool = False,
        dotted: bool = False,
        identical: float = 0.12,
        full: bool = False,
    ) -> None:
        if size < 32 or size % 32:
            raise ValueError(f"size must be 32 or a multiple of it, got {size}")
        if counts is None:
            counts = (0.3, 0.7) if size == 32 else (0.2, 0.5, 0.3)
        if not 1 <= len(counts) <= 3 or min(counts) < 0 or not abs(sum(counts) - 1) <= 1e-6:
            raise ValueError(f"counts must be one to three probabilities that add to 1, got {counts}")
        if not 0 <= identical <= 1:
            raise ValueError(f"identical must be a share from 0 to 1, got {identical}")
        Draw(seed, torch.arange(0), _SCENE)  # names a seed that is none
        self.seed, self.size, self.counts, self.identical = seed, size, counts, identical
        self.held_out, self.dotted, self.full = held_out, dotted, full

    def __call__(self, first: int, n: int) -> Batch:
        """Items first to first + n - 1."""
        return self[numbered(first, n)]

    def __getitem__(self, index: Tensor) -> Batch:
        draw = Draw(self.seed, index, _SCENE)
        attributes, decor = scene(draw, self.size, self.counts, self.held_out, self.dotted, self.identical)

        def say(attributes: Attributes) -> list[str]:
            pairs = Draw(self.seed, index, _CAPTION).words(2).tolist()
            return describe(attributes, [a << 30 | b >> 2 for a, b in pairs], full=self.full)

        return Batch(attributes, decor, self.size, say)


def captions(
    n: int, seed: int, *, held_out: bool = False, objects: int = 2, size: int = 32, first: int = 0
) -> list[str]:
    """Captions to judge by: of scenes of different objects, naming every shape and colour, and the relation.

    Args:
        n: how many. seed: of the scenes that they describe. objects: 1 to 3.
        held_out: every caption names at least one combination kept from training; else none does.
        size, first: as for `Scenes`.
    Raises:
        ValueError: objects is not 1, 2 or 3; n is negative.
    """
    if objects not in (1, 2, 3):
        raise ValueError(f"objects must be 1, 2 or 3, got {objects}")
    counts = tuple(float(k == objects) for k in (1, 2, 3)[:objects])
    return Scenes(seed, size, counts=counts, held_out=held_out, identical=0.0, full=True)(first, n).captions
