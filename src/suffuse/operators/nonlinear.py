"""Measurements that are not linear: each says what it lacks (no transpose, no pseudo-inverse, perhaps no gradient)."""

from __future__ import annotations

import torch
from torch import Tensor

from suffuse.codec import Codec
from suffuse.operators.base import Operator, batched

__all__ = ["Decode", "HighDynamicRange", "PhaseRetrieval", "Quantise"]


class PhaseRetrieval(Operator):
    """y = |F x| of the picture with zeros around it: x, its shifts and its mirror image answer alike.

    Args:
        oversample: how many times larger the frame is, at least 1.
    """

    def __init__(self, oversample: float = 2.0) -> None:
        if not oversample >= 1:
            raise ValueError(f"oversample must be at least 1, got {oversample:g}")
        self.oversample = oversample

    def __call__(self, x: Tensor) -> Tensor:
        frame = tuple(round(self.oversample * n) for n in batched(self, x, 2).shape[-2:])
        return torch.fft.fft2(x, s=frame).abs() / (frame[0] * frame[1]) ** 0.5

    def __repr__(self) -> str:
        return f"PhaseRetrieval({self.oversample:g})"


class HighDynamicRange(Operator):
    """y = clip(gain x, -1, 1): an overexposed picture; no gradient comes from clipped pixels.

    Args:
        gain: above 1.
    """

    def __init__(self, gain: float = 2.0) -> None:
        if not gain > 1:
            raise ValueError(f"gain must be above 1, or nothing is clipped, got {gain:g}")
        self.gain = gain

    def __call__(self, x: Tensor) -> Tensor:
        return (self.gain * x).clamp(-1, 1)

    def __repr__(self) -> str:
        return f"HighDynamicRange({self.gain:g})"


class Quantise(Operator):
    """y = x in [-1, 1] rounded to one of `levels` values. It has no gradient.

    Args:
        levels: at least 2.
    """

    lacks = ("T", "pinv", "gradient")

    def __init__(self, levels: int) -> None:
        if not levels >= 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        self.levels = levels

    def __call__(self, x: Tensor) -> Tensor:
        n = self.levels - 1
        return ((x.clamp(-1, 1) + 1) / 2 * n).round() / n * 2 - 1

    def __repr__(self) -> str:
        return f"Quantise({self.levels})"


class Decode(Operator):
    """y = decode(z): what a latent looks like. `A @ Decode(codec)` measures pictures of a latent model.

    Args:
        codec: of the latents.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def __call__(self, x: Tensor) -> Tensor:
        return self.codec.decode(x)

    def __repr__(self) -> str:
        return f"Decode({type(self.codec).__name__})"
