"""Parallel sampling: many steps of a plan at once, again and again until nothing changes.

A plan is a triangular system: each state is a sum over earlier states and over predictions at them. A round evaluates
the predictions at the guesses g_i of all states of a window, in one batched call, and then solves the rows anew, with
the drift eps - x0 frozen:

    x_k <- row_k(predictions at g) + sum_i (c_ki + e_ki)/(alpha_i + sigma_i) (x_i - g_i)

c_ki and e_ki are the row's weights on x0_i and eps_i: where x_i has moved from g_i and eps - x0 has not, x0 and eps
both have moved by (x_i - g_i)/(alpha_i + sigma_i). The fixed point is the plan's own result, and after r rounds r calls
are final at least.

Shih et al. 2023 (ParaDiGMS), algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import stateless
from suffuse.samplers.flow import Loop
from suffuse.samplers.plan import Plan
from suffuse.samplers.rule import Rule
from suffuse.samplers.symbols import PREDICTED, Term
from suffuse.samplers.walk import RunStep
from suffuse.schedules import Schedule

__all__ = ["Picard", "PicardPlan", "picard"]


class PicardPlan:
    """A plan solved in parallel.

    Args:
        plan: what is solved. tolerance, window: see `picard`.
    Attributes:
        schedule, grid, steps: the plan's; nfe: its sequential calls, which the number of rounds cannot exceed.
    """

    def __init__(self, plan: Plan, tolerance: float, window: int | None) -> None:
        self.plan, self.tolerance, self.window = plan, tolerance, window
        self.schedule, self.grid, self.steps, self.nfe = plan.schedule, plan.grid, plan.steps, plan.nfe
        asks = [(i, row.step) for row in reversed(plan.rows) for kind, i in row.terms or () if kind in PREDICTED]
        self.to = {i: plan.grid[step + 1] for i, step in asks}

    def __repr__(self) -> str:
        return f"picard({self.plan.name}, tolerance={self.tolerance:g}) on {self.schedule}: {self.steps} steps"

    def scale(self, k: int) -> float:
        """sqrt(alpha^2 + sigma^2) of state k."""
        return math.hypot(self.plan.rows[k].alpha, self.plan.rows[k].sigma)

    def follow(self, k: int) -> dict[int, float]:
        """How row k follows each state that it uses a prediction of."""
        gains: dict[int, float] = {}
        for (kind, i), c in (self.plan.rows[k].terms or {}).items():
            if kind in PREDICTED:
                gains[i] = gains.get(i, 0.0) + c / (self.plan.rows[i].alpha + self.plan.rows[i].sigma)
        return gains

    def run(self, denoiser: Any, x: Tensor | Sequence[Tensor], path: Any = None) -> Iterator[RunStep]:
        """Iterate; yields a `RunStep` whenever a round has made further states final. Its `.nfe` counts rounds.

        Args:
            denoiser: (x, t) -> Prediction on the plan's schedule; its batch is repeated by `.rows(index)`, and asked
                with t (window * B,).
            x, path: as for `Plan.run`; a stochastic plan's noise is drawn once, the same as the plan itself would draw.
        Raises:
            ValueError: as `Plan.run`; or the caller changed a step, which is one of many that are under way.
        """
        plan, states = self.plan, [x] if isinstance(x, Tensor) else list(x)
        if denoiser.schedule != self.schedule:
            raise ValueError(f"{self!r} cannot run a denoiser on {denoiser.schedule}: use denoiser.on(schedule)")
        if plan.stochastic and path is None:
            raise ValueError(f"{plan.name} draws noise: give it a seed")
        if len(states) != plan.given + 1:
            raise ValueError(f"{plan.name} starts from {plan.given + 1} given states, got {len(states)}")
        stateless(denoiser, "picard asks many times at once, again and again")
        work = _Rounds(self, denoiser, states, path)
        shown, rows = plan.given, plan.rows
        while work.final < len(rows):
            work.round()
            new = [k for k in range(shown + 1, work.final) if rows[k].main]
            if not new:
                continue
            work.x = work.state[new[-1]]
            step = RunStep(rows[new[-1]].step, self.steps, rows[shown].t, rows[new[-1]].t, work)
            yield step
            if step.jump is not None or work.x is not work.state[new[-1]]:
                raise ValueError("steps of a picard run are many at once: they cannot be set, and it cannot jump")
            shown = new[-1]


class _Rounds(Loop):
    """The guesses of a run.

    `state` are the rows' values, final below `final` and guessed from `solved` on; `answer` the predictions at `guess`.
    """

    def __init__(self, picard: PicardPlan, denoiser: Any, states: list[Tensor], path: Any) -> None:
        super().__init__(denoiser, states[-1], path)
        self.picard, plan = picard, picard.plan
        self.state: dict[int, Tensor] = dict(enumerate(states))
        self.final = self.solved = len(states)
        self.guess: dict[int, Tensor] = {}
        self.answer: dict[Term, Tensor] = {}
        self.settled: set[int] = set()
        self.follow = {k: picard.follow(k) for k in range(len(states), len(plan.rows))}
        for coefficients in plan.program:
            for term in coefficients[1]:
                if term[0] == "z" and term not in self.answer:
                    a, b = plan.noises[term[1]]
                    self.answer[term] = path.increment(plan.schedule.logsnr(a), plan.schedule.logsnr(b))

    def _at(self, k: int) -> Tensor:
        """The value of state k; before it was ever solved, where the flow of unit Gaussian data takes it."""
        if k < self.solved:
            return self.state[k]
        return self.state[self.solved - 1] * (self.picard.scale(k) / self.picard.scale(self.solved - 1))

    def _size(self, change: Tensor, k: int) -> float:
        return float(change.detach().flatten(1).square().mean(1).sqrt().max()) / self.picard.scale(k)

    def round(self) -> None:
        """One batched call, and the rows solved with its answers."""
        plan, tolerance = self.picard.plan, self.picard.tolerance
        asked = [i for i in plan.evaluated if i not in self.settled][: self.picard.window]
        if asked:
            self._ask(asked)
        end = next((k for k, js in self.follow.items() if any(i not in self.guess for i in js)), len(plan.rows))
        right = True
        for k in range(self.final, end):
            new = self._solve(k)
            sure = all(i in self.settled for i in self.follow[k])
            still = k < self.solved and self._size(new - self.state[k], k) <= tolerance
            self.state[k], self.solved = new, max(self.solved, k + 1)
            right = right and (sure or still)
            if right:
                self.final = k + 1
                if k in self.guess and self._size(new - self.guess[k], k) <= tolerance:
                    self.settled.add(k)

    def _ask(self, asked: list[int]) -> None:
        plan, first = self.picard.plan, self.state[0]
        self.guess |= {i: self._at(i) for i in asked}
        n, rows = len(asked), len(first)

        def each(values: list[float]) -> Tensor:
            clock = torch.float32 if first.device.type == "mps" else torch.float64
            return torch.tensor(values, dtype=clock, device=first.device).repeat_interleave(rows)

        part = self.denoiser
        if n > 1 and hasattr(part, "rows"):
            part = part.rows(torch.arange(rows, device=first.device).repeat(n))
        x, t = torch.cat([self.guess[i] for i in asked]), each([plan.rows[i].t for i in asked])
        p = self.ask(part, x, t, each([self.picard.to[i] for i in asked]))
        for name in {name for i in asked for name in plan.uses[i]}:
            of, quantity = (p.negative, name[: -len("_neg")]) if name.endswith("_neg") else (p, name)
            if of is None:
                raise ValueError(f"{plan.name} renoises with the negative's eps: hand it sf.guide(pos, neg, w)")
            for i, value in zip(asked, (of.x0 if quantity == "x0" else of.eps).chunk(n), strict=True):
                self.answer[name, i] = value
        last = max((n for n, i in enumerate(asked) if i < self.final), default=0)
        self.prediction = p.rows(slice(last * rows, (last + 1) * rows))
        self.settled |= {i for i in asked if i < self.final}

    def _solve(self, k: int) -> Tensor:
        total = torch.zeros_like(self.state[0])
        for (kind, i), c in (self.picard.plan.rows[k].terms or {}).items():
            total = total + c * (self.state[i] if kind == "x" else self.answer[kind, i])
        for i, gain in self.follow[k].items():
            if self.state[i] is not self.guess[i]:
                total = total + gain * (self.state[i] - self.guess[i])
        return total

    def take(self, index: Tensor) -> None:
        raise ValueError("steps of a picard run are many at once: rows cannot be taken from one")


class Picard:
    """What makes a `PicardPlan` of a grid; made by `picard` of a rule."""

    def __init__(self, rule: Rule, tolerance: float, window: int | None) -> None:
        self.rule, self.tolerance, self.window = rule, tolerance, window
        self.stages = rule.stages

    def __repr__(self) -> str:
        return f"picard({self.rule!r}, tolerance={self.tolerance:g})"

    def plan(self, schedule: Schedule, grid: Sequence[float] | Tensor) -> PicardPlan:
        """This sampler on falling times."""
        return PicardPlan(self.rule.plan(schedule, grid), self.tolerance, self.window)


def picard(sampler: Rule | Plan, tolerance: float = 1e-3, window: int | None = None) -> Picard | PicardPlan:
    """A sampler solved in parallel: the result of its plan, in fewer rounds than the plan has calls.

    Worth it where a batched call costs little more than a single one. All rows of the batch go on until the slowest has
    settled.

    Args:
        sampler: a rule (then a sampler for any grid) or a plan.
        tolerance: a state is final when a round changes it by less: root mean square over a row, in units of
            sqrt(alpha^2 + sigma^2), the largest over the batch.
        window: how many states are evaluated together, at most; None is all of them, in one batch of as many rows.
    Raises:
        TypeError: neither a rule nor a plan.
        ValueError: a tolerance that is negative or not finite, a window below 1.
    """
    if not (tolerance >= 0 and math.isfinite(tolerance)):
        raise ValueError(f"tolerance must be a number of at least 0, got {tolerance}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if isinstance(sampler, Plan):
        return PicardPlan(sampler, tolerance, window)
    if isinstance(sampler, Rule):
        return Picard(sampler, tolerance, window)
    raise TypeError(f"picard solves a rule or a plan in parallel, got {type(sampler).__name__}")
