"""Random numbers for a part of a batch that are the whole batch's own.

rand(b, ...) -> rand(n b, ...)[i::n]    in process i of n, whose generators all run alike

Each process draws what one would have drawn for the whole batch and keeps its rows, so that losses, dropout included,
need not know of each other's existence and n processes take the step of one. A billion normals for a batch of a
thousand accelerators take each of them some 10 ms; the network's work is not repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from suffuse.losses.times import stratified
from suffuse.training.parallel import Peers

__all__ = ["Share", "share"]

_LIKE: dict[Any, Callable[..., Tensor]] = {
    torch.rand_like: Tensor.uniform_,
    torch.randn_like: Tensor.normal_,
}
_IN_PLACE = {
    getattr(Tensor, name)
    for name in ("normal_", "uniform_", "exponential_", "random_", "log_normal_", "cauchy_", "geometric_", "bernoulli_")
}
_DROPOUT = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d}


def share(team: Peers, rows: int) -> AbstractContextManager[Any]:
    """The mode for this process's `rows` rows of a batch; nothing for one process."""
    return nullcontext() if team.count == 1 else Share(team, rows)


class Share(TorchFunctionMode):
    """While on, every draw is this process's rows of the whole batch's draw.

    The axis of the rows is the first of size `rows`, or the first one where there is none; a draw of one number is
    the same in all processes, so they take the same turns. `stratified` times are strata of the whole batch.
    Permutations, and draws from a generator that is given, are left as they are: what pairs rows with each other
    (optimal transport) pairs those of one process.

    Args:
        team: the processes. rows: of this one.
    """

    def __init__(self, team: Peers, rows: int) -> None:
        super().__init__()
        self.team, self.rows = team, rows

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Draw for all, keep the own rows."""
        kwargs = kwargs or {}
        if kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if func is stratified:
            return stratified(args[0] * self.team.count, args[1])[self.team.index :: self.team.count]
        if func in (torch.rand, torch.randn, torch.randint):
            bounds, size, kwargs = _size(func, args, dict(kwargs))
            gradient = kwargs.pop("requires_grad", False)
            whole = func(*bounds, size=self._whole(size), **kwargs)
            return self._mine(whole, size).requires_grad_(gradient)
        if func in _LIKE:
            x = args[0] if args else kwargs["input"]
            kind = kwargs.get("dtype") or x.dtype
            return self._mine(_LIKE[func](self._like(x, kind, kwargs.get("device") or x.device)), x.shape)
        if func in _IN_PLACE and not any(isinstance(value, Tensor) for value in args[1:]):
            whole = func(self._like(args[0], args[0].dtype, args[0].device), *args[1:], **kwargs)
            return args[0].copy_(self._mine(whole, args[0].shape))
        if func is torch.bernoulli and len(args) == 1:
            p, axis = args[0], self._axis(args[0].shape)
            if axis is None:
                return func(p, **kwargs)
            whole = p.new_zeros(self._whole(p.shape))
            self._mine(whole, p.shape, view=True).copy_(p)
            return self._mine(func(whole, **kwargs), p.shape)
        if func in _DROPOUT:
            return self._dropout(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(
        self, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return func(input, p, training, inplace)
        kept = self._mine(func(torch.ones_like(self._like(input, input.dtype, input.device)), p, True), input.shape)
        return input.mul_(kept) if inplace else input * kept

    def _axis(self, size: Any) -> int | None:
        if not size or (math.prod(size) == 1 and self.rows != 1):
            return None
        return list(size).index(self.rows) if self.rows in size else 0

    def _whole(self, size: Any) -> tuple[int, ...]:
        axis = self._axis(size)
        return tuple(n * self.team.count if i == axis else n for i, n in enumerate(size))

    def _like(self, x: Tensor, dtype: torch.dtype, device: Any) -> Tensor:
        last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        return torch.empty(self._whole(x.shape), dtype=dtype, device=device, memory_format=layout)

    def _mine(self, whole: Tensor, size: Any, view: bool = False) -> Tensor:
        axis = self._axis(size)
        if axis is None:
            return whole
        rows = whole[(slice(None),) * axis + (slice(self.team.index, None, self.team.count),)]
        return rows if view else rows.clone()


def _size(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], tuple[int, ...], Any]:
    """(bounds of randint, the size, what else was named)."""
    if func is torch.randint:
        named = [kwargs.pop(name) for name in ("low", "high") if name in kwargs]
        size = kwargs.pop("size") if "size" in kwargs else args[-1]
        bounds = tuple(value for value in args if value is not size)
        return (*bounds, *named), tuple(size), kwargs
    size = (
        kwargs.pop("size") if "size" in kwargs else args[0] if len(args) == 1 and not isinstance(args[0], int) else args
    )
    return (), tuple(size), kwargs
