"""The noun `Operator`: y = A(x), a measurement of an inverse problem or a view of a canonical space.

A `LinearOperator` adds A.T and, from one function, everything that inverts it:

    ridge(y, c) = (A.T A + c I)^-1 A.T y = A.T (A A.T + c I)^-1 y,        pinv(y) = ridge(y, 0)

in closed form where the eigenvectors of A.T A are known (`spectrum`), otherwise by conjugate gradients.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["LinearOperator", "Matrix", "Operator", "Spectrum", "conjugate_gradients", "matrix"]


def by_row(value: Any, like: Tensor) -> Any:
    """A number, or (B,) values shaped to multiply (B, ...)."""
    if isinstance(value, Tensor):
        return value.to(like.real.dtype).reshape(-1, *[1] * (like.ndim - 1)) if value.numel() > 1 else value.item()
    return value


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Row by row, (B,)."""
    return (a * b).flatten(1).sum(1)


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor], b: Tensor, *, tolerance: float, limit: int
) -> tuple[Tensor, int]:
    """Solve M x = b for symmetric positive semi-definite M, every row by itself.

    Args:
        apply: x (B, ...) -> M x. b: (B, ...), in M's range.
        tolerance: a row is done, and left alone, when |b - M x| <= tolerance |b|.
        limit: iterations at most.
    Returns:
        x, and how often M was applied.
    Hestenes & Stiefel 1952.
    """
    x, r, p = torch.zeros_like(b), b, b
    rr = dot(r, r)
    enough = tolerance**2 * rr
    for n in range(limit):
        going = rr > enough
        if not bool(going.any()):
            return x, n
        Mp = apply(p)
        curve = dot(p, Mp)
        going = going & (curve > 0)
        a = torch.where(going, rr / torch.where(going, curve, 1), 0)
        x, r = x + by_rows(a, p) * p, r - by_rows(a, p) * Mp
        new = dot(r, r)
        beta = torch.where(going, new / torch.where(going, rr, 1), 0)
        p, rr = torch.where(by_rows(going, p), r + by_rows(beta, p) * p, p), torch.where(going, new, rr * 0)
    return x, limit


def by_rows(value: Tensor, like: Tensor) -> Tensor:
    """(B,) against (B, ...)."""
    return value.reshape(-1, *[1] * (like.ndim - 1))


def batched(A: Operator, x: Tensor, axes: int) -> Tensor:
    """x, which has a batch before the axes that A acts on.

    Raises:
        ValueError: it has none, so that A would mix rows.
    """
    if x.ndim <= axes:
        raise ValueError(
            f"{A!r} acts on the last {axes} axes of each row of a batch, got data of shape {tuple(x.shape)}"
        )
    return x


class Operator:
    """y = A(x), row by row of a batch.

    Attributes:
        lacks: what this operator has not, of "T", "pinv" and "gradient".
    """

    lacks: tuple[str, ...] = ("T", "pinv")

    def __call__(self, x: Tensor) -> Tensor:
        """A(x) for x (B, ...)."""
        raise NotImplementedError

    def vjp(self, x: Tensor, y: Tensor) -> Tensor:
        """The transposed Jacobian of A at x, applied to y; of x's shape.

        Raises:
            TypeError: the operator lacks a gradient.
        """
        if "gradient" in self.lacks:
            raise TypeError(f"{self!r} has no gradient: take guidance.steer, which needs none")
        through = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
        with torch.enable_grad():
            at = x if through and x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad(self(at), at, y, create_graph=through)[0]

    def __matmul__(self, other: Operator) -> Operator:
        """A @ B: first B, then A."""
        from suffuse.operators.algebra import Chain, Composition

        if isinstance(self, LinearOperator) and isinstance(other, LinearOperator):
            return Composition(self, other)
        return Chain(self, other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@dataclass(frozen=True)
class Spectrum:
    """A.T A = V s^2 V.T with orthonormal V: the right singular vectors of A and its singular values.

    Attributes:
        s: singular values, at least 0; they multiply coordinates `to(x)` by broadcasting.
        to: x (B, ...) -> V.T x, coordinates (B, ...), complex for a Fourier basis.
        back: V: coordinates -> x.
    """

    s: Tensor
    to: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]

    def values(self, like: Tensor) -> Tensor:
        """The singular values in the precision of `like`; those below sqrt(machine epsilon) of the largest are 0."""
        s = self.s.to(device=like.device)
        s = torch.where(s > s.max() * torch.finfo(like.real.dtype).eps ** 0.5, s, 0)
        return s.to(like.real.dtype)

    def solve(self, v: Tensor, c: Any) -> Tensor:
        """(A.T A + c I)^-1 v; at c = 0 the inverse on what A sees, 0 elsewhere."""
        z = self.to(v)
        s, c = self.values(z), by_row(c, z)
        seen = s > 0
        below = s * s + c
        if not isinstance(c, Tensor) and c > 0:
            return self.back(z / below)
        return self.back(torch.where(seen | (below > 0), z / torch.where(below > 0, below, 1), 0 * z))


class LinearOperator(Operator):
    """A linear A: <A x, y> = <x, A.T y> and A pinv(A) A = A.

    Attributes:
        orthogonal: whether A.T A = I = A A.T.
        tolerance: relative residual of A.T (A x - y) at which conjugate gradients stop where there is no closed form;
            None is 1e-10 in float64 and 1e-6 below.
        limit: how many iterations they may take; a warning, one an operator, says where they were too few.
    """

    lacks = ()
    orthogonal = False
    tolerance: float | None = None
    limit = 1000
    _told = False

    def adjoint(self, y: Tensor) -> Tensor:
        """A.T y, as `A.T(y)`."""
        raise NotImplementedError

    def spectrum(self, shape: tuple[int, ...]) -> Spectrum | None:
        """The right singular vectors and the singular values on data points of this shape, where they are known."""
        return None

    @property
    def T(self) -> LinearOperator:
        """The transpose."""
        return _Transpose(self)

    def vjp(self, x: Tensor, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def ridge(self, y: Tensor, c: float | Tensor) -> Tensor:
        """(A.T A + c I)^-1 A.T y = A.T (A A.T + c I)^-1 y: least squares with a penalty of c |x|^2.

        Args:
            y: a measurement (B, ...). c: at least 0; a number, or (B,) one a row.
        """
        v = self.adjoint(y)
        known = self.spectrum(tuple(v.shape[1:]))
        if known is not None:
            return known.solve(v, c)
        weight = by_row(c, v)
        tolerance = self.tolerance or (1e-10 if v.dtype == torch.float64 else 1e-6)

        def apply(x: Tensor) -> Tensor:
            return self.adjoint(self(x)) + weight * x

        x, n = conjugate_gradients(apply, v, tolerance=tolerance, limit=self.limit)
        if n == self.limit and not self._told:
            gap = v - apply(x)
            worst = (dot(gap, gap) / dot(v, v).clamp(min=1e-30)).max().sqrt().item()
            if not worst <= tolerance:
                self._told = True
                warnings.warn(
                    f"{self!r}: after {n} conjugate gradients the residual is {worst:.2g} of A.T y, not {tolerance:g}; "
                    "raise A.limit, or take operators.Matrix(operators.matrix(A, shape), shape)",
                    stacklevel=2,
                )
        return x

    def pinv(self, y: Tensor) -> Tensor:
        """The least-squares solution of smallest norm."""
        return self.ridge(y, 0.0)


class _Transpose(LinearOperator):
    def __init__(self, of: LinearOperator) -> None:
        self.of, self.orthogonal, self.tolerance, self.limit = of, of.orthogonal, of.tolerance, of.limit

    def __call__(self, x: Tensor) -> Tensor:
        return self.of.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.of(y)

    @property
    def T(self) -> LinearOperator:
        return self.of

    def ridge(self, y: Tensor, c: float | Tensor) -> Tensor:
        known = self.of.spectrum(tuple(y.shape[1:]))
        return super().ridge(y, c) if known is None else self.of(known.solve(y, c))

    def __repr__(self) -> str:
        return f"{self.of!r}.T"


def matrix(A: Operator, shape: tuple[int, ...]) -> Tensor:
    """The matrix (M, D) of a linear operator on data of this shape, in float64: what `oracle.Mixture.posterior` takes.

    Args:
        shape: of one data point, (C, H, W); D is its size, and M that of one measurement.
    Raises:
        TypeError: the operator is not linear.
    """
    if not isinstance(A, LinearOperator):
        raise TypeError(f"only a linear operator has a matrix, {A!r} is none")
    d = int(torch.Size(shape).numel())
    return A(torch.eye(d, dtype=torch.float64).reshape(d, *shape)).flatten(1).T.contiguous()


class Matrix(LinearOperator):
    """y = M x of flattened data: any linear operator whose singular vectors fit in memory.

    `Matrix(matrix(A, shape), shape)` gives an operator without a closed form one (for `ddrm`).

    Args:
        M: (M, D). shape: of one data point, of size D.
    Raises:
        ValueError: sizes that do not fit.
    """

    def __init__(self, M: Tensor, shape: tuple[int, ...]) -> None:
        if M.ndim != 2 or M.shape[1] != torch.Size(shape).numel():
            raise ValueError(f"the matrix must have {torch.Size(shape).numel()} columns, got {tuple(M.shape)}")
        self.M, self.shape = M, tuple(shape)
        self._svd: Spectrum | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"{self!r} is for data of shape {self.shape}, got {tuple(x.shape[1:])}")
        return x.flatten(1) @ self.M.to(x).T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.M.to(y)).reshape(len(y), *self.shape)

    def spectrum(self, shape: tuple[int, ...]) -> Spectrum:
        if self._svd is None:
            _, s, Vt = torch.linalg.svd(self.M.double(), full_matrices=True)
            s = torch.cat([s, s.new_zeros(len(Vt) - len(s))])
            self._svd = Spectrum(
                s, lambda x: x.flatten(1) @ Vt.to(x).T, lambda z: (z @ Vt.to(z)).reshape(len(z), *self.shape)
            )
        return self._svd

    def __repr__(self) -> str:
        return f"Matrix({self.M.shape[0]} x {self.M.shape[1]})"
