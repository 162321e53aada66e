"""Visual anagrams: one picture that shows several things, each in a view of its own.

x0(z, t) = mean_i A_i.T x0_i(A_i z, t | prompt i),        A_i orthogonal: turns, flips, jigsaws, the negative

Geng et al. 2024 (Visual Anagrams), section 3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from suffuse import operators as ops
from suffuse.joint.average import average
from suffuse.joint.views import Joint
from suffuse.operators import LinearOperator, Operator

__all__ = ["VIEWS", "anagram", "view"]

VIEWS = {
    "identity": lambda size: ops.Identity(),
    "rotate90": lambda size: ops.Turn(1),
    "rotate180": lambda size: ops.Turn(2),
    "rotate270": lambda size: ops.Turn(3),
    "flip": lambda size: ops.Flip(-2),
    "mirror": lambda size: ops.Flip(-1),
    "negative": lambda size: ops.negative(),
    "inner90": lambda size: ops.inner_rotation(1, size),
    "inner180": lambda size: ops.inner_rotation(2, size),
    "jigsaw": lambda size: ops.jigsaw(4, size, 0),
    "shuffle": lambda size: ops.patch_shuffle(max(1, size[0] // 4), size, 0),
    "skew": lambda size: ops.skew(0.5, size),
}
"""Views by name, each for pictures of a size; jigsawN cuts N x N pieces, shuffleN moves patches N pixels wide."""


def view(name: str, size: tuple[int, int]) -> LinearOperator:
    """The view of this name, of pictures (H, W).

    Raises:
        ValueError: an unknown name, or a picture that it cannot be of.
    """
    if name in VIEWS:
        return VIEWS[name](size)  # type: ignore[return-value]
    if found := re.fullmatch(r"(jigsaw|shuffle)(\d+)", name):
        made = ops.jigsaw if found[1] == "jigsaw" else lambda n, size, seed: ops.patch_shuffle(n, size, seed)
        return made(int(found[2]), size, 0)
    raise ValueError(f"unknown view {name!r}: one of {', '.join(VIEWS)}, jigsawN, shuffleN")


def anagram(model: Any, views: Sequence[Operator], *, weights: Any = None, chunk: int | None = None) -> Joint:
    """One picture seen in several orthogonal views, each of which the model is told its own prompt for.

    Args:
        model: told n prompts for each picture: `model.given(label=[3, 5])` for two views of one picture, and
            `model.given(label=torch.tensor([3, 5]).repeat(B))` for B.
        views: n orthogonal operators. weights, chunk: as for `average`.
    Raises:
        TypeError: a view is not linear. ValueError: a view is not orthogonal.
    """
    for k, A in enumerate(views):
        if not isinstance(A, LinearOperator):
            raise TypeError(f"view {k} must be a linear operator, got {A!r}")
        if not A.orthogonal:
            raise ValueError(
                f"view {k}, {A!r}, is not orthogonal: an anagram needs views that lose nothing and keep noise white, "
                "such as turns, flips and permutations"
            )
    return average(model, list(views), weights=weights, chunk=chunk)
