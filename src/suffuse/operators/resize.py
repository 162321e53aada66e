"""Downsampling with antialiasing: y = L x R.T, a small matrix for each axis, so its singular values are products."""

from __future__ import annotations

import torch
from torch import Tensor

from suffuse.operators.base import LinearOperator, Spectrum, batched

__all__ = ["Downsample", "Separable"]


class Separable(LinearOperator):
    """y = L x R.T over the last two axes.

    Args:
        L: (h, H), for the rows. R: (w, W), for the columns.
    """

    def __init__(self, L: Tensor, R: Tensor) -> None:
        self.L, self.R = L.double(), R.double()
        self._svd: Spectrum | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if tuple(batched(self, x, 2).shape[-2:]) != (self.L.shape[1], self.R.shape[1]):
            size = (self.L.shape[1], self.R.shape[1])
            raise ValueError(f"{self!r} is for pictures of size {size}, got data of shape {tuple(x.shape[1:])}")
        return self.L.to(x) @ x @ self.R.to(x).T

    def adjoint(self, y: Tensor) -> Tensor:
        return self.L.to(y).T @ batched(self, y, 2) @ self.R.to(y)

    def spectrum(self, shape: tuple[int, ...]) -> Spectrum:
        if self._svd is None:
            (a, U), (b, V) = _right(self.L), _right(self.R)
            self._svd = Spectrum(a[:, None] * b, lambda x: U.to(x) @ x @ V.to(x).T, lambda z: U.to(z).T @ z @ V.to(z))
        return self._svd

    def __repr__(self) -> str:
        return f"Separable({tuple(self.L.shape)}, {tuple(self.R.shape)})"


def _right(M: Tensor) -> tuple[Tensor, Tensor]:
    """All right singular vectors (D, D) as rows, and their values (D,)."""
    _, s, Vt = torch.linalg.svd(M, full_matrices=True)
    return torch.cat([s, s.new_zeros(len(Vt) - len(s))]), Vt


class Downsample(Separable):
    """Every `factor`-th pixel of a low-pass filtered picture.

    Args:
        factor: at least 1. size: (H, W) of the picture; the result has floor(H / factor), at least 1.
        filter: "bicubic" (Keys, a = -0.5), "bilinear" (triangle) or "area" (mean), all widened by the factor.
    Raises:
        ValueError: a factor below 1 or above the picture's size; an unknown filter.
    """

    def __init__(self, factor: int, size: tuple[int, int], *, filter: str = "bicubic") -> None:
        if filter not in _FILTERS:
            raise ValueError(f"filter must be one of {', '.join(_FILTERS)}, got {filter!r}")
        if not 1 <= factor <= min(size):
            raise ValueError(f"factor must be between 1 and the picture's size {min(size)}, got {factor}")
        super().__init__(_shrink(size[0], factor, filter), _shrink(size[1], factor, filter))
        self.factor, self.size, self.filter = factor, size, filter

    def __repr__(self) -> str:
        return f"Downsample({self.factor}, {self.size}, {self.filter})"


def _cubic(u: Tensor) -> Tensor:
    u = u.abs()
    near, far = 1.5 * u**3 - 2.5 * u**2 + 1, -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2
    return torch.where(u < 1, near, torch.where(u < 2, far, 0))


_FILTERS = {
    "bicubic": _cubic,
    "bilinear": lambda u: (1 - u.abs()).clamp(min=0),
    "area": lambda u: (u.abs() < 0.5).double() + 0.5 * (u.abs() == 0.5),
}


def _shrink(length: int, factor: int, filter: str) -> Tensor:
    n = max(length // factor, 1)
    ratio = length / n
    centres = (torch.arange(n, dtype=torch.float64) + 0.5) * ratio - 0.5
    weights = _FILTERS[filter]((torch.arange(length, dtype=torch.float64) - centres[:, None]) / ratio)
    return weights / weights.sum(1, keepdim=True)
