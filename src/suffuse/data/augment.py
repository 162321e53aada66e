"""Changes of a batch that depend on (seed, the sample's number in the draw) only, for `draws(..., augment=[...])`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from suffuse.data.shapes.scene import Draw

__all__ = ["RandomCrop", "RandomFlip"]


@dataclass(frozen=True)
class RandomFlip:
    """Mirror pictures left to right, each with probability p."""

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"p must be a probability, got {self.p}")

    def __call__(self, batch: dict[str, Tensor], numbers: Tensor, seed: int) -> dict[str, Tensor]:
        x = batch["x"]
        mirrored = Draw(seed, numbers, 21).unit(1)[:, 0].to(x.device) < self.p
        return batch | {"x": torch.where(mirrored.reshape(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)}


@dataclass(frozen=True)
class RandomCrop:
    """Cut squares of `size` pixels out of pictures at random places, after `pad` reflected pixels on every side."""

    size: int
    pad: int = 0

    def __call__(self, batch: dict[str, Tensor], numbers: Tensor, seed: int) -> dict[str, Tensor]:
        x = F.pad(batch["x"], (self.pad,) * 4, mode="reflect") if self.pad else batch["x"]
        high, wide = x.shape[-2] - self.size + 1, x.shape[-1] - self.size + 1
        if min(high, wide) < 1:
            raise ValueError(f"pictures of {tuple(x.shape[-2:])} are too small to be cut to {self.size}")
        draw, line = Draw(seed, numbers, 22), torch.arange(self.size)
        rows = (draw.below(high, 1) + line)[:, None, :, None]
        columns = (draw.below(wide, 1) + line)[:, None, None, :]
        items, channels = torch.arange(len(x))[:, None, None, None], torch.arange(x.shape[1])[None, :, None, None]
        return batch | {"x": x[items, channels, rows, columns]}
