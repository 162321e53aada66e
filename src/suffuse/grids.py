"""Time grids: functions that return the falling times t_0 > ... > t_n of n steps, in float64.

Each takes (schedule, steps) first, so it can be handed to `sample(grid=...)` as it is; any falling tensor will do too.
`restart` and `time_travel` make grids that rise, for `sampler.rising()`, of ones that fall.

A resolution shift needs no grid of its own: `model.on(schedule.shift(3.0))` with any of these asks the model at the
shifted times (Esser et al. 2024, eq. 23).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from suffuse.schedules import Discrete, Schedule, Shifted

__all__ = [
    "beta",
    "cosine",
    "flow",
    "indices",
    "karras",
    "leading",
    "linspace",
    "logsnr",
    "quadratic",
    "restart",
    "time_travel",
    "trailing",
    "uniform",
]


def _check(steps: int, start: float, end: float) -> None:
    if isinstance(steps, bool) or int(steps) != steps or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps}")
    if not 0 <= end < start <= 1:
        raise ValueError(f"a grid runs from start to end with 0 <= end < start <= 1, got {start:g} to {end:g}")


def _times(values: list[float]) -> Tensor:
    grid = torch.tensor(values, dtype=torch.float64)
    for k, (a, b) in enumerate(itertools.pairwise(grid.tolist())):
        if not b < a:
            raise ValueError(
                f"the grid repeats or rises: step {k + 1} of {len(grid) - 1} is from {a:g} to {b:g}; take fewer steps"
            )
    return grid


def _table(schedule: Schedule) -> Discrete | None:
    """The table a schedule was trained on, if it was."""
    while isinstance(schedule, Shifted):
        schedule = schedule.base
    return schedule if isinstance(schedule, Discrete) else None


def _spread(schedule: Schedule, steps: int, start: float, end: float, place: Callable[..., float]) -> Tensor:
    """place(share, start, end) at k/n, falling; on a table down to its first index, with one jump from there."""
    _check(steps, start, end)
    table = _table(schedule)
    first = 0.0 if table is None else 1 / table.steps
    if end < first < start and steps > 1:
        return _times([start, *[place(k / (steps - 1), start, first) for k in range(1, steps - 1)], first, end])
    return _times([start, *[place(k / steps, start, end) for k in range(1, steps)], end])


def uniform(schedule: Schedule, steps: int, *, start: float = 1.0, end: float = 0.0) -> Tensor:
    """t_k = start + (end - start) k/n."""
    _check(steps, start, end)
    return _times([start + (end - start) * k / steps for k in range(steps)] + [end])


def quadratic(schedule: Schedule, steps: int, *, start: float = 1.0, end: float = 0.0) -> Tensor:
    """sqrt(t) uniform: steps shrink towards the data.   Song et al. 2021 (DDIM)."""

    def place(share: float, a: float, b: float) -> float:
        return (math.sqrt(a) + share * (math.sqrt(b) - math.sqrt(a))) ** 2

    return _spread(schedule, steps, start, end, place)


def flow(
    schedule: Schedule, steps: int, *, start: float = 1.0, end: float = 0.0, shift: float = 1.0, power: float = 1.0
) -> Tensor:
    """v = sigma/(c alpha + sigma) falls like (1 - k/n)^p: on every schedule the times a flow would take.

    Args:
        shift: c, the sigma/alpha at which v is half way; 1 is the time of the flow itself.
        power: p; above 1 the steps shrink towards the data.
    """
    if not (shift > 0 and power > 0):
        raise ValueError(f"shift and power must be positive, got {shift:g} and {power:g}")

    def value(t: float) -> float:
        alpha, sigma = schedule(t)
        return (sigma / (shift * alpha + sigma)) ** (1 / power)

    def place(share: float, a: float, b: float) -> float:
        v = (value(a) + share * (value(b) - value(a))) ** power
        return min(max(schedule.time(2 * math.log((1 - v) / (shift * v))), b), a)

    _check(steps, start, end)
    table = _table(schedule)
    times = [start, *[place(k / steps, start, end) for k in range(1, steps)], end]
    if table is None or steps == 1 or times[-2] >= 1 / table.steps:
        return _times(times)
    return _spread(schedule, steps, start, end, place)  # a table has nothing below its first index


def cosine(schedule: Schedule, steps: int, *, start: float = 1.0, end: float = 0.0) -> Tensor:
    """t = end + (start - end) cos(pi k / 2n): small steps where the noise is, as flows for speech take them.

    Du et al. 2024 (CosyVoice); the sway sampling of Chen et al. 2024 (F5-TTS) at coefficient -1.
    """
    return _spread(schedule, steps, start, end, lambda share, a, b: b + (a - b) * math.cos(math.pi / 2 * share))


def beta(
    schedule: Schedule, steps: int, *, start: float = 1.0, end: float = 0.0, a: float = 0.6, b: float = 0.6
) -> Tensor:
    """t = end + (start - end) q(1 - k/n), q the quantiles of the Beta(a, b) distribution: small steps at both ends.

    Args:
        a, b: of the distribution, positive; below 1 the steps shrink at the data (a) and at the noise (b), 1 and 1 is
            `uniform`.
    Raises:
        ModuleNotFoundError: scipy is not installed.
    Lee et al. 2024 (Beta sampling is all you need).
    """
    from scipy.special import betaincinv

    if not (a > 0 and b > 0 and math.isfinite(a) and math.isfinite(b)):
        raise ValueError(f"a and b of the beta distribution must be positive numbers, got {a:g} and {b:g}")

    def place(share: float, high: float, low: float) -> float:
        return low + (high - low) * float(betaincinv(a, b, 1 - share))

    return _spread(schedule, steps, start, end, place)


def _finest(schedule: Schedule) -> float:
    """The highest logsnr a network of this schedule was trained at: that of index 0, for a table."""
    table = _table(schedule)
    return math.inf if table is None else schedule.logsnr(1 / table.steps)


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

    Karras et al. 2022, eq. 5; the defaults are EDM's rho and bounds.
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


def _at(T: int, indices: Sequence[int], start: float, end: float) -> Tensor:
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


def indices(schedule: Schedule, indices: Sequence[int] | Tensor, *, start: float = 1.0, end: float = 0.0) -> Tensor:
    """The times t = (i + 1)/T of these falling indices of a table of T, such as diffusers' timesteps, then `end`.

    Args:
        indices: whole numbers in 0..T - 1, falling.
        start: below 1, only indices below it are visited, from there.
    Raises:
        ValueError: an index that is not in the table, or that does not fall.
    """
    given = [float(i) for i in (indices.tolist() if isinstance(indices, Tensor) else indices)]
    T = _discrete(schedule, 1)
    for i in given:
        if i != int(i) or not 0 <= i < T:
            raise ValueError(f"an index of this table is a whole number in 0..{T - 1}, got {i:g}")
    for a, b in itertools.pairwise(given):
        if not b < a:
            raise ValueError(f"indices must fall from noise ({T - 1}) to data (0), but {b:g} follows {a:g}")
    return _at(T, [int(i) for i in given], start, end)


def leading(schedule: Schedule, steps: int, *, offset: int = 0, start: float = 1.0, end: float = 0.0) -> Tensor:
    """Indices k (T // n) + offset, falling: what DDIM and Stable Diffusion (offset 1) used.

    Args:
        end: the last time; 0.0 ends at clean data, 1/T at the first index ("set_alpha_to_one=False", with an offset).
    Lin et al. 2024, table 2.
    """
    T = _discrete(schedule, steps)
    return _at(T, [k * (T // steps) + offset for k in range(steps)][::-1], start, end)


def linspace(schedule: Schedule, steps: int, *, start: float = 1.0, end: float = 0.0) -> Tensor:
    """Indices 0 to T - 1 in n equal parts, rounded, falling.   Lin et al. 2024, table 2."""
    T = _discrete(schedule, steps)
    indices = [round((T - 1) * k / (steps - 1)) for k in range(steps)][::-1] if steps > 1 else [T - 1]
    return _at(T, indices, start, end)


def trailing(schedule: Schedule, steps: int, *, start: float = 1.0, end: float = 0.0) -> Tensor:
    """Indices T - 1, T - 1 - T/n, ..., rounded: begins at pure noise.   Lin et al. 2024, table 2."""
    T = _discrete(schedule, steps)
    return _at(T, [round(T - T / steps * k) - 1 for k in range(steps)], start, end)


def _falling(name: str, base: Sequence[float] | Tensor) -> list[float]:
    times = [float(t) for t in (base.tolist() if isinstance(base, Tensor) else base)]
    for a, b in itertools.pairwise(times):
        if not b < a:
            raise ValueError(f"{name} repeats parts of a grid that falls, but in this one {b:g} follows {a:g}")
    return times


def restart(
    base: Sequence[float] | Tensor,
    *,
    between: tuple[float, float],
    times: int = 1,
    down: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """The grid `base`, and each time it has come to `low` back up to `high` and down again; for `sampler.rising()`.

    Args:
        base: falling times, e.g. `grids.karras(schedule, 18)`.
        between: (low, high), times within the grid; they need not be on it.
        times: how often, 0 or more.
        down: the times of each way down, from high to low; by default those of `base`.
    Raises:
        ValueError: base does not fall; an interval that is not within it; a way down that does not fit.
    Xu et al. 2023 (Restart).
    """
    grid, (low, high) = _falling("restart", base), between
    if not grid[-1] <= low < high <= grid[0]:
        raise ValueError(
            f"between=(low, high) must lie within the grid, {grid[-1]:g} <= low < high <= {grid[0]:g}, got {between}"
        )
    if isinstance(times, bool) or int(times) != times or times < 0:
        raise ValueError(f"times must be a whole number of at least 0, got {times}")
    way = [high, *[t for t in grid if low < t < high], low] if down is None else _falling("restart", down)
    if (way[0], way[-1]) != (high, low):
        raise ValueError(f"down must go from high={high:g} to low={low:g}, it goes from {way[0]:g} to {way[-1]:g}")
    above, below = [t for t in grid if t > low], [t for t in grid if t < low]
    return torch.tensor([*above, low, *(way * int(times)), *below], dtype=torch.float64)


def time_travel(base: Sequence[float] | Tensor, *, jump: int, repeats: int) -> Tensor:
    """The grid `base` in blocks of `jump` steps, each walked `repeats` times; for `sampler.rising()`.

    Blocks are counted from the end of the grid; what is left at its start is walked once.

    Args:
        base: falling times. jump: steps in a block, from 1 to those of the grid. repeats: 1 or more, 1 is `base`.
    Raises:
        ValueError: base does not fall; a block or a number of repeats that makes no sense.
    Lugmayr et al. 2022 (RePaint), section 4.2.
    """
    grid = _falling("time_travel", base)
    steps = len(grid) - 1
    for name, value, most in (("jump", jump, steps), ("repeats", repeats, math.inf)):
        if isinstance(value, bool) or int(value) != value or not 1 <= value <= most:
            raise ValueError(f"{name} must be a whole number in 1..{most:g}, got {value}")
    out = grid[: steps % jump + 1]
    for begin in range(steps % jump, steps, jump):
        block = grid[begin : begin + jump + 1]
        out += [*block[1:], *(block * (repeats - 1))]
    return torch.tensor(out, dtype=torch.float64)
