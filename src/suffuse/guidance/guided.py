"""What every guided prediction carries: the two beliefs it was made from, so that further rules can look at them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import Denoiser, Told
from suffuse.parameterize import Prediction
from suffuse.schedules import left

__all__ = ["Guided", "by_row", "check_scale", "scale"]

_OFF = {"imagen": 1.0, "ho": 0.0}
Lazy = Prediction | Callable[[], Prediction] | None


class Guided(Prediction):
    """A prediction that knows `.positive`, what it was before guidance, and `.negative`, what it was guided away from.

    `rescale` compares with the positive, CFG++ renoises with the negative.
    """

    __slots__ = ("positive",)
    positive: Prediction

    @classmethod
    def of(cls, p: Prediction, positive: Prediction, negative: Lazy = None) -> Guided:
        """The same values, made from these two."""
        new = cls(p._x, p.alpha, p.sigma, x0=p._x0, eps=p._eps, var=p.var, fraction=p.fraction)
        new.affine, new.positive, new._negative = p.affine, positive, negative
        return new

    @property
    def off(self) -> bool:
        """Whether this is the positive itself: w = 1, or outside the interval."""
        return self._x0 is self.positive._x0 and self._eps is self.positive._eps


def rebuilt(p: Prediction, x0: Callable[[], Tensor]) -> Prediction:
    """Another x0 at the same x, eps with it; what `p` was made from stays."""
    new = Prediction(lambda: p.x, p.alpha, p.sigma, x0=x0, fraction=p.fraction)
    return Guided.of(new, p.positive, p._negative) if isinstance(p, Guided) else new


def check_scale(w: float | Tensor, pos: Any = None, neg: Any = None) -> None:
    """Refuse a scale that is no number, a model with guidance folded in, a negative prompt that w = 1 would never ask.

    Raises:
        ValueError: any of these.
    """
    finite = bool(w.isfinite().all()) if isinstance(w, Tensor) else math.isfinite(w)
    if not finite:
        raise ValueError(f"w must be a finite number, got {w}")
    if (isinstance(w, Tensor) or w != 1) and isinstance(pos, Denoiser) and "w" in pos.conditions:
        raise ValueError("guidance is folded into this model and would act twice: tell it the scale by .given(w=...)")
    if isinstance(w, Tensor) or w != 1 or not (isinstance(pos, Denoiser) and isinstance(neg, Denoiser)):
        return
    told = [k for k, v in neg.bound.items() if k not in pos.bound or not _equal(v, pos.bound[k])]
    if pos.net is neg.net and told:
        raise ValueError(
            f"the negative is told {told[0]!r}, but w=1 is off and would never ask it: choose another w, leave the "
            "negative out, or for CFG++ at 1 give w as a tensor, which is never off"
        )


def _equal(a: Told, b: Told) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def by_row(w: float | Tensor, x: Tensor) -> float | Tensor:
    """A scale as x (B, ...) is multiplied with: a number, or (B,) as (B, 1, ...).

    Raises:
        ValueError: a tensor for another number of rows.
    """
    if not isinstance(w, Tensor) or w.numel() == 1:
        return w.to(x).reshape(()) if isinstance(w, Tensor) else w
    if w.shape != x.shape[: w.ndim]:
        raise ValueError(f"a scale is one number, or one for each of {len(x)} rows, got shape {tuple(w.shape)}")
    return left(w, x)


def scale(w: float, *, of: str, to: str = "imagen") -> float:
    """A guidance scale of one published convention in another; everything in suffuse takes "imagen".

    "imagen"   neg + w (pos - neg), 1 is off         Saharia et al. 2022, eq. 2; what most libraries and papers use
    "ho"       (1 + w) pos - w neg, 0 is off         Ho & Salimans 2022, eq. 6

    Args:
        w: the scale. of: its convention. to: the one wanted.
    Raises:
        ValueError: an unknown convention.
    """
    for name in (of, to):
        if name not in _OFF:
            raise ValueError(f"a convention is one of {', '.join(map(repr, _OFF))}, got {name!r}")
    return w - _OFF[of] + _OFF[to]
