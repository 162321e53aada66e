"""From data to the noise that `sample` would make it of: DDIM inversion with any deterministic sampler, and exactly.

z = x_1 / sqrt(alpha_1^2 + sigma_1^2)    with x_1 where the probability flow takes x_0 = data

A denoiser is not asked at t = 0, where eps has no meaning: the first step is taken with the eps it predicts at the end
of that step. Song et al. 2021 (DDIM), section 5.4, is this with `ddim`; `heun` comes back to about 1e-5 in 100 steps,
and `bdia` and `edict` to rounding, if the two states they carry are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from suffuse.denoise import check_range, fresh
from suffuse.samplers.flow import Loop, lift
from suffuse.samplers.inversion import bdia
from suffuse.samplers.plan import Plan, PlanError
from suffuse.samplers.rule import Rule
from suffuse.samplers.run import Grid, plan_for, walked
from suffuse.samplers.stages import heun
from suffuse.samplers.walk import RunStep

__all__ = ["decode_pair", "encode", "encode_pair"]


class _Upward:
    """A deterministic plan walked from its last time to its first.

    Args:
        plan: the one that is to be inverted. rule: what makes the plan upward. given: see `Rule.plan`.
    """

    def __init__(self, plan: Plan, rule: Rule, given: int = 0) -> None:
        self.plan, self.rule, self.given = plan, rule, given

    def run(self, denoiser: Any, x: Tensor, path: Any = None) -> Iterator[Any]:
        schedule, times = self.plan.schedule, self.plan.grid[::-1]
        loop, states = Loop(fresh(denoiser), x), [x]
        noise_only = schedule(times[-1])[0] == 0
        if noise_only and len(times) == 2:
            raise ValueError("one step from data to pure noise (alpha = 0) keeps nothing of the data: take more steps")
        if times[0] == 0 or self.given:
            loop.x = lift(loop, x, times[0], times[1])
            states, times = ([x, loop.x], times) if self.given else ([loop.x], times[1:])
            yield RunStep(0, self.plan.steps, self.plan.grid[-1], self.plan.grid[-2], loop)
        if len(times) > 1 + self.given:
            try:
                plan = self.rule.plan(schedule, times, given=self.given, backward=True)
            except (ZeroDivisionError, PlanError) as error:
                if not noise_only:
                    raise
                raise ValueError(
                    f"{self.rule} cannot walk up to pure noise (alpha = 0 at t={times[-1]:g}): use sf.samplers.heun, "
                    "or a grid from a time below that"
                ) from error
            yield from plan.run(denoiser, states)


def _planned(denoiser: Any, x0: Tensor, rule: Any, steps: int | None, nfe: int | None, grid: Grid | None) -> Plan:
    check_range(x0, "x0")
    if not isinstance(rule, Rule):
        raise TypeError(f"to go back takes a rule such as sf.samplers.heun, got {type(rule).__name__}")
    plan = plan_for(denoiser.schedule, sampler=rule, steps=steps, nfe=nfe, grid=grid)
    if plan.stochastic:
        raise ValueError(f"{rule} draws noise and has no way back: use a deterministic sampler")
    return plan


def encode(
    denoiser: Any,
    x0: Tensor,
    *,
    sampler: Any = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid | None = None,
    grad: bool = False,
) -> Tensor:
    """The noise z that `sf.sample(denoiser, z, sampler=sf.samplers.heun, steps=steps)` makes into x0.

    Also with another sampler, as far as both are near the exact flow; nearest with the same one and the same grid.

    Args:
        denoiser: (x, t) -> Prediction with a `.schedule`; its conditions, guidance too, are those of `sample`.
        x0: (B, ...) data in the denoiser's units.
        sampler: a deterministic rule, by default `heun`, or `adaptive()`. Rules of integrators in data prediction, such
            as `dpmpp`, cannot start from data on schedules that end in pure noise.
        steps, nfe, grid: as for `sample`, the same grid walked upward. A grid from a time below 1 encodes up to there,
            and one that ends above 0 takes x0 as the state at its last time.
        grad: whether gradients flow through the whole run.
    Returns:
        (B, ...) about standard normal, where the data has about unit variance.
    Raises:
        ValueError: no budget or two; a sampler that draws noise, or cannot walk up to pure noise.
        TypeError: a sampler that has no way back.
    """
    if hasattr(sampler, "between"):
        if steps is not None or nfe is not None or grid is not None:
            raise ValueError(f"a {type(sampler).__name__} has its own steps: leave out steps, nfe and grid")
        check_range(x0, "x0")
        up, top = sampler.between(0.0, 1.0), 1.0
    else:
        rule = heun if sampler is None else sampler
        plan = _planned(denoiser, x0, rule, steps, nfe, grid)
        up, top = _Upward(plan, rule), plan.grid[0]
    z = x0
    for step in walked(up, denoiser, x0, None, grad):
        z = step.x
    alpha, sigma = denoiser.schedule(top)
    return z / (alpha * alpha + sigma * sigma) ** 0.5


def encode_pair(
    denoiser: Any,
    x0: Tensor,
    *,
    sampler: Rule = bdia,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid | None = None,
    grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """Encode x0 so that `decode_pair` with the same arguments returns it to rounding, at any number of steps.

    The price is a second state: BDIA needs the last two, and of EDICT's two neither is enough.

    Args:
        denoiser, x0, steps, nfe, grid, grad: as for `encode`.
        sampler: `bdia(gamma=...)` with gamma > 0, or `edict(p=...)`.
    Returns:
        Two states (B, ...), at their own noise levels: for `decode_pair`.
    Raises:
        TypeError: another sampler.
        ValueError: no budget or two; gamma that is not positive; a single step.
    """
    plan = _planned(denoiser, x0, sampler, steps, nfe, grid)
    pair = x0, x0
    if _coupled(plan):
        for step in walked(sampler.plan(plan.schedule, plan.grid[::-1], backward=True), denoiser, x0, None, grad):
            assert step.partner is not None
            pair = step.x, step.partner
        return pair
    if "gamma" not in sampler.options:
        raise TypeError(f"only bdia and edict can be run back exactly, got {sampler!r}")
    gamma = sampler.options["gamma"]
    if not gamma > 0 or plan.steps < 2:
        raise ValueError(f"bdia comes back with gamma > 0 and at least two steps, got {gamma:g} and {plan.steps}")
    for step in walked(_Upward(plan, sampler(gamma=1 / gamma), given=1), denoiser, x0, None, grad):
        pair = step.x, pair[0]
    return pair


def decode_pair(
    denoiser: Any,
    pair: tuple[Tensor, Tensor],
    *,
    sampler: Rule = bdia,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid | None = None,
    grad: bool = False,
) -> Tensor:
    """The data x0 (B, ...) that `encode_pair` made this pair of, with the same arguments."""
    plan = _planned(denoiser, pair[0].new_zeros(()), sampler, steps, nfe, grid)
    two, out = _coupled(plan), pair[0]
    down = sampler.plan(plan.schedule, plan.grid, given=int(not two), partner=two)
    for step in walked(down, denoiser, list(pair), None, grad):
        out = step.x
    return out


def _coupled(plan: Plan) -> bool:
    return any(row.partner for row in plan.rows)
