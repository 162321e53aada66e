"""Fitted plans: the rule, the grid and the coefficients that follow one model's flow best for a given budget."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import call, evaluating, fresh, networks
from suffuse.samplers.plan import Plan, Row
from suffuse.samplers.run import default, plan_for, sample, walked
from suffuse.samplers.symbols import Term

__all__ = ["fit"]

_MOVES: dict[str, Any] = {  # how a choice is changed: a factor's log, or the values it may take
    "spread": 0.25,
    "shift": 0.3,
    "power": 0.15,
    "order": (2, 3, 4),
    "corrector": (3, 4, 5),
    "last": (1, 2, 3),
}


def fit(
    denoiser: Any,
    nfe: int,
    pilot: Tensor,
    *,
    reference: Tensor | None = None,
    trials: int = 60,
    held_back: float = 0.25,
    seed: int = 0,
) -> Plan:
    """A plan of `nfe` evaluations that lands closest to the fine solution from the same noise, for this denoiser.

    From the default of the budget, its options and its grid are searched; then each row's weights are solved for by
    least squares against the fine solution there, drawn to where they were. What counts is the RMSE on the pilots held
    back: the plan returned is never worse there than the default.

    Args:
        denoiser: told everything it will be told when the plan is used (conditions for each pilot, guidance).
        nfe: network evaluations of a run.
        pilot: (N, ...) noise as `sample` takes it; hundreds: with 64 the weights learn the pilots and nothing else.
        reference: (N, ...) where the flow takes the pilots; by default solved for in 200 evaluations.
        trials: options that are tried, each of them a run of 3/4 of the pilots.
        held_back: share of the pilots that only judges. seed: of the search.
    Returns:
        Plan; `plan.save(path)` and `Plan.load(path)` keep it.
    Raises:
        ValueError: fewer than 32 pilots; a share that leaves nothing to fit on or to judge by.
    """
    if len(pilot) < 32:
        raise ValueError(f"a fit needs hundreds of pilots, at least 32, got {len(pilot)}")
    if not 0 < held_back < 1:
        raise ValueError(f"held_back must lie between 0 and 1, got {held_back:g}")
    schedule = denoiser.schedule
    kept = len(pilot) - max(8, int(held_back * len(pilot)))
    parts = [slice(0, kept), slice(kept, len(pilot))]
    models = [denoiser.rows(part) if hasattr(denoiser, "rows") else denoiser for part in parts]
    if reference is None:
        reference = sample(denoiser, pilot, nfe=200)

    def miss(plan: Plan, which: int) -> float:
        made = sample(models[which], pilot[parts[which]], sampler=plan)
        error = (made - reference[parts[which]]).double().square().mean().sqrt().item()
        return error if math.isfinite(error) else math.inf

    size = pilot[0].numel()
    start = plan_for(schedule, nfe=nfe, size=size)
    rule, grid = default(schedule, nfe, size)
    options, spacing = dict(rule.options), dict(grid.keywords)

    def build(chosen: dict[str, Any]) -> Plan:
        made = rule(**{k: chosen[k] for k in options})
        return made.plan(schedule, grid.func(schedule, nfe, **{k: chosen[k] for k in spacing}))

    rng, width = random.Random(seed), 1.0
    best, chosen = miss(start, 0), options | spacing
    for _ in range(trials):
        tried = dict(chosen)
        for name in rng.sample(sorted(_MOVES), rng.choice((1, 2, 3))):
            move = _MOVES[name]
            tried[name] = (
                rng.choice(move) if isinstance(move, tuple) else tried[name] * math.exp(rng.gauss(0, width * move))
            )
        error = miss(build(tried), 0)
        width = min(max(width * (1.3 if error < best else 0.95), 0.2), 2.0)
        if error < best:
            best, chosen = error, tried
    plans = [start, build(chosen)]
    plans += [_solve(plan, models[0], pilot[parts[0]], reference[parts[0]]) for plan in plans]
    return min(plans, key=lambda plan: miss(plan, 1))


def _curve(denoiser: Any, x: Tensor, times: tuple[float, ...], fine: int) -> list[Tensor]:
    """The flow from x at times[0], at each of these falling times."""
    rule, grid = default(denoiser.schedule, fine, x[0].numel())
    between = [t for t in grid(denoiser.schedule, fine, start=times[0]).tolist() if t not in times]
    found, plan = {times[0]: x}, rule.plan(denoiser.schedule, sorted({*times, *between}, reverse=True))
    for step in walked(plan, denoiser, x, None, False):
        if step.s in times:
            found[step.s] = step.x.clone()
    return [found[t] for t in times]


def _solve(plan: Plan, denoiser: Any, noise: Tensor, end: Tensor, *, ridge: float = 1e-3, fine: int = 200) -> Plan:
    """The plan with, row by row, the weights of its predictions that come closest to the flow at the row's time.

    A row is c x + sum_j (what it takes from the prediction at state j); each of these shares gets one factor m_j, with
    ridge * N ||share_j||^2 (m_j - 1)^2 against leaving 1.
    """
    alpha, sigma = plan.schedule(plan.grid[0])
    x, asking = noise * math.hypot(alpha, sigma), fresh(denoiser)
    with torch.no_grad(), evaluating([m for net in networks(denoiser) for m in net.modules()]):
        curve = dict(zip(plan.grid, _curve(denoiser, x, plan.grid, fine), strict=True))
        curve[plan.grid[-1]] = end
        states: list[Tensor] = [x]
        asked: dict[int, Any] = {}
        rows: list[Row] = [plan.rows[0]]
        for row in plan.rows[1:]:
            shares: dict[int, Tensor] = {}
            carried = torch.zeros_like(x)
            for (kind, i), c in (row.terms or {}).items():
                if kind == "x":
                    carried += c * states[i]
                    continue
                if i not in asked:
                    asked[i] = call(asking, states[i], plan.rows[i].t, plan.grid[row.step + 1])
                part = c * (asked[i].x0 if kind == "x0" else asked[i].eps)
                shares[i] = shares[i] + part if i in shares else part
            factors = _ridge(
                torch.stack([s.flatten() for s in shares.values()]), (curve[row.t] - carried).flatten(), ridge
            )
            by = dict(zip(shares, factors, strict=True))
            terms: dict[Term, float] = {t: c * (1.0 if t[0] == "x" else by[t[1]]) for t, c in (row.terms or {}).items()}
            rows.append(replace(row, terms=terms))
            states.append(carried + sum(by[i] * s for i, s in shares.items()))
    return Plan(
        f"fitted {plan.name}",
        plan.schedule,
        plan.grid,
        rows,
        consistent=True,
        order=plan.order,
        cold_order=plan.cold_order,
    )


def _ridge(parts: Tensor, target: Tensor, ridge: float) -> list[float]:
    """m that minimises ||target - sum_j m_j parts_j||^2 + ridge sum_j ||parts_j||^2 (m_j - 1)^2."""
    parts, rest = parts.double(), (target - parts.sum(0)).double()
    gram = parts @ parts.T
    shift = torch.linalg.pinv(gram + ridge * gram.diagonal().diag(), hermitian=True) @ (
        parts @ rest
    )  # a share may be 0
    return (1 + shift).tolist()
