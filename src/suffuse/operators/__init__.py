"""The nouns `Operator` and `LinearOperator`: measurements of an inverse problem, and views of a canonical space."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

__all__ = ["LinearOperator", "Operator"]


@runtime_checkable
class Operator(Protocol):
    """y = A(x), row by row of a batch."""

    def __call__(self, x: Tensor) -> Tensor:
        """A(x) for x (B, ...)."""
        ...

    def vjp(self, x: Tensor, y: Tensor) -> Tensor:
        """The transposed Jacobian of A at x, applied to y; of x's shape."""
        ...


@runtime_checkable
class LinearOperator(Operator, Protocol):
    """A linear A with its transpose and pseudo-inverse: <A x, y> = <x, A.T y> and A pinv(A) A = A."""

    @property
    def T(self) -> LinearOperator:
        """The transpose."""
        ...

    def pinv(self, y: Tensor) -> Tensor:
        """The least-squares solution of smallest norm."""
        ...
