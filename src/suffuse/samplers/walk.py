"""Executing a plan: one loop for every table, and the steps it yields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from suffuse.denoise import call
from suffuse.parameterize import Prediction
from suffuse.samplers.symbols import NEGATIVE, Term

if TYPE_CHECKING:
    from suffuse.samplers.flow import Loop
    from suffuse.samplers.plan import Plan

__all__ = ["RunStep", "Walk", "combine"]


def combine(coefficients: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    """sum_i c_i y_i as one chain of multiply-adds."""
    out = terms[0] * coefficients[0]
    for c, y in zip(coefficients[1:], terms[1:], strict=True):
        out.add_(y, alpha=c)
    return out


class Walk:
    """What a run holds: the tensors later rows use, the denoiser, and the noise."""

    def __init__(self, plan: Plan, denoiser: Any, states: list[Tensor], path: Any) -> None:
        self.denoiser, self.path = denoiser, path
        self.values: dict[Term, Tensor] = {("x", i): s for i, s in enumerate(states)}
        self.sums: dict[Term, list[tuple[float, Tensor]]] = {}  # values not computed yet: sums to fold into a row
        self.prediction: Prediction | None = None
        self.current, self.nfe = len(states) - 1, 0
        self.partner: int | None = None

    def restart(self, state: Tensor) -> None:
        self.values, self.sums = {("x", 0): state}, {}
        self.current = 0
        if self.path is not None:
            self.path.renew()

    def row(self, plan: Plan, k: int) -> None:
        coefficients, terms, dead = plan.program[k]
        row, values = plan.rows[k], self.values
        numbers: list[float] = []
        tensors: list[Tensor] = []
        for c, term in zip(coefficients, terms, strict=True):
            if term not in values and term not in self.sums:
                self._make(plan, term, plan.grid[row.step + 1])
            for share, y in self.sums.get(term) or ((1.0, values[term]),):
                for n, other in enumerate(tensors):
                    if other is y:
                        numbers[n] += c * share
                        break
                else:
                    numbers.append(c * share)
                    tensors.append(y)
        values["x", k] = combine(numbers, tensors)
        for term in dead:
            values.pop(term, None)
            self.sums.pop(term, None)

    def _make(self, plan: Plan, term: Term, to: float) -> None:
        """Draw noise, or ask the denoiser at a state and keep what any row uses of its answer."""
        kind, i = term
        if kind == "z":
            self.values[term] = self._draw(plan, i)
            return
        x = self.values["x", i]
        self.nfe += 1
        self.prediction = None  # not to be held while the next one is made
        p = call(self.denoiser, x, plan.rows[i].t, to)
        if not isinstance(p, Prediction):
            raise TypeError(f"a denoiser must return a Prediction, got {type(p).__name__}")
        self.prediction = p
        for name, uses in plan.uses[i].items():
            of, quantity = (p.negative, name[: -len("_neg")]) if name in NEGATIVE else (p, name)
            if of is None:
                raise ValueError(
                    f"{plan.name} renoises with the negative's eps: hand it sf.guide(pos, neg, w), nothing around it"
                )
            if of.affine is None:
                self.values[name, i] = of.x0 if quantity == "x0" else of.eps
                continue
            output, shares = of.affine
            on_x, on_output = shares[quantity]
            if on_x == 0:
                self.sums[name, i] = [(on_output, output)]
            elif uses == 1 or {"x0", "eps"} <= plan.uses[i].keys():  # x and the output serve both
                self.sums[name, i] = [(on_x, x), (on_output, output)]
            else:  # one multiply-add now, the larger factor later; it stands for the output, which may go
                small, large, by = (output, x, on_x) if abs(on_output) <= abs(on_x) else (x, output, on_output)
                folded = torch.add(large, small, alpha=min(on_output, on_x, key=abs) / by)
                self.sums[name, i] = [(by, folded)]
                if name == "x0" and p.var is None and p.fraction is None:
                    self.prediction = Prediction(x, p.alpha, p.sigma, x0=lambda y=folded, c=by: c * y)

    def take(self, index: Tensor) -> None:
        """Keep these rows of the batch in everything later rows use."""
        taken: dict[Tensor, Tensor] = {}  # one tensor may stand in several places, and stays one

        def rows(y: Tensor) -> Tensor:
            if y not in taken:
                taken[y] = y[index]
            return taken[y]

        self.values = {term: rows(value) for term, value in self.values.items()}
        self.sums = {term: [(c, rows(y)) for c, y in parts] for term, parts in self.sums.items()}
        if hasattr(self.denoiser, "rows"):
            self.denoiser = self.denoiser.rows(index)

    def _draw(self, plan: Plan, number: int) -> Tensor:
        a, b = plan.noises[number]
        return self.path.increment(plan.schedule.logsnr(a), plan.schedule.logsnr(b))


class RunStep:
    """One finished grid interval of a run: from time t to time s, with the state x there.

    `.x` may be set; `.take(index)` keeps or repeats rows of the batch, history and conditions included;
    `.goto(k)` sends the run on from grid point k (the caller has set `.x` to a state at that noise level).
    `.nfe` is how many calls the run has made so far; `.n` is None where the number of steps is not known beforehand.
    """

    def __init__(self, k: int, n: int | None, t: float, s: float, walk: Walk | Loop) -> None:
        self.k, self.n, self.t, self.s, self._walk = k, n, t, s, walk
        self.nfe = walk.nfe
        self._key: Term = ("x", walk.current)
        self._x, self._prediction = walk.values[self._key], walk.prediction
        self._partner = None if walk.partner is None else walk.values["x", walk.partner]
        self.jump: int | None = None

    @property
    def x(self) -> Tensor:
        """The state at time s, (B, ...)."""
        return self._x

    @x.setter
    def x(self, value: Tensor) -> None:
        if value.shape != self.x.shape:
            raise ValueError(f"the state has shape {tuple(self.x.shape)}, got {tuple(value.shape)}")
        if self._walk.values.get(self._key) is not self._x:
            raise ValueError("this step is over: set .x before the run goes on")
        self._walk.values[self._key] = self._x = value

    @property
    def partner(self) -> Tensor | None:
        """The second state at time s, of a sampler that carries two (EDICT)."""
        return self._partner

    @property
    def prediction(self) -> Prediction:
        """What the denoiser last believed."""
        assert self._prediction is not None
        return self._prediction

    def take(self, index: Tensor) -> None:
        """Go on with these rows of the batch, in this order, repeated or left out."""
        walk = self._walk
        walk.take(index)
        self._x, self._prediction = walk.values[self._key], self.prediction.rows(index)
        self._partner = None if walk.partner is None else walk.values["x", walk.partner]
        if walk.path is not None:
            walk.path.resize(len(self._x))

    def goto(self, k: int) -> None:
        """Go on from grid point k, with history cleared."""
        self.jump = k
