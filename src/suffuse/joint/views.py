"""Views of a canonical space, and their merging: weighted least squares.

y_i = A_i z,        z = argmin sum_i w_i |y_i - A_i z|^2 = (A.T W A)^+ A.T W y

Where A.T W A is diagonal (windows, flips, permutations) that is the weighted average of what the views say of a pixel;
otherwise (views that interpolate) it is solved by conjugate gradients. Views are taken in chunks: what is held at once
grows with the chunk and the canonical space, not with the number of views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import Composed, call, stateless
from suffuse.joint.segments import Segments
from suffuse.operators import Crops, LinearOperator, Operator, Stack, conjugate_gradients, stack
from suffuse.parameterize import Prediction
from suffuse.random import noise

__all__ = ["Joint", "Views"]

_STREAM = 0x0301A7  # of its own: the noise that views are tried on


class _Some(LinearOperator):
    """Views i to j - 1 of any operator whose measurement is (B, n, ...)."""

    def __init__(self, A: LinearOperator, i: int, j: int, n: int) -> None:
        self.A, self.i, self.j, self.n = A, i, j, n

    def __call__(self, x: Tensor) -> Tensor:
        return self.A(x)[:, self.i : self.j]

    def adjoint(self, y: Tensor) -> Tensor:
        full = y.new_zeros(len(y), self.n, *y.shape[2:])
        full[:, self.i : self.j] = y
        return self.A.adjoint(full)


class Views:
    """Views of a canonical space with their weights.

    Args:
        A: a linear operator (B, *canonical) -> (B, n, *view), such as `Crops`; or a sequence of n linear operators to
            views of one shape.
        weights: at least 0; (n,) one a view, or anything that broadcasts against (n, *view); None is 1.
        chunk: how many views are looked at together; None is all.
        holes: whether the canonical space may have pixels that no view sees; they are merged to 0.
    Raises:
        TypeError: a view is not a linear operator. ValueError: weights below 0 or not finite, a chunk below 1.
    """

    def __init__(
        self,
        A: Operator | Sequence[Operator],
        *,
        weights: Any = None,
        chunk: int | None = None,
        holes: bool = False,
    ) -> None:
        if isinstance(A, Sequence):
            A = stack(*A)  # type: ignore[arg-type]
        if not isinstance(A, LinearOperator):
            raise TypeError(f"views must be a linear operator or several, got {A!r}")
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be at least 1 view, got {chunk}")
        self.A, self.chunk, self.holes = A, chunk, holes
        self.weights = None if weights is None else torch.as_tensor(weights)
        if self.weights is not None and not bool((self.weights.isfinite() & (self.weights >= 0)).all()):
            low = self.weights.min().item()
            raise ValueError(f"weights of views must be finite and at least 0, the smallest is {low:g}")
        self._known: dict[Any, Any] = {}

    @property
    def n(self) -> int | None:
        """How many views there are; None for an operator that has to be tried to tell."""
        if isinstance(self.A, (Crops, Segments)):
            return len(self.A.corners)
        return len(self.A.operators) if isinstance(self.A, Stack) else self._known.get("n")

    def __repr__(self) -> str:
        return repr(self.A)

    def part(self, i: int, j: int) -> LinearOperator:
        """The operator of views i to j - 1."""
        if isinstance(self.A, (Crops, Segments)):
            return self.A.at(self.A.corners[i:j])  # type: ignore[arg-type]
        if isinstance(self.A, Stack) and self.A.sizes is None:
            return Stack(self.A.operators[i:j], None)
        return _Some(self.A, i, j, self._known["n"])

    def shape(self, z: Tensor) -> tuple[int, ...]:
        """(n, *view) of canonical data like z (B, ...)."""
        key = ("shape", tuple(z.shape[1:]))
        if key not in self._known:
            if isinstance(self.A, (Crops, Segments)):
                one = self.part(0, 1)(z[:1])
                self._known[key] = (len(self.A.corners), *one.shape[2:])
            else:
                y = self.A(z[:1])
                if y.ndim != z.ndim + 1:
                    raise ValueError(
                        f"views of data {tuple(z.shape[1:])} must have shape (n, ...) with as many axes after n, "
                        f"{self.A!r} makes {tuple(y.shape[1:])}: pass several operators to views of one shape"
                    )
                self._known["n"] = y.shape[1]
                self._known[key] = tuple(y.shape[1:])
        return self._known[key]

    def chunks(self, n: int) -> Iterator[tuple[int, int]]:
        """(i, j) of each chunk."""
        size = self.chunk or n
        return ((i, min(i + size, n)) for i in range(0, n, size))

    def _weight(self, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
        if self.weights is None:
            return None
        w = self.weights.to(like)
        if w.ndim == 1:
            w = w.reshape(-1, *[1] * (len(shape) - 1))
        try:
            return w.expand(shape)
        except RuntimeError:
            raise ValueError(
                f"weights of shape {tuple(self.weights.shape)} do not fit {shape[0]} views of {tuple(shape[1:])}"
            ) from None

    def pull(self, ask: Callable[[int, int], Tensor], z: Tensor) -> Tensor:
        """A.T W y, where ask(i, j) gives views i to j - 1 of y, (B, j - i, *view); like z (B, *canonical)."""
        shape = self.shape(z)
        w, total = self._weight(shape, z), None
        for i, j in self.chunks(shape[0]):
            y = ask(i, j)
            part = self.part(i, j).adjoint(y if w is None else w[i:j] * y)
            total = part if total is None else total + part
        assert total is not None
        return total

    def normal(self, z: Tensor) -> Tensor:
        """A.T W A z."""
        return self.pull(lambda i, j: self.part(i, j)(z), z)

    def _diagonal(self, like: Tensor) -> tuple[Tensor | None, Tensor]:
        """The diagonal of A.T W A if it is diagonal, (1, *canonical), and where no view looks."""
        key = ("diagonal", tuple(like.shape[1:]), like.dtype, like.device)
        if key not in self._known:
            one = torch.ones_like(like[:1])
            with torch.no_grad():
                ones = tried = self.normal(one)
                if not isinstance(self.A, (Crops, Segments)):  # it is diagonal if it is so for what is like nothing
                    one = noise((1, *like.shape[1:]), 0, stream=_STREAM, dtype=like.dtype, device=like.device)
                    tried = self.normal(one)
            gap, size = (tried - ones * one).abs().max(), tried.abs().max()
            unseen = tried == 0
            if bool(unseen.any()) and not self.holes:
                places = unseen[0].nonzero()
                raise ValueError(
                    f"the views leave {len(places)} of {unseen.numel()} values of the canonical space uncovered, the "
                    f"first at {tuple(places[0].tolist())}: add views, or raise their weights above 0"
                )
            flat = bool(gap <= 100 * torch.finfo(like.dtype).eps * size)
            self._known[key] = (ones if flat else None, unseen)
        return self._known[key]

    def solve(self, v: Tensor) -> Tensor:
        """(A.T W A)^+ v: what `pull` gave becomes the merged data.

        Raises:
            ValueError: the views leave values of the canonical space uncovered, and holes are not allowed.
        """
        diagonal, unseen = self._diagonal(v)
        if diagonal is not None:
            return v / torch.where(unseen, 1, diagonal)
        tolerance = 1e-10 if v.dtype == torch.float64 else 1e-5
        return conjugate_gradients(self.normal, v, tolerance=tolerance, limit=200)[0]

    def merge(self, y: Tensor, like: Tensor) -> Tensor:
        """z (B, *canonical) of y (B, n, *view): the weighted pseudo-inverse; `like` has the canonical shape."""
        return self.solve(self.pull(lambda i, j: y[:, i:j], like))

    def blind(self, z: Tensor) -> Tensor | None:
        """(n, *view) bool, where a view shows nothing of the canonical space (beside a mesh); None: nowhere."""
        key = ("blind", tuple(z.shape[1:]))
        if key not in self._known:
            self._known[key] = None
            if not isinstance(self.A, (Crops, Segments)):
                r = noise((1, *z.shape[1:]), 1, stream=_STREAM, dtype=z.dtype, device=z.device)
                nothing = self.A(r)[0] == 0
                self._known[key] = nothing if bool(nothing.any()) else None
        return self._known[key]

    def check_white(self, z: Tensor) -> None:
        """Refuse views that make other than white noise of white noise: A_i A_i.T must be the identity.

        Raises:
            ValueError: names the view.
        """
        key = ("white", tuple(z.shape[1:]))
        if key in self._known or isinstance(self.A, (Crops, Segments)):
            return
        shape = self.shape(z)
        for k in range(shape[0]):
            one = self.A.operators[k] if isinstance(self.A, Stack) else None
            if one is not None and one.orthogonal:
                continue
            y = noise((1, 1, *shape[1:]), k, stream=_STREAM, dtype=torch.float64)
            part = self.part(k, k + 1)
            off = (part(part.adjoint(y)) - y).abs().max().item()
            if off > 1e-6:
                raise ValueError(
                    f"view {k}, {one or self.A!r}, does not keep noise white (A A.T differs from the identity by "
                    f"{off:.2g}), so its noise level would be wrong: with the state in canonical space views must move "
                    "pixels or be orthogonal; state='views' takes any"
                )
        self._known[key] = True


class Joint(Composed):
    """A denoiser that asks each of its parts about views of every row: its conditions have 1 or B n rows.

    Rows are items first: the n views of item 0, then those of item 1.
    """

    views: tuple[Views, ...]

    @classmethod
    def of(cls, made: Composed, *views: Views) -> Joint:
        """What `denoiser(...)` made, with the views that each part is asked about."""
        new = cls(made.fn, made.parts, **made._rest)
        new.views = views
        return new

    def rows(self, index: Any) -> Joint:
        parts = []
        for part, views in zip(self.parts, self.views, strict=True):
            if views.n is None:
                raise ValueError(f"how many views {views!r} has is not known before the first evaluation")
            parts.append(part.rows(spread(index, views.n)) if hasattr(part, "rows") else part)
        return Joint.of(Composed(self.fn, parts, **self._rest), *self.views)

    def fresh(self) -> Joint:
        return Joint.of(super().fresh(), *self.views)


def spread(index: Any, n: int) -> Any:
    """Rows of items as rows of their n views."""
    if isinstance(index, slice):
        if index.step not in (None, 1) or (index.start or 0) < 0 or (index.stop or 0) < 0:
            raise ValueError(f"rows of a joint denoiser are taken by number or by a plain slice, got {index}")
        return slice((index.start or 0) * n, None if index.stop is None else index.stop * n)
    index = torch.as_tensor(index)
    index = index.nonzero()[:, 0] if index.dtype == torch.bool else index.flatten()
    return (index[:, None] * n + torch.arange(n, device=index.device)).flatten()


def some(model: Any, b: int, i: int, j: int, n: int) -> Any:
    """The denoiser of views i to j - 1, of n, of b items.

    Raises:
        ValueError: conditions, weights or labels of another number of rows.
    """
    if odd := _kept(model) - {1, b * n}:
        raise ValueError(
            f"what a model is told of views has 1 row or {b * n}, the {n} views of each of {b}: got {min(odd)} rows"
        )
    if j - i == n or not hasattr(model, "rows"):
        return model
    return model.rows((torch.arange(b)[:, None] * n + torch.arange(i, j)).flatten())


def _kept(model: Any) -> set[int]:
    """How many rows there are of what a denoiser keeps by row, in all its parts that see the same."""
    if isinstance(model, Joint):
        return set()
    values = list(model._rest["rows"].values() if isinstance(model, Composed) else getattr(model, "bound", {}).values())
    values += [inner for value in values if isinstance(value, dict) for inner in value.values()]
    own = {len(value) for value in values if isinstance(value, Tensor) and value.ndim}
    return own.union(*map(_kept, model.parts if isinstance(model, Composed) else ()))


def each(value: Any, k: int) -> Any:
    """A value that may be kept by item, for k views of each."""
    return value.repeat_interleave(k, 0) if isinstance(value, Tensor) and value.ndim else value


def asked(model: Any, y: Tensor, t: Any, to: Any, i: int, n: int) -> Prediction:
    """What the model believes of views i, i + 1, ... of n: y (B, k, *view), its prediction with B k rows."""
    b, k = y.shape[:2]
    return call(some(model, b, i, i + k, n), y.flatten(0, 1), each(t, k), each(to, k))


def views_of(A: Any, weights: Any, chunk: int | None, holes: bool, model: Any) -> Views:
    """The views a method was given, whether as `Views` or as an operator."""
    if chunk is not None:
        stateless(model, "views in chunks are asked one chunk after the other; leave out chunk")
    if isinstance(A, Views):
        if weights is not None or chunk is not None:
            raise ValueError("these views have their own weights and chunk: give them to Views(...)")
        return A
    return Views(A, weights=weights, chunk=chunk, holes=holes)
