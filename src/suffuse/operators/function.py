"""Any function as an operator: the adjoint of a linear one by autodiff."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from suffuse.operators.base import LinearOperator, Operator
from suffuse.random import noise

__all__ = ["Function", "from_function"]


class Function(Operator):
    """y = fn(x), not linear; its gradient by autodiff."""

    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        self.fn = fn

    def __call__(self, x: Tensor) -> Tensor:
        return self.fn(x)

    def __repr__(self) -> str:
        return f"Function({getattr(self.fn, '__name__', 'fn')})"


class _Linear(LinearOperator):
    def __init__(self, fn: Callable[[Tensor], Tensor], shape: tuple[int, ...], dtype: torch.dtype | None) -> None:
        self.fn, self.shape, self.dtype = fn, tuple(shape), dtype

    def __call__(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"{self!r} is for data of shape {self.shape}, got {tuple(x.shape[1:])}")
        if self.dtype not in (None, x.dtype):
            raise ValueError(f"{self!r} is made of {self.dtype}, got data of {x.dtype}")
        return self.fn(x)

    def adjoint(self, y: Tensor) -> Tensor:
        at = torch.zeros(len(y), *self.shape, dtype=y.dtype, device=y.device)
        made, pull = torch.func.vjp(self, at)  # type: ignore[misc]
        if made.shape != y.shape:
            raise ValueError(f"{self!r} measures {tuple(made.shape[1:])} of each row, got {tuple(y.shape)}")
        return pull(y)[0]

    def __repr__(self) -> str:
        return f"from_function({getattr(self.fn, '__name__', 'fn')})"


def from_function(
    fn: Callable[[Tensor], Tensor], shape: tuple[int, ...] | None = None, *, linear: bool = True
) -> Operator:
    """An operator of a function on batches.

    Args:
        fn: x (B, ...) -> y (B, ...), row by row, made of differentiable operations.
        shape: of one data point; needed where it is linear, since A.T must make one.
        linear: whether fn is linear; it is tried out once, in float64, or in float32 where it takes no other.
    Returns:
        A `LinearOperator`, its pseudo-inverse by conjugate gradients; or, not linear, an `Operator` with a gradient.
    Raises:
        ValueError: fn was said to be linear and is not; no shape.
    """
    if not linear:
        return Function(fn)
    if shape is None:
        raise ValueError("a linear function needs the shape of one data point: from_function(fn, shape=(C, H, W))")
    a, b = (noise((1, *shape), seed=seed, dtype=torch.float64) for seed in (0, 1))
    dtype, close = None, 1e-6
    try:
        fn(a)
    except RuntimeError:  # a network, whose weights are of one precision
        dtype, close, a, b = torch.float32, 1e-4, a.float(), b.float()
    gap = (fn(a - 2 * b) - fn(a) + 2 * fn(b)).abs().max().item()
    size = fn(a).abs().max().item() + fn(b).abs().max().item()
    if not gap <= close * max(size, 1e-12):
        raise ValueError(f"this function is not linear: f(a - 2b) misses f(a) - 2 f(b) by {gap:.3g}; say linear=False")
    return _Linear(fn, shape, dtype)
