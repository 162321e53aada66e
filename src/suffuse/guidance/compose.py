"""Several conditions at once: AND by positive weights, NOT by negative ones.

x0 = x0_base + sum_i w_i (x0_i - x0_base)          the score of p(x_t) prod_i (p(x_t | c_i) / p(x_t))^(w_i)

With all weights 1 that is p(x_t | c_1, ..., c_n) exactly where the conditions are independent given x_t, at every noise
level; otherwise what is sampled is near it, not it.

Liu et al. 2022 (Compositional visual generation with composable diffusion models).
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from suffuse.denoise import Composed, denoiser, together
from suffuse.guidance.guided import Guided, by_row
from suffuse.parameterize import Prediction

__all__ = ["compose"]


def compose(base: Any, *terms: tuple[Any, float | Tensor]) -> Composed:
    """compose(model, (model.given(text="a red square"), 3.0), (model.given(text="a circle"), -1.0)).

    Args:
        base: told nothing. terms: (denoiser, weight) each; a weight is a number, or (B,). Positive is AND, negative
            NOT. All bindings of one model are one batch; a term of weight 0 costs nothing.
    Raises:
        ValueError: no terms; a weight that is not finite; different schedules.
    """
    if not terms:
        raise ValueError("compose needs at least one (denoiser, weight) beside the base")
    weights = {f"w{i}": w for i, (_, w) in enumerate(terms)}
    for name, w in weights.items():
        if not (bool(w.isfinite().all()) if isinstance(w, Tensor) else math.isfinite(w)):
            raise ValueError(f"weight {name[1:]} must be a finite number, got {w}")
    parts = [base, *(part for part, _ in terms)]
    return denoiser(_composed, parts=parts, name="compose", settings=weights, rows=weights)


def _composed(x: Tensor, t: Any, to: Any, base: Any, *parts: Any, **weights: float | Tensor) -> Prediction:
    kept = [(p, w) for p, w in zip(parts, weights.values(), strict=True) if isinstance(w, Tensor) or w != 0]
    own, *others = together([base, *(p for p, _ in kept)], x, t, to)
    out = own
    for p, (_, w) in zip(others, kept, strict=True):
        out = out + (p - own) * by_row(w, x)
    out.fraction = own.fraction
    return Guided.of(out, own, own)
