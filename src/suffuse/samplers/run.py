"""`sample` and `run`: from noise to data, with any denoiser, sampler and grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from suffuse import grids
from suffuse.denoise import check_range, evaluating, networks
from suffuse.random import BrownianPath
from suffuse.samplers.adams import trig_adams
from suffuse.samplers.rule import Rule
from suffuse.samplers.walk import RunStep
from suffuse.schedules import Schedule

__all__ = ["default", "plan_for", "run", "sample"]

Grid = Callable[..., Tensor] | Tensor | Sequence[float]


def default(schedule: Schedule, steps: int, size: int = 1) -> tuple[Rule, partial[Tensor]]:
    """The sampler and the grid that `sample` uses when none is named: measured best by budget (docs/choosing.md).

    Args:
        size: numbers in one data point. What large ones show is decided at higher noise, where the grid then looks
            closer: its shift grows like size^(1/6) from 64 on.
    """
    larger = max(1.0, size / 64) ** (1 / 6)

    def made(order: int, corrector: int, shift: float, power: float) -> tuple[Rule, partial[Tensor]]:
        rule = trig_adams(order=order, corrector=corrector, spread=0.9, last=1)
        return rule, partial(grids.flow, shift=shift * larger, power=power)

    if steps < 9:  # a network, above all a guided one, is less smooth than a mixture: higher orders begin to pay later
        return made(2, 5, 1.3, 1.4)
    if steps < 13:
        return made(3, 4, 1.3, 1.5)
    return made(4, 5, 1.2, 1.5)


def plan_for(
    schedule: Schedule,
    *,
    sampler: Any = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid | None = None,
    start: float | None = None,
    size: int = 1,
) -> Any:
    """What `sample` would run with these arguments, to look at before paying for it: a `Plan` for every rule.

    `size` is how many numbers one data point has, which the default's grid depends on; `sample` has it from the noise.

    A sampler is anything with `.run(denoiser, x, path)` (which knows its own times: a `Plan`, or `adaptive()`), or with
    `.plan(schedule, grid)` that makes such a thing of a grid (a rule).

    Raises:
        ValueError: neither or both of `steps` and `nfe` (and no grid of times); a budget too small for one step; a
            budget for a sampler that knows its own times.
        TypeError: neither `.run` nor `.plan`.
    """
    if hasattr(sampler, "run"):
        own = "its own grid" if hasattr(sampler, "grid") else "its own steps"
        if steps is not None or nfe is not None or grid is not None:
            raise ValueError(f"a {type(sampler).__name__} has {own}: leave out steps, nfe and grid")
        if start is not None and hasattr(sampler, "grid") and abs(start - sampler.grid[0]) > 1e-9:
            raise ValueError(
                f"this {type(sampler).__name__} begins at t={sampler.grid[0]:g}, start asks for t={start:g}"
            )
        return sampler.between(start, 0.0) if start is not None and hasattr(sampler, "between") else sampler
    if sampler is not None and not hasattr(sampler, "plan"):
        raise TypeError(
            f"a sampler has .run(denoiser, x, path) or .plan(schedule, grid), {sampler!r} has neither: was it called?"
        )
    times = None if grid is None or callable(grid) else torch.as_tensor(grid, dtype=torch.float64)
    if times is not None:
        if steps is not None or nfe is not None:
            raise ValueError("a grid of times has its own number of steps: leave out steps and nfe")
        if start is not None:
            times = torch.cat([times.new_tensor([start]), times[times < start]])
        return (sampler or default(schedule, len(times) - 1, size)[0]).plan(schedule, times)
    if (steps is None) == (nfe is None):
        raise ValueError("say how long: steps=20 counts grid intervals, nfe=20 network evaluations (one of the two)")

    def build(n: int) -> Any:
        rule, spacing = default(schedule, n, size)
        spacing = spacing if grid is None else grid
        made = spacing(schedule, n) if start is None or start == 1.0 else spacing(schedule, n, start=start)  # type: ignore[operator]
        return (sampler or rule).plan(schedule, made)

    if steps is not None:
        return build(steps)
    assert nfe is not None
    for n in range(min(nfe, nfe // getattr(sampler, "stages", 1) + 2), 0, -1):
        plan = build(n)
        if plan.nfe <= nfe:
            return plan
    raise ValueError(f"nfe={nfe} is too few: one step of {sampler} costs more")


def run(
    denoiser: Any,
    noise: Tensor,
    *,
    sampler: Any = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid | None = None,
    seed: int | None = None,
    first: int = 0,
    start: tuple[Tensor, float] | None = None,
    grad: bool = False,
) -> Iterator[RunStep]:
    """Like `sample`, one step at a time: progress, previews, early stops and changes of state are the loop body.

    Yields:
        RunStep with `.k` of `.n`, times `.t` to `.s`, `.x` (settable), `.prediction`, `.take(index)`, `.goto(k)`.
    """
    schedule = getattr(denoiser, "schedule", None)
    if not isinstance(schedule, Schedule):
        raise TypeError(f"a denoiser needs a .schedule, {type(denoiser).__name__} has none: wrap it in sf.Denoiser")
    if not noise.is_floating_point():
        raise TypeError(f"noise must be floating point, got {noise.dtype}")
    time = None if start is None else float(start[1])
    if time is not None and not 0 < time <= 1:
        raise ValueError(f"start=(x0, t) needs a time in (0, 1], got {time:g}")
    size = noise[0].numel() if len(noise) else 1
    sampler = plan_for(schedule, sampler=sampler, steps=steps, nfe=nfe, grid=grid, start=time, size=size)
    time = sampler.grid[0] if hasattr(sampler, "grid") else time or 1.0
    alpha, sigma = schedule(time)
    if start is None:
        x = noise * (alpha * alpha + sigma * sigma) ** 0.5  # what data of unit variance would be there
    elif start[0].shape != noise.shape:
        raise ValueError(f"start has shape {tuple(start[0].shape)}, the noise {tuple(noise.shape)}")
    else:
        check_range(start[0], "start")
        x = alpha * start[0] + sigma * noise
    path = None if seed is None else BrownianPath(x.shape, seed, first=first, device=x.device, dtype=x.dtype)
    yield from walked(sampler, denoiser, x, path, grad)


def walked(sampler: Any, denoiser: Any, x: Any, path: Any, grad: bool) -> Iterator[RunStep]:
    """The steps of `sampler.run`, each taken with the networks in eval mode, and without gradients unless asked."""
    walk = sampler.run if grad else torch.no_grad()(sampler.run)
    steps_of, modules = walk(denoiser, x, path), [m for net in networks(denoiser) for m in net.modules()]
    while True:
        with evaluating(modules):  # around each step, so that what happens between them is the caller's own
            step = next(steps_of, None)
        if step is None:
            return
        yield step


def sample(
    denoiser: Any,
    noise: Tensor,
    *,
    sampler: Any = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid | None = None,
    seed: int | None = None,
    first: int = 0,
    start: tuple[Tensor, float] | None = None,
    grad: bool = False,
) -> Tensor:
    """Sample from a denoiser.

    Args:
        denoiser: (x, t) -> Prediction with a `.schedule`.
        noise: (B, ...) standard normal: `sf.noise(shape, seed)`. It starts at the noise level of the grid's first
            time, scaled as unit-variance data would be there.
        sampler: a rule such as `sf.samplers.dpmpp(order=3)`, a `Plan`, a sampler that chooses its own steps such as
            `sf.samplers.adaptive()` (leave out steps, nfe and grid), or None for the default of this budget.
        steps: grid intervals; or
        nfe: network evaluations, at most.
        grid: a function (schedule, steps) -> times such as `sf.grids.karras`, or the falling times themselves.
        seed: for stochastic samplers, which raise without one.
        first: number of the first row, when the batch is a part of a larger one: its noise is then the same.
        start: (x0, t): begin from data noised to time t (image to image) instead of from pure noise.
        grad: whether gradients flow through the whole run.
    Returns:
        (B, ...) what the denoiser's data looks like (latents, for a latent model: nothing is decoded).
    Raises:
        ValueError: no budget or two; a grid that does not fall; a stochastic sampler without a seed.
        TypeError: the denoiser has no schedule or does not return a Prediction.
    """
    out = noise
    for step in run(
        denoiser,
        noise,
        sampler=sampler,
        steps=steps,
        nfe=nfe,
        grid=grid,
        seed=seed,
        first=first,
        start=start,
        grad=grad,
    ):
        out = step.x
    return out
