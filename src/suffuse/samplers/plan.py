"""A sampler as a table: each new state is a linear combination of earlier states, predictions and noise.

    x_k = sum_i c_ki x_i + sum_j (a_kj x0_j + b_kj eps_j) + sum_m d_km z_m

One loop executes every table. A table is checked when it is built, with no network: were every evaluation to return
x0 = c and eps_i = (x_i - alpha_i c)/sigma_i (data that is one point), row k must carry weight alpha_k on c and noise
weights whose squares sum to sigma_k^2.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from suffuse import schedules
from suffuse.denoise import fresh
from suffuse.samplers.symbols import NEGATIVE, PREDICTED, Symbol, Term
from suffuse.samplers.two_time import check
from suffuse.samplers.walk import RunStep, Walk
from suffuse.schedules import Schedule

__all__ = ["Plan", "PlanError", "Row"]


_KEYS = ("name", "schedule", "grid", "rows", "given", "noises", "consistent", "order", "cold_order")


class PlanError(ValueError):
    """A table that breaks the law its rule declares."""


@dataclass(frozen=True)
class Row:
    """One state of a plan: where it is in noise, what it is made of, and the grid interval it belongs to.

    `terms` is None for a state that is given. `main` marks the state at the end of its interval. `inflated` is
    (i, carry, add) where the rule declares excess variance: e_row = carry e_i + add. `partner` marks the second state
    that a coupled sampler carries along, just before the main one.
    """

    t: float
    alpha: float
    sigma: float
    step: int
    main: bool
    terms: dict[Term, float] | None = None
    inflated: tuple[int, float, float] | None = None
    partner: bool = False


class Plan:
    """The table of a sampler on a grid. Made by a rule: `sf.samplers.ddim.plan(schedule, grid)`.

    Args:
        name: of the sampler, for messages.
        schedule: gives (alpha, sigma) at each time.
        grid: the falling times t_0 > ... > t_n.
        rows: the states in order; the first `given` + 1 are inputs.
        noises: the interval (from time, to time) that each noise z belongs to.
        consistent: whether the law holds only in the limit of small steps; the defect is then kept, not raised.
        order, cold_order: order of accuracy with exact history, and starting without any.
        rebuild: (grid) -> Plan of the same rule, used to jump within a run.
    Attributes:
        evaluated: the states at which the network is called, in order.
        draws, stochastic: the noises that are used, and whether there are any.
        guided: whether the negative of a guided denoiser is asked for (CFG++).
        program, uses: for the executor: each row's terms and which of them die with it; uses of x0 and eps by state.
        defect: how far the rows are from the law, at most: weight on clean data, and variance.
    Raises:
        PlanError: a row breaks the law; the message names the sampler, the row and the numbers.
    """

    def __init__(
        self,
        name: str,
        schedule: Schedule,
        grid: Sequence[float],
        rows: Sequence[Row],
        *,
        given: int = 0,
        noises: Sequence[tuple[float, float]] = (),
        consistent: bool = False,
        order: float = 1,
        cold_order: float | None = None,
        rebuild: Callable[[Sequence[float]], Plan] | None = None,
    ) -> None:
        self.name, self.schedule, self.grid, self.given = name, schedule, tuple(grid), given
        self.order, self.cold_order = order, order if cold_order is None else cold_order
        self.rows = _prune(rows)
        self._rebuild, self.noises, self.consistent = rebuild, tuple(noises), consistent
        used = [term for row in self.rows for term in row.terms or ()]
        self.evaluated = tuple(sorted({i for kind, i in used if kind in PREDICTED}))
        self.draws = tuple(sorted({i for kind, i in used if kind == "z"}))
        self.stochastic = bool(self.draws)
        self.guided = any(kind in NEGATIVE for kind, _ in used)
        self.defect = self._check(consistent)
        self.program = self._schedule_terms()
        self.uses: dict[int, dict[str, int]] = {i: {} for i in self.evaluated}  # how many rows use x0, eps, ...
        for kind, i in used:
            if kind in PREDICTED:
                self.uses[i][kind] = self.uses[i].get(kind, 0) + 1

    # What the table says

    @property
    def nfe(self) -> int:
        """How many network evaluations a run costs."""
        return len(self.evaluated)

    @property
    def steps(self) -> int:
        """How many grid intervals there are."""
        return len(self.grid) - 1

    def _check(self, consistent: bool) -> tuple[float, float]:
        draws = {i: n + 1 for n, i in enumerate(self.draws)}
        point = np.zeros(len(self.rows))
        noise = np.zeros((len(self.rows), len(draws) + 1 + self.given))
        excess, worst = np.zeros(len(self.rows)), (0.0, 0.0)
        rounding = np.zeros(len(self.rows))
        for k, row in enumerate(self.rows):
            if row.terms is None:
                # states that are given lie on one path of point-mass data: the same noise, at their own level
                point[k], noise[k, 0] = row.alpha, row.sigma
                continue
            if not all(math.isfinite(c) for c in row.terms.values()):
                raise PlanError(f"{self.name}: row {k} (t={row.t:.4g}) has a coefficient that is not finite")
            rounding[k] = 1e-14 * sum(abs(c) for c in row.terms.values())
            for (kind, i), c in row.terms.items():
                at = self.rows[i] if kind != "z" else None
                if kind == "x":
                    point[k] += c * point[i]
                    noise[k] += c * noise[i]
                elif kind in ("x0", "x0_neg"):
                    point[k] += c
                elif kind == "z":
                    noise[k, draws[i]] += c
                elif at is not None:
                    if at.sigma == 0:
                        raise PlanError(
                            f"{self.name}: row {k} uses eps at state {i}, where sigma = 0 and eps is undefined"
                        )
                    point[k] += c * (point[i] - at.alpha) / at.sigma
                    noise[k] += c * noise[i] / at.sigma
            variance, wanted = float(noise[k] @ noise[k]), row.sigma**2
            if row.inflated is not None:
                source, carry, add = row.inflated
                excess[k] = carry * excess[source] + add
                wanted += excess[k]
            scale = max(1.0, row.sigma**2)
            off = abs(point[k] - row.alpha) / math.sqrt(scale), abs(variance - wanted) / scale
            worst = max(worst[0], off[0]), max(worst[1], off[1])
            if consistent:
                continue
            if not off[0] <= 1e-9 + rounding[k]:
                raise PlanError(
                    f"{self.name}: row {k} (t={row.t:.4g}) puts weight {point[k]:.6g} on clean data, "
                    f"alpha there is {row.alpha:.6g}"
                )
            if not off[1] <= 1e-9 * min(1.0, max(row.sigma**2, 1e-3)) + rounding[k]:
                raise PlanError(
                    f"{self.name}: row {k} (t={row.t:.4g}) has noise variance {variance:.6g}, the law asks for "
                    f"{wanted:.6g} = sigma^2" + (f" + {excess[k]:.3g}" if excess[k] else "")
                )
        return worst

    def expand(self) -> tuple[np.ndarray, np.ndarray, list[Term]]:
        """The canonical form: every evaluated state and the last one in terms of the given states, x0_j and z.

        eps_j = (x_j - alpha_j x0_j)/sigma_j is used to remove eps, and likewise the negative's eps, whose x0 then
        stays beside the guided one: the two are different quantities.

        Returns:
            (times, C, terms): times of those states, and their coefficients C (states, terms).
        """
        asked = list(self.evaluated)
        shown = [*asked, len(self.rows) - 1]
        terms: list[Term] = [("x", i) for i in range(self.given + 1)]
        terms += [("x0", i) for i in asked] + [("z", i) for i in self.draws]
        terms += [("x0_neg", i) for i in asked if self.guided]
        column = {term: n for n, term in enumerate(terms)}
        full = np.zeros((len(self.rows), len(terms)))
        for k, row in enumerate(self.rows):
            if row.terms is None:
                full[k, column["x", k]] = 1
                continue
            for (kind, i), c in row.terms.items():
                if kind == "x":
                    full[k] += c * full[i]
                elif kind in ("eps", "eps_neg"):
                    full[k] += c / self.rows[i].sigma * full[i]
                    full[k, column[kind.replace("eps", "x0"), i]] -= c * self.rows[i].alpha / self.rows[i].sigma
                else:
                    full[k, column[kind, i]] += c
        return np.array([self.rows[k].t for k in shown]), full[shown], terms

    def __eq__(self, other: object) -> bool:
        """Equal tables: the same states asked, and the same combinations modulo x = alpha x0 + sigma eps."""
        if not isinstance(other, Plan):
            return NotImplemented
        (t, c, of), (u, d, by) = self.expand(), other.expand()
        if [kind for kind, _ in of] != [kind for kind, _ in by] or c.shape != d.shape:
            return False
        return bool(np.allclose(t, u, atol=1e-12) and np.allclose(c, d, rtol=1e-9, atol=1e-10))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        calls = f"{self.nfe} evaluation{'s' * (self.nfe != 1)}"
        lines = [
            f"{self.name} on {self.schedule}: {self.steps} steps, {calls}, order {self.order:g}",
            "   k       t   alpha   sigma   x[k] =",
        ]
        for k, row in enumerate(self.rows):
            made = "given" if row.terms is None else repr(Symbol(row.terms))
            mark = " " if row.main else "'"
            lines.append(f"{k:4d}{mark} {row.t:6.4f}  {row.alpha:6.4f}  {row.sigma:6.4g}   {made}")
        return "\n".join(lines)

    # How it is kept

    def to_json(self) -> dict[str, Any]:
        """The table as plain values: what `Plan.from_json` rebuilds, on any machine, to the last bit."""
        rows = [
            {
                "t": row.t,
                "step": row.step,
                "main": row.main,
                "terms": None if row.terms is None else [[kind, i, c] for (kind, i), c in row.terms.items()],
                "inflated": row.inflated,
                "partner": row.partner,
            }
            for row in self.rows
        ]
        return {
            "name": self.name,
            "schedule": self.schedule.to_json(),
            "grid": list(self.grid),
            "rows": rows,
            "given": self.given,
            "noises": [list(pair) for pair in self.noises],
            "consistent": self.consistent,
            "order": self.order,
            "cold_order": self.cold_order,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """A plan from `to_json`; its law is checked again.

        Raises:
            ValueError: keys that are missing or unknown. PlanError: the table breaks its law.
        """
        if set(data) != set(_KEYS):
            raise ValueError(f"a plan has the keys {', '.join(_KEYS)}, got {', '.join(data) or 'none'}")
        schedule = schedules.from_json(data["schedule"])
        rows = []
        for row in data["rows"]:
            alpha, sigma = schedule(row["t"])
            terms = None if row["terms"] is None else {(kind, i): c for kind, i, c in row["terms"]}
            inflated = None if row["inflated"] is None else tuple(row["inflated"])
            rows.append(Row(row["t"], alpha, sigma, row["step"], row["main"], terms, inflated, row["partner"]))
        rest = {key: data[key] for key in ("given", "consistent", "order", "cold_order")}
        noises = [(a, b) for a, b in data["noises"]]
        return cls(data["name"], schedule, data["grid"], rows, noises=noises, **rest)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON, whole or not at all."""
        path = Path(path)
        temporary = path.with_name(path.name + ".part")
        temporary.write_text(json.dumps(self.to_json()))
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read what `save` wrote."""
        return cls.from_json(json.loads(Path(path).read_text()))

    # How it runs

    def _schedule_terms(self) -> list[tuple[list[float], list[Term], list[Term]]]:
        """For each row: coefficients, terms, and the terms that no later row uses."""
        last: dict[Term, int] = {}
        for k, row in enumerate(self.rows):
            for term in row.terms or ():
                last[term] = k
        # a state must also live until it is evaluated
        for i in self.evaluated:
            asks = (k for k, row in enumerate(self.rows) if {(p, i) for p in PREDICTED} & (row.terms or {}).keys())
            last["x", i] = max(last.get(("x", i), 0), next(asks))
        program = []
        for k, row in enumerate(self.rows):
            terms = list(row.terms or ())
            dead = [term for term, end in last.items() if end == k]
            program.append(([row.terms[t] for t in terms] if row.terms else [], terms, dead))
        return program

    def run(self, denoiser: Any, x: Tensor | Sequence[Tensor], path: Any = None) -> Iterator[RunStep]:
        """Walk the table, one yielded `RunStep` per grid interval; the last one's `.x` is the result.

        Args:
            denoiser: (x, t) -> Prediction on this plan's schedule.
            x: the state at grid[0], (B, ...), already at that noise level; a list of states for a plan with
                given history or a partner.
            path: where noise comes from: `sf.BrownianPath(x.shape, seed)`. Needed by stochastic plans.
        Raises:
            ValueError: the plan is stochastic and there is no path; the denoiser lives on another schedule; a two-time
                network under a plan that mixes predictions.
        """
        if denoiser.schedule != self.schedule:
            raise ValueError(
                f"the plan is for {self.schedule}, the denoiser lives on {denoiser.schedule}: use denoiser.on(schedule)"
            )
        if self.stochastic and path is None:
            raise ValueError(f"{self.name} draws noise: give it a seed")
        check(self, denoiser)
        states = [x] if isinstance(x, Tensor) else list(x)
        if len(states) != self.given + 1:
            raise ValueError(f"{self.name} starts from {self.given + 1} given states, got {len(states)}")
        walk = Walk(self, fresh(denoiser), states, path)
        plan, offset, k = self, 0, self.given + 1
        while k < len(plan.rows):
            walk.row(plan, k)
            row = plan.rows[k]
            k += 1
            if not row.main:
                continue
            walk.current, walk.partner = k - 1, k - 2 if plan.rows[k - 2].partner else None
            step = RunStep(row.step + offset, self.steps, plan.grid[row.step], row.t, walk)
            yield step
            jump = step.jump
            del step  # it holds a state and a prediction that nothing else may need
            if jump is not None:
                if not 0 <= jump <= self.steps:
                    raise ValueError(f"cannot go to step {jump} of {self.steps}")
                if self._rebuild is None and jump < self.steps:
                    raise ValueError(
                        f"{self.name} is only a table (from a file or a fit), which cannot jump: use its rule"
                    )
                state, offset = walk.values["x", walk.current], jump
                if offset == self.steps:
                    return
                assert self._rebuild is not None
                plan, k = self._rebuild(self.grid[offset:]), 1
                walk.restart(state)

    def __call__(self, denoiser: Any, x: Tensor | Sequence[Tensor], path: Any = None) -> Tensor:
        """Run to the end and return the last state."""
        out = x if isinstance(x, Tensor) else x[-1]
        for step in self.run(denoiser, x, path):
            out = step.x
            del step
        return out


def _prune(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Leave out intermediate states that nothing uses, and terms whose coefficient is 0."""
    terms = [None if r.terms is None else {term: c for term, c in r.terms.items() if c != 0} for r in rows]
    keep: set[int] = set()
    for k in range(len(rows) - 1, -1, -1):
        if rows[k].main or rows[k].partner or terms[k] is None or k in keep:
            keep |= {k} | {i for kind, i in terms[k] or () if kind != "z"}
    new = {old: n for n, old in enumerate(sorted(keep))}
    made = []
    for k in sorted(keep):
        row, parts = rows[k], terms[k]
        if parts is not None:
            parts = {(kind, i if kind == "z" else new[i]): c for (kind, i), c in parts.items()}
        inflated = None if row.inflated is None else (new[row.inflated[0]], *row.inflated[1:])
        made.append(replace(row, terms=parts, inflated=inflated))
    return tuple(made)
