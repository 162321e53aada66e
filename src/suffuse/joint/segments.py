"""Windows of a long signal: the views of audio, motion or any sequence made by a model of short ones."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from suffuse.operators import LinearOperator, Spectrum

__all__ = ["Segments"]


class Segments(LinearOperator):
    """All windows of a signal: x (B, ..., L) -> (B, n, ..., size). A.T adds them where they lie, pinv(A) averages them.

    Args:
        size: of a window. stride: from window to window; the last one ends at the end. length: L.
        wrap: windows run across the end to the beginning (a loop).
    Attributes:
        corners: where each window begins.
    Raises:
        ValueError: a window longer than the signal; a stride that leaves gaps.
    """

    def __init__(self, size: int, stride: int, length: int, *, wrap: bool = False) -> None:
        if not 1 <= size <= length:
            raise ValueError(f"size must be at least 1 and at most the signal's length, {length}, got {size}")
        if not 1 <= stride <= size:
            raise ValueError(
                f"stride must be at least 1 and at most the window, {size}, or parts are left out: {stride}"
            )
        self.size, self.stride, self.length, self.wrap = size, stride, length, wrap
        if wrap:
            self.corners = list(range(0, length, stride)) if size < length else [0]
        else:
            self.corners = [*range(0, length - size, stride), length - size]

    def at(self, corners: list[int], size: int | None = None) -> Segments:
        """Other windows of the same signal, by where they begin."""
        new = copy.copy(self)
        new.corners, new.size = corners, self.size if size is None else size
        return new

    @property
    def index(self) -> Tensor:
        """(n, size): which value of the signal each place of a window is."""
        corners = torch.tensor(self.corners, dtype=torch.int64)
        return (corners[:, None] + torch.arange(self.size)) % self.length

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.length:
            raise ValueError(f"{self!r} is for signals of length {self.length}, got data of shape {tuple(x.shape[1:])}")
        return x[..., self.index.to(x.device)].movedim(-2, 1)

    def adjoint(self, y: Tensor) -> Tensor:
        y = y.movedim(1, -2)
        flat = y.new_zeros(*y.shape[:-2], self.length)
        return flat.index_add(-1, self.index.flatten().to(y.device), y.flatten(-2))

    def spectrum(self, shape: tuple[int, ...]) -> Spectrum:
        count = self.index.flatten().bincount(minlength=self.length)
        return Spectrum(count.double().sqrt(), lambda x: x, lambda z: z)

    def __repr__(self) -> str:
        return f"Segments({self.size}, stride={self.stride}, length={self.length}{', wrap' if self.wrap else ''})"
