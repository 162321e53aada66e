"""Operators made of operators: A @ B and stack(A, B)."""

from __future__ import annotations

import torch
from torch import Tensor

from suffuse.operators.base import LinearOperator, Operator, Spectrum

__all__ = ["Affine", "Chain", "Composition", "Stack", "stack"]


class Chain(Operator):
    """x -> A(B(x)) where one of the two is not linear."""

    def __init__(self, A: Operator, B: Operator) -> None:
        self.A, self.B = A, B
        self.lacks = tuple(sorted({"T", "pinv"} | set(A.lacks) | set(B.lacks)))

    def __call__(self, x: Tensor) -> Tensor:
        return self.A(self.B(x))

    def __repr__(self) -> str:
        return f"{self.A!r} @ {self.B!r}"


class Composition(LinearOperator):
    """x -> A(B(x)), linear; its pseudo-inverse is closed where one of the two is orthogonal."""

    def __init__(self, A: LinearOperator, B: LinearOperator) -> None:
        self.A, self.B, self.orthogonal = A, B, A.orthogonal and B.orthogonal

    def __call__(self, x: Tensor) -> Tensor:
        return self.A(self.B(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.B.adjoint(self.A.adjoint(y))

    def spectrum(self, shape: tuple[int, ...]) -> Spectrum | None:
        if self.A.orthogonal:  # (A B).T A B = B.T B
            return self.B.spectrum(shape)
        if not self.B.orthogonal:
            return None
        inner = self.A.spectrum(tuple(self.B(torch.zeros(1, *shape)).shape[1:]))
        if inner is None:
            return None
        return Spectrum(inner.s, lambda x: inner.to(self.B(x)), lambda z: self.B.adjoint(inner.back(z)))

    def __repr__(self) -> str:
        return f"{self.A!r} @ {self.B!r}"


class Stack(LinearOperator):
    """Several measurements of one x: see `stack`."""

    def __init__(self, operators: tuple[LinearOperator, ...], shape: tuple[int, ...] | None) -> None:
        self.operators = operators
        self.sizes = None
        if shape is not None:
            outs = [tuple(A(torch.zeros(1, *shape)).shape[1:]) for A in operators]
            self.sizes = [(out, int(torch.Size(out).numel())) for out in outs]

    def __call__(self, x: Tensor) -> Tensor:
        parts = [A(x) for A in self.operators]
        if self.sizes is not None:
            return torch.cat([y.flatten(1) for y in parts], 1)
        if any(y.shape != parts[0].shape for y in parts):
            seen = ", ".join(str(tuple(y.shape[1:])) for y in parts)
            raise ValueError(f"measurements of shapes {seen} stack when told the data's: stack(..., shape=(C, H, W))")
        return torch.stack(parts, 1)

    def adjoint(self, y: Tensor) -> Tensor:
        if self.sizes is None:
            parts = list(y.unbind(1))
        else:
            split = y.split([n for _, n in self.sizes], 1)
            parts = [v.reshape(len(y), *out) for v, (out, _) in zip(split, self.sizes, strict=True)]
        total = self.operators[0].adjoint(parts[0])
        for A, part in zip(self.operators[1:], parts[1:], strict=True):
            total = total + A.adjoint(part)
        return total

    def spectrum(self, shape: tuple[int, ...]) -> Spectrum | None:
        if not all(A.orthogonal for A in self.operators):
            return None
        return Spectrum(torch.tensor(float(len(self.operators)), dtype=torch.float64).sqrt(), lambda x: x, lambda z: z)

    def __repr__(self) -> str:
        return f"stack({', '.join(map(repr, self.operators))})"


def stack(*operators: LinearOperator, shape: tuple[int, ...] | None = None) -> Stack:
    """Several measurements as one: y (B, n, ...) beside each other, or, told the data's shape, (B, M) end to end.

    Args:
        operators: linear, of the same data.
        shape: of one data point; needed where the measurements have different shapes.
    Raises:
        TypeError: one of them is not linear. ValueError: there are none.
    """
    if not operators:
        raise ValueError("stack needs at least one operator")
    for A in operators:
        if not isinstance(A, LinearOperator):
            raise TypeError(f"stack takes linear operators, {A!r} is none")
    return Stack(operators, shape)


class Affine(Operator):
    """x -> A x + offset: what is known of A is known of it, with y - offset for y; `A.T` is the linear part's.

    Args:
        linear: A. offset: broadcasts against the measurement.
    """

    lacks = ()

    def __init__(self, linear: LinearOperator, offset: float | Tensor) -> None:
        self.linear, self.offset = linear, offset

    def __call__(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.offset

    def __matmul__(self, other: Operator) -> Operator:
        if isinstance(other, LinearOperator):
            return Affine(Composition(self.linear, other), self.offset)
        return super().__matmul__(other)

    @property
    def T(self) -> LinearOperator:
        """The transpose of the linear part: <A x - A 0, y> = <x, A.T y>."""
        return self.linear.T

    def pinv(self, y: Tensor) -> Tensor:
        """pinv(linear)(y - offset): A pinv(A) A = A holds."""
        return self.linear.pinv(y - self.offset)

    def vjp(self, x: Tensor, y: Tensor) -> Tensor:
        return self.linear.adjoint(y)

    def __repr__(self) -> str:
        return f"{self.linear!r} + {self.offset}"
