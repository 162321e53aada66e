"""Time grids: functions that return the falling times t_0 > ... > t_n of n steps, in float64.

Each takes (schedule, steps) first, so it can be handed to `sample(grid=...)` as it is; any falling tensor will do too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from suffuse.schedules import Discrete, Schedule, Shifted

__all__ = ["karras", "leading", "linspace", "logsnr", "trailing", "uniform"]


def _check(steps: int, start: float, end: float) -> None:
    if isinstance(steps, bool) or int(steps) != steps or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps}")
    if not 0 <= end < start <= 1:
        raise ValueError(f"a grid runs from start to end with 0 <= end < start <= 1, got {start:g} to {end:g}")


def _times(values: list[float]) -> Tensor:
    grid = torch.tensor(values, dtype=torch.float64)
    if not bool((grid[1:] < grid[:-1]).all()):
        raise ValueError(f"the grid repeats or rises: {[round(v, 6) for v in values]}; ask for fewer steps")
    return grid


def uniform(schedule: Schedule, steps: int, *, start: float = 1.0, end: float = 0.0) -> Tensor:
    """t_k = start + (end - start) k/n."""
    _check(steps, start, end)
    return _times([start + (end - start) * k / steps for k in range(steps)] + [end])


def _finest(schedule: Schedule) -> float:
    """The highest logsnr a network of this schedule was trained at: that of index 0, for a table."""
    table = schedule
    while isinstance(table, Shifted):
        table = table.base
    return schedule.logsnr(1 / table.steps) if isinstance(table, Discrete) else math.inf


def logsnr(
    schedule: Schedule,
    steps: int,
    *,
    start: float = 1.0,
    end: float = 0.0,
    highest: float = 10.0,
    lowest: float = -10.0,
) -> Tensor:
    """logsnr uniform from its value at `start` (or `lowest`, where that is infinite or below) to `highest`, then `end`.

    Lu et al. 2022 (DPM-Solver), section 4.1: the grid on which exponential integrators have their order.
    """
    _check(steps, start, end)
    low, high = max(schedule.logsnr(start), lowest), min(highest, schedule.logsnr(end), _finest(schedule))
    if low >= high:  # it begins where others end
        return uniform(schedule, steps, start=start, end=end)
    parts = steps if end > 0 else steps - 1  # to t = 0 the last jump is extra: its logsnr is infinite
    values = [schedule.time(low + (high - low) * k / parts) for k in range(1, steps)]
    return _times([start, *values, end])


def karras(
    schedule: Schedule,
    steps: int,
    *,
    rho: float = 7.0,
    start: float = 1.0,
    end: float = 0.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
) -> Tensor:
    """s = sigma/alpha with s^(1/rho) uniform from s(start) (at most `sigma_max`) to `sigma_min`, then `end`.

    Karras et al. 2022, eq. 5.
    """
    _check(steps, start, end)
    high = min(math.exp(-schedule.logsnr(start) / 2) if schedule.logsnr(start) > -60 else math.inf, sigma_max)
    low = max(sigma_min, math.exp(-min(schedule.logsnr(end), _finest(schedule), 60.0) / 2))
    if low >= high:
        return uniform(schedule, steps, start=start, end=end)
    parts = steps if end > 0 else steps - 1
    values = []
    for k in range(1, steps):
        s = (high ** (1 / rho) + k / parts * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        values.append(schedule.time(-2 * math.log(s)))
    return _times([start, *values, end])


def _indices(T: int, indices: list[int], start: float, end: float) -> Tensor:
    """Times of falling indices; from a later start, the part of the grid below it."""
    times = [(i + 1) / T for i in indices]
    if start < 1:
        times = [start, *[t for t in times if t < start]]
    return _times([*times, end])


def _discrete(schedule: Schedule, steps: int) -> int:
    if not isinstance(schedule, Discrete):
        raise TypeError(f"this spacing is of the indices of a Discrete schedule, got {schedule}")
    if not 1 <= steps <= schedule.steps:
        raise ValueError(f"steps must be in 1..{schedule.steps}, got {steps}")
    return schedule.steps


def leading(schedule: Schedule, steps: int, *, offset: int = 0, start: float = 1.0, end: float = 0.0) -> Tensor:
    """Indices k (T // n) + offset, falling: what DDIM and Stable Diffusion (offset 1) used.

    Args:
        end: the last time; 0.0 ends at clean data, 1/T at the first index ("set_alpha_to_one=False").
    Lin et al. 2024, table 2.
    """
    T = _discrete(schedule, steps)
    return _indices(T, [k * (T // steps) + offset for k in range(steps)][::-1], start, end)


def linspace(schedule: Schedule, steps: int, *, start: float = 1.0, end: float = 0.0) -> Tensor:
    """Indices 0 to T - 1 in n equal parts, rounded, falling.   Lin et al. 2024, table 2."""
    T = _discrete(schedule, steps)
    indices = [round((T - 1) * k / (steps - 1)) for k in range(steps)][::-1] if steps > 1 else [T - 1]
    return _indices(T, indices, start, end)


def trailing(schedule: Schedule, steps: int, *, start: float = 1.0, end: float = 0.0) -> Tensor:
    """Indices T - 1, T - 1 - T/n, ..., rounded: begins at pure noise.   Lin et al. 2024, table 2."""
    T = _discrete(schedule, steps)
    return _indices(T, [round(T - T / steps * k) - 1 for k in range(steps)], start, end)
