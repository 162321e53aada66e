"""Adaptive projected guidance: CFG without the part of its push that only makes x0 larger.

D = x0_pos - x0_neg,    D <- D + beta D_last,    D <- D min(1, r/|D|),    D = D_par + D_orth along and across x0_pos

x0 = x0_pos + (w - 1) (D_orth + eta D_par)                       eta = 1, beta = 0, r = infinity is CFG; w = 1 is off

The parallel part saturates; the orthogonal part adds detail. Norms and products are each sample's own.

Sadat et al. 2024 (Eliminating oversaturation and artifacts of high guidance scales in diffusion models), algorithm 1.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from suffuse.denoise import Composed, call, denoiser, together
from suffuse.guidance.guided import Guided, by_row, check_scale
from suffuse.parameterize import Prediction

__all__ = ["apg"]


class Momentum:
    """The last push of every row: a run's own state."""

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def rows(self, index: Any) -> Momentum:
        """For some rows of the batch."""
        new = Momentum()
        new.last = None if self.last is None else self.last[index]
        return new


def apg(
    pos: Any, neg: Any, w: float | Tensor, *, eta: float = 0.0, beta: float = -0.5, norm: float = math.inf
) -> Composed:
    """Guide by the part of the push that is orthogonal to x0.

    Args:
        pos, neg, w: as for `guide`.
        eta: share of the parallel part that is kept; 1 is CFG's.
        beta: momentum of the push from one evaluation to the next; negative ones keep it moving, 0 is off.
        norm: largest length r of the push of one sample, in units of the data; infinite is off.
    Raises:
        ValueError: w, eta or beta is not finite; norm is not positive; different schedules.
    """
    check_scale(w, pos, neg)
    if not (math.isfinite(eta) and math.isfinite(beta) and norm > 0):
        raise ValueError(f"apg takes finite eta and beta and a positive norm, got {eta}, {beta}, {norm}")
    numbers = {"eta": eta, "beta": beta, "norm": norm}
    return denoiser(
        _apg,
        parts=[pos, neg],
        name="apg",
        settings={"w": w} | numbers,
        rows={"w": w},
        extra=numbers,
        state=Momentum,
    )


def _apg(
    x: Tensor,
    t: Any,
    to: Any,
    pos: Any,
    neg: Any,
    *,
    w: float | Tensor,
    eta: float,
    beta: float,
    norm: float,
    state: Momentum,
) -> Prediction:
    if not isinstance(w, Tensor) and w == 1:
        alone = call(pos, x, t, to)
        return Guided.of(alone, alone, lambda: call(neg, x, t, to))
    yes, no = together([pos, neg], x, t, to)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (x.ndim - 1))

    push = yes.x0 - no.x0
    if beta:
        push = push if state.last is None else push + beta * state.last
        state.last = push
    if norm < math.inf:
        push = push * (norm / dot(push, push).clamp(min=1e-24).sqrt()).clamp(max=1)
    along = dot(push, yes.x0) / dot(yes.x0, yes.x0).clamp(min=1e-12) * yes.x0
    w = by_row(w, x)
    x0 = yes.x0 + (w - 1) * (push - (1 - eta) * along)
    return Guided.of(Prediction(x, yes.alpha, yes.sigma, x0=x0, fraction=yes.fraction), yes, no)
