"""Windows of a canvas: y_i = x[window i]. The views of joint denoising; aggregating them is pinv, their average."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from suffuse.operators.base import LinearOperator, Spectrum, batched

__all__ = ["Crop", "Crops"]

Pair = int | tuple[int, int]


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _starts(length: int, size: int, stride: int, wrap: bool) -> list[int]:
    if wrap:
        return list(range(0, length, stride)) if size < length else [0]
    starts = list(range(0, length - size + 1, stride))
    return starts if starts[-1] == length - size else [*starts, length - size]


class Crops(LinearOperator):
    """All windows of a canvas: x (B, C, H, W) -> (B, n, C, h, w), left to right, then down.

    A.T adds the windows where they lie; pinv(A) averages them where they overlap.

    Args:
        size: (h, w), or one number, of a window. stride: from window to window; the last one ends at the edge.
        canvas: (H, W).
        wrap: windows run across the right edge to the left one (a panorama): nothing is an edge sideways.
    Attributes:
        corners: (top, left) of each window.
    Raises:
        ValueError: a window larger than the canvas; a stride that leaves gaps.
    """

    corners: list[tuple[int, int]]

    def __init__(self, size: Pair, stride: Pair, canvas: tuple[int, int], *, wrap: bool = False) -> None:
        self.size, self.stride, self.canvas, self.wrap = _pair(size), _pair(stride), _pair(canvas), wrap
        for name, n, most in (("size", self.size, self.canvas), ("stride", self.stride, self.size)):
            if not (1 <= n[0] <= most[0] and 1 <= n[1] <= most[1]):
                limit = "the canvas" if name == "size" else "the window, or pixels are left out"
                raise ValueError(f"{name} must be at least 1 and at most {limit}, {most}, got {n}")
        (H, W), (h, w) = self.canvas, self.size
        top, left = _starts(H, h, self.stride[0], False), _starts(W, w, self.stride[1], wrap)
        self.corners = [(i, j) for i in top for j in left]

    def at(self, corners: list[tuple[int, int]], size: Pair | None = None) -> Crops:
        """Other windows of the same canvas, by their corners."""
        new = copy.copy(self)
        new.corners, new.size = corners, self.size if size is None else _pair(size)
        return new

    @property
    def index(self) -> Tensor:
        """(n, h, w): which value of the flat canvas each place of a window is; made anew, for it grows with n."""
        (h, w), W = self.size, self.canvas[1]
        top, left = torch.tensor(self.corners, dtype=torch.int64).reshape(-1, 2, 1).unbind(1)
        rows, columns = top + torch.arange(h), (left + torch.arange(w)) % W
        return rows[:, :, None] * W + columns[:, None]

    def __call__(self, x: Tensor) -> Tensor:
        if tuple(batched(self, x, 2).shape[-2:]) != self.canvas:
            raise ValueError(f"{self!r} is for a canvas of {self.canvas}, got data of shape {tuple(x.shape[1:])}")
        y = x.flatten(-2)[..., self.index.to(x.device)]  # (B, ..., n, h, w)
        return y.movedim(-3, 1)

    def adjoint(self, y: Tensor) -> Tensor:
        y = batched(self, y, 3).movedim(1, -3)
        flat = y.new_zeros(*y.shape[:-3], self.canvas[0] * self.canvas[1])
        flat = flat.index_add(-1, self.index.flatten().to(y.device), y.flatten(-3))
        return flat.unflatten(-1, self.canvas)

    def spectrum(self, shape: tuple[int, ...]) -> Spectrum:
        count = torch.zeros(self.canvas[0] * self.canvas[1], dtype=torch.int64)
        for i in range(0, len(self.corners), 64):
            count += self.at(self.corners[i : i + 64]).index.flatten().bincount(minlength=len(count))
        return Spectrum(count.reshape(self.canvas).double().sqrt(), lambda x: x, lambda z: z)

    def __repr__(self) -> str:
        return f"Crops({self.size}, stride={self.stride}, canvas={self.canvas}{', wrap' if self.wrap else ''})"


class Crop(LinearOperator):
    """One window of a canvas, x (..., H, W) -> (..., h, w); pinv(A) = A.T puts it back on zeros.

    Args:
        box: (top, left, height, width). canvas: (H, W).
    Raises:
        ValueError: the box is not within the canvas.
    """

    def __init__(self, box: tuple[int, int, int, int], canvas: tuple[int, int]) -> None:
        (top, left, h, w), (H, W) = box, canvas
        if not (0 <= top < top + h <= H and 0 <= left < left + w <= W):
            raise ValueError(f"the box (top, left, height, width) = {box} does not lie within {H} x {W}")
        self.box, self.canvas = box, (H, W)
        self._rows, self._columns = slice(top, top + h), slice(left, left + w)

    def __call__(self, x: Tensor) -> Tensor:
        if tuple(batched(self, x, 2).shape[-2:]) != self.canvas:
            raise ValueError(f"{self!r} is for a canvas of {self.canvas}, got data of shape {tuple(x.shape[1:])}")
        return x[..., self._rows, self._columns]

    def adjoint(self, y: Tensor) -> Tensor:
        (top, left, h, w), (H, W) = self.box, self.canvas
        return torch.nn.functional.pad(batched(self, y, 2), (left, W - left - w, top, H - top - h))

    def spectrum(self, shape: tuple[int, ...]) -> Spectrum:
        s = torch.zeros(self.canvas, dtype=torch.float64)
        s[self._rows, self._columns] = 1
        return Spectrum(s, lambda x: x, lambda z: z)

    def __repr__(self) -> str:
        return f"Crop({self.box}, canvas={self.canvas})"
