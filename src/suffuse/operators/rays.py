"""Operators that interpolate: rotation by any angle, and the Radon transform of tomography.

y_i = sum_j S_ij x_j with few S_ij that are not 0; S.T is the transpose of the same table, so the two always match.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from suffuse.operators.base import LinearOperator, batched

__all__ = ["Radon", "Rotation", "Sparse"]


class Sparse(LinearOperator):
    """A table of weights over the pixels of (B, C, H, W), the same for all channels: (B, C, *out).

    Args:
        rows, columns, values: (n,) where y_rows gets values x_columns. size: (H, W). out: the shape of the result.
    """

    def __init__(
        self, rows: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int], out: tuple[int, ...]
    ) -> None:
        self.size, self.out = tuple(size), tuple(out)
        shape = (int(torch.Size(out).numel()), size[0] * size[1])
        table = torch.sparse_coo_tensor(torch.stack([rows, columns]), values.double(), shape, check_invariants=True)
        self.table = table.coalesce()

    def _sum(self, x: Tensor, table: Tensor, size: tuple[int, ...], out: tuple[int, ...]) -> Tensor:
        n = len(size)
        if tuple(batched(self, x, n).shape[-n:]) != size:
            raise ValueError(f"{self!r} takes pictures of size {size}, got data of shape {tuple(x.shape[1:])}")
        lead = x.shape[:-n]
        flat = x.reshape(-1, table.shape[1]).T
        return torch.sparse.mm(table.to(x), flat).T.reshape(*lead, *out)

    def __call__(self, x: Tensor) -> Tensor:
        return self._sum(x, self.table, self.size, self.out)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._sum(y, self.table.t(), self.out, self.size)

    def __repr__(self) -> str:
        return f"Sparse({self.size} to {self.out})"


def _turned(size: tuple[int, int], angle: float) -> tuple[Tensor, Tensor, Tensor]:
    """Bilinear weights of a picture turned about its middle: (to, from, weight); 0 comes in from outside."""
    H, W = size
    a = math.radians(angle)
    row, column = torch.meshgrid(
        torch.arange(H, dtype=torch.float64) - (H - 1) / 2,
        torch.arange(W, dtype=torch.float64) - (W - 1) / 2,
        indexing="ij",
    )
    # anticlockwise on the screen, whose rows run down: y at (row, column) is x at this place
    r = math.cos(a) * row + math.sin(a) * column + (H - 1) / 2
    c = -math.sin(a) * row + math.cos(a) * column + (W - 1) / 2
    to, start, weight = [], [], []
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        ri, cj = r.floor() + i, c.floor() + j
        w = (1 - (r - ri).abs()) * (1 - (c - cj).abs())
        inside = ((ri >= 0) & (ri < H) & (cj >= 0) & (cj < W) & (w > 0)).flatten()
        to.append(torch.arange(H * W)[inside])
        start.append((ri * W + cj).long().flatten()[inside])
        weight.append(w.flatten()[inside])
    return torch.cat(to), torch.cat(start), torch.cat(weight)


class Rotation(Sparse):
    """A picture turned about its middle by an angle, bilinear, zeros from outside. See `Turn` for quarter turns.

    Args:
        angle: in degrees, anticlockwise. size: (H, W).
    """

    def __init__(self, angle: float, size: tuple[int, int]) -> None:
        super().__init__(*_turned(size, angle), size, size)
        self.angle = angle

    def __repr__(self) -> str:
        return f"Rotation({self.angle:g}, {self.size})"


class Radon(Sparse):
    """Line integrals of a picture: (B, C, H, W) -> (B, C, angles, W), the columns of the turned picture summed.

    Args:
        angles: in degrees, or how many, evenly over 180. size: (H, W).
    Raises:
        ValueError: there are no angles.
    """

    def __init__(self, angles: int | Sequence[float], size: tuple[int, int]) -> None:
        degrees = [180 * k / angles for k in range(angles)] if isinstance(angles, int) else [float(a) for a in angles]
        if not degrees:
            raise ValueError("Radon needs at least one angle")
        rows, columns, values = [], [], []
        for n, angle in enumerate(degrees):
            to, start, weight = _turned(size, angle)
            rows.append(n * size[1] + to % size[1])
            columns.append(start)
            values.append(weight)
        super().__init__(torch.cat(rows), torch.cat(columns), torch.cat(values), size, (len(degrees), size[1]))
        self.degrees = degrees

    def __repr__(self) -> str:
        return f"Radon({len(self.degrees)} angles, {self.size})"
