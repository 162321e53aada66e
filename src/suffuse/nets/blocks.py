"""What the networks share: reading conditions, and the errors about sizes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse.nets.conditions import Condition, Spatial, Tokens
from suffuse.nets.embed import TimeEmbedding
from suffuse.nets.words import Words


class Told(NamedTuple):
    """What the blocks of a network read besides x."""

    embedding: Tensor
    """silu of the time plus all labels, vectors and scalars, (B, width)."""
    tokens: Tensor | None
    """(B, L, width)."""
    visible: Tensor | None
    """bool (B, 1, 1, L), False at padding."""


class Conditioning(nn.Module):
    """Embed t and the conditions, and concatenate the spatial ones to x.

    Args:
        net: the network's name, for errors.
        conditions: what it may be told, by name.
        width: length of the embeddings.
        pool: add the mean of the visible tokens to the embedding, for networks without attention.
    """

    def __init__(self, net: str, conditions: dict[str, Condition], width: int, *, pool: bool = False) -> None:
        super().__init__()
        for name, spec in conditions.items():
            if not name.isidentifier() or name in ("self", "x", "t"):
                raise ValueError(f"a condition's name must be an identifier other than x and t, got {name!r}")
            if not isinstance(spec, Condition):
                raise TypeError(f"condition {name!r} must be a spec such as Label(10), got {spec!r}")
        self.net, self.conditions, self.pool = net, conditions, pool
        self.channels = sum(spec.channels for spec in conditions.values() if isinstance(spec, Spatial))
        self.has_tokens = any(isinstance(spec, Tokens | Words) for spec in conditions.values())
        self.time = TimeEmbedding(width)
        # Not a ModuleDict, which refuses names that are methods of a module; `to` is a name we need.
        self.embedders = nn.ModuleList(spec.embedder(width) for spec in conditions.values())

    def forward(self, x: Tensor, t: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, Told]:
        """(B, channels, *spatial), (B,) -> x with the spatial conditions' channels after its own, and the rest."""
        self._check(x, t, given)
        embedding = self.time(t)
        images, sequences, visibles = [x], [], []
        for (name, spec), embed in zip(self.conditions.items(), self.embedders, strict=True):
            value = embed(given[name])
            if isinstance(spec, Spatial):
                images.append(value.to(x.dtype))
            elif isinstance(spec, Tokens | Words):
                sequences.append(value[0])
                visibles.append(value[1])
            else:
                embedding = embedding + value
        x = torch.cat(images, 1) if len(images) > 1 else x
        if not sequences:
            return x, Told(F.silu(embedding), None, None)
        tokens, visible = torch.cat(sequences, 1), torch.cat(visibles, 1)
        if self.pool:
            weights = visible / visible.sum(1, keepdim=True)
            embedding = embedding + (tokens * weights[..., None]).sum(1)
        return x, Told(F.silu(embedding), tokens, visible[:, None, None])

    def _check(self, x: Tensor, t: Tensor, given: dict[str, Tensor]) -> None:
        if given.keys() != self.conditions.keys():
            names = ", ".join(self.conditions)
            takes = f"takes the conditions {names}" if names else "takes no conditions"
            missing = ", ".join(name for name in self.conditions if name not in given)
            unknown = ", ".join(name for name in given if name not in self.conditions)
            wrong = [f"missing {missing}"] * bool(missing) + [f"unknown {unknown}"] * bool(unknown)
            raise TypeError(f"{self.net} {takes}: {' and '.join(wrong)}")
        if t.shape != x.shape[:1]:
            raise ValueError(f"{self.net} takes one time per row, shape ({len(x)},), got {tuple(t.shape)}")
        for name, spec in self.conditions.items():
            value = given[name]
            if len(value) != len(x):
                raise ValueError(f"{name} must have one row for each of x's {len(x)}, got {len(value)}")
            if isinstance(spec, Spatial) and value.shape[2:] != x.shape[2:]:
                raise ValueError(
                    f"{name} must have x's spatial size {tuple(x.shape[2:])}, got {tuple(value.shape[2:])}"
                )


def check_dims(dims: int) -> None:
    """Refuse anything but 1, 2 or 3 spatial dimensions."""
    if dims not in (1, 2, 3):
        raise ValueError(f"dims must be 1, 2 or 3, got {dims}")


def check_image(net: str, x: Tensor, channels: int, dims: int, multiple: int, why: str) -> None:
    """Refuse an x of the wrong shape, and name the spatial sizes near it that would fit.

    Args:
        net: the network's name.
        x: should be (B, channels, *spatial) with `dims` spatial dimensions.
        channels, dims: what the network was built for.
        multiple: what every spatial size must be a multiple of.
        why: the reason, as "UNet with 3 levels halves 2 times".
    Raises:
        ValueError: any of these is not so.
    """
    size = tuple(x.shape[2:])
    if x.ndim != dims + 2 or x.shape[1] != channels:
        spatial = ", ".join("DHW"[-dims:])
        raise ValueError(f"{net} takes x of shape (B, {channels}, {spatial}), got {tuple(x.shape)}")
    if any(n % multiple or n == 0 for n in size):
        below = tuple(max(multiple, n // multiple * multiple) for n in size)
        above = tuple(max(multiple, math.ceil(n / multiple) * multiple) for n in size)
        fits = f"{above}" if below == above else f"{below} or {above}"
        raise ValueError(f"{why}: sizes must be multiples of {multiple}, got {size}; {fits} would fit")
