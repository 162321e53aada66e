"""Linear combinations of what a sampler may use: states x, predictions x0 and eps, and fresh noise z.

A rule is run on these instead of on tensors; what it returns is a row of the plan's table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["NEGATIVE", "PREDICTED", "Symbol", "Term"]

Term = tuple[str, int]
"""("x", i) state i; ("x0", i) and ("eps", i) the prediction at state i, ("x0_neg", i) and ("eps_neg", i) that of the
negative it is guided away from; ("z", k) the noise of step k."""

NEGATIVE = ("x0_neg", "eps_neg")
PREDICTED = ("x0", "eps", *NEGATIVE)
"""The kinds of term that cost the call of their state."""


class Symbol:
    """sum_i c_i term_i with float coefficients; closed under + - and multiplication or division by numbers."""

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[Term, float]) -> None:
        self.terms = dict(terms)

    def _add(self, other: Any, sign: float) -> Symbol:
        if isinstance(other, (int, float)) and other == 0:
            return self  # so that sum([...]) works
        if not isinstance(other, Symbol):
            return NotImplemented
        terms = dict(self.terms)
        for term, c in other.terms.items():
            terms[term] = terms.get(term, 0.0) + sign * c
        return Symbol(terms)

    def __add__(self, other: Any) -> Symbol:
        return self._add(other, 1.0)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Symbol:
        return self._add(other, -1.0)

    def __neg__(self) -> Symbol:
        return self * -1.0

    def __mul__(self, scale: float) -> Symbol:
        if isinstance(scale, Symbol):
            raise TypeError("a sampler's rule must be linear in x, x0, eps and z: it multiplied two of them")
        return Symbol({term: float(scale) * c for term, c in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, scale: float) -> Symbol:
        return self * (1.0 / scale)

    def __repr__(self) -> str:
        return " ".join(f"{c:+.4f} {kind}[{i}]" for (kind, i), c in self.terms.items()) or "0"
