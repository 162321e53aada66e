"""Rules: a sampler's step in its paper's symbols, which a grid turns into a `Plan`.

@sampler(order=1)
def ddim(step, eta=0.0):
    a, b, d = step.a, step.b, eta * step.posterior_std
    return b.alpha * a.x0 + sqrt(b.sigma**2 - d**2) * a.eps + d * step.z
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from suffuse.samplers.plan import Plan, Row
from suffuse.samplers.symbols import Symbol
from suffuse.schedules import Schedule

__all__ = ["Point", "Rule", "Step", "sampler"]


class Level:
    """A noise level: t, alpha, sigma, logsnr = log(alpha^2/sigma^2), rho = sigma/alpha."""

    def __init__(self, schedule: Schedule, t: float) -> None:
        self.t = t
        self.alpha, self.sigma = schedule(t)

    @property
    def logsnr(self) -> float:
        """log(alpha^2/sigma^2); infinite at the ends."""
        if self.sigma == 0:
            return math.inf
        return 2 * math.log(self.alpha / self.sigma) if self.alpha > 0 else -math.inf

    @property
    def rho(self) -> float:
        """sigma/alpha; infinite where alpha = 0."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf


class Point(Level):
    """A state of the plan: its level, x, and (each costs the one call of this state) x0 and eps."""

    def __init__(self, schedule: Schedule, t: float, index: int) -> None:
        super().__init__(schedule, t)
        self.index = index
        self.kept: Any = None

    @property
    def x(self) -> Symbol:
        """The state."""
        return Symbol({("x", self.index): 1.0})

    @property
    def x0(self) -> Symbol:
        """The clean data predicted there."""
        return Symbol({("x0", self.index): 1.0})

    @property
    def eps(self) -> Symbol:
        """The noise predicted there."""
        return Symbol({("eps", self.index): 1.0})


class Step:
    """What a rule sees: the point `a` it goes from, the level `b` it goes to, history, noise, and its place k of n."""

    def __init__(
        self, schedule: Schedule, a: Point, t: float, past: list[Point], rows: list[Row], k: int, n: int
    ) -> None:
        self._schedule, self._rows, self._past = schedule, rows, past
        self.a, self.b, self.k, self.n = a, Level(schedule, t), k, n

    def past(self, j: int) -> Point | None:
        """The point that the j-th step before this one started from, or None."""
        return self._past[-j] if 1 <= j <= len(self._past) else None

    def recent(self, p: int) -> list[Point]:
        """Up to p points, newest first, beginning with `a`."""
        return [self.a, *self._past[:-p:-1]] if p > 1 else [self.a]

    def point(self, x: Symbol, t: float) -> Point:
        """An extra state x at time t; it costs a call only if its x0 or eps is used."""
        level = Level(self._schedule, t)
        self._rows.append(Row(t, level.alpha, level.sigma, self.k, False, x.terms))
        return Point(self._schedule, t, len(self._rows) - 1)

    def keep(self, value: Any) -> None:
        """Leave something for later steps: `step.past(1).kept`."""
        self.a.kept = value

    @property
    def z(self) -> Symbol:
        """The noise of this step; the same value each time it is used."""
        return Symbol({("z", self.k): 1.0})

    @property
    def posterior_std(self) -> float:
        """Standard deviation of q(x_b | x_a, x0): sigma_b sqrt(1 - (alpha_a sigma_b / (alpha_b sigma_a))^2)."""
        a, b = self.a, self.b
        return b.sigma * math.sqrt(max(0.0, 1 - (a.alpha * b.sigma / (b.alpha * a.sigma)) ** 2))


class Rule:
    """A sampler: a rule with its options. Calling it with options returns the rule with these.

    Attributes:
        name, order, cold_order, stages: `order` with exact history, `cold_order` without any, calls a step.
    """

    def __init__(self, fn: Callable[..., Symbol], options: dict[str, Any], declared: dict[str, Any]) -> None:
        self.fn, self.options, self._declared = fn, options, declared
        self.name = fn.__name__
        self.__doc__ = fn.__doc__

    def __call__(self, **options: Any) -> Rule:
        unknown = set(options) - set(self.options)
        if unknown:
            takes = ", ".join(self.options) or "no options"
            raise TypeError(f"{self.name} does not take {sorted(unknown)[0]!r}: it takes {takes}")
        return Rule(self.fn, self.options | options, self._declared)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.options.items())})"

    def _resolve(self, key: str, default: Any) -> Any:
        value = self._declared.get(key, default)
        return value(**self.options) if callable(value) else value

    @property
    def order(self) -> float:
        """Order of accuracy when history is exact."""
        return self._resolve("order", 1)

    @property
    def cold_order(self) -> float:
        """Order of accuracy from a start without history."""
        return self._resolve("cold_order", self.order)

    @property
    def stages(self) -> int:
        """Network calls a step."""
        return self._resolve("stages", 1)

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise with these options."""
        from suffuse.schedules import Linear

        return self.plan(Linear(), [0.9, 0.6, 0.3]).stochastic

    @property
    def paper(self) -> str:
        """Where it is from: the last line of its docstring."""
        return (self.__doc__ or "").strip().splitlines()[-1].strip().rstrip(".")

    def plan(self, schedule: Schedule, grid: Sequence[float] | Tensor, *, given: int = 0) -> Plan:
        """The table of this sampler on a grid.

        Args:
            schedule: gives alpha and sigma.
            grid: falling times in [0, 1].
            given: how many grid points after the first are given states with their own predictions (exact history),
                instead of being stepped to.
        Raises:
            ValueError: fewer than two times, a time out of [0, 1], times that do not fall.
            PlanError: the rule breaks its law.
        """
        times = [float(t) for t in (grid.tolist() if isinstance(grid, Tensor) else grid)]
        if len(times) < 2:
            raise ValueError(f"a grid needs at least two times (one step), got {len(times)}")
        for a, b in zip(times, times[1:], strict=False):
            if not b < a:
                raise ValueError(f"the grid must fall from noise (t=1) to data (t=0), but {b:g} follows {a:g}")
        rows: list[Row] = []
        past: list[Point] = []
        level = Level(schedule, times[0])
        rows.append(Row(times[0], level.alpha, level.sigma, 0, True))
        a = Point(schedule, times[0], 0)
        for k, t in enumerate(times[1:]):
            step = Step(schedule, a, t, past, rows, k, len(times) - 1)
            terms = self.fn(step, **self.options).terms if k >= given else None
            rows.append(Row(t, step.b.alpha, step.b.sigma, k, True, terms))
            past.append(a)
            a = Point(schedule, t, len(rows) - 1)
        return Plan(
            repr(self),
            schedule,
            times,
            rows,
            given=given,
            excess=self._declared["excess"](**self.options) if self._declared.get("excess") else None,
            order=self.order,
            cold_order=self.cold_order,
            rebuild=lambda times: self.plan(schedule, times),
        )


def sampler(
    order: float | Callable[..., float] = 1,
    *,
    cold_order: float | Callable[..., float] | None = None,
    stages: int | Callable[..., int] = 1,
    excess: Callable[..., Callable[..., float] | None] | None = None,
) -> Callable[[Callable[..., Symbol]], Rule]:
    """Make a rule of a function `(step, **options) -> Symbol`.

    Args:
        order, cold_order, stages: numbers, or functions of the options.
        excess: function of the options -> the declared excess variance (see `Plan`), or None for exact.
    """
    declared: dict[str, Any] = {"order": order, "stages": stages, "excess": excess}
    if cold_order is not None:
        declared["cold_order"] = cold_order

    def make(fn: Callable[..., Symbol]) -> Rule:
        parameters = list(inspect.signature(fn).parameters.values())[1:]
        return Rule(fn, {p.name: p.default for p in parameters}, declared)

    return make
