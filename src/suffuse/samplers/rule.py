"""Rules: a sampler's step in its paper's symbols, which a grid turns into a `Plan`.

@sampler(order=1)
def ddim(step, eta=0.0):
    a, b, d = step.a, step.b, eta * step.posterior_std
    return b.alpha * a.x0 + sqrt(b.sigma**2 - d**2) * a.eps + d * step.z
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from suffuse.samplers.plan import Plan, Row
from suffuse.samplers.symbols import Symbol
from suffuse.schedules import Schedule

__all__ = ["Point", "Rule", "Step", "sampler"]

Made = Symbol | tuple[Symbol, Symbol]


class Level:
    """A noise level: t, alpha, sigma, logsnr = log(alpha^2/sigma^2), rho = sigma/alpha."""

    def __init__(self, schedule: Schedule, t: float) -> None:
        self._schedule, self.t = schedule, t
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

    @property
    def rates(self) -> tuple[float, float]:
        """(d alpha/dt, d sigma/dt)."""
        return self._schedule.rates(self.t)


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

    @property
    def negative(self) -> Negative:
        """What `neg` of `sf.guide(pos, neg, w)` predicts there; only guided denoisers can run such a plan."""
        return Negative(self.index)


class Negative:
    """What the negative of a guided denoiser predicts at a state: x0 and eps, of the same call."""

    def __init__(self, index: int) -> None:
        self.x0, self.eps = Symbol({("x0_neg", index): 1.0}), Symbol({("eps_neg", index): 1.0})


class Step:
    """What a rule sees: the point `a` it goes from, the level `b` it goes to, history, noise, and its place k of n."""

    def __init__(self, build: _Build, t: float, k: int) -> None:
        self._build = build
        self.a, self.b, self.k, self.n = build.a, Level(build.schedule, t), k, len(build.times) - 1
        self.inflated: tuple[int, float, float] | None = None

    @property
    def partner(self) -> Point:
        """The second state at `a`, of a rule that returns two (x_b, its partner); where it has none yet, `a` itself."""
        return self._build.partner or self.a

    def past(self, j: int) -> Point | None:
        """The point that the j-th step before this one started from, or None."""
        past = self._build.past
        return past[-j] if 1 <= j <= len(past) else None

    def recent(self, p: int) -> list[Point]:
        """Up to p points, newest first, beginning with `a`."""
        return [self.a, *self._build.past[:-p:-1]] if p > 1 else [self.a]

    def level(self, t: float) -> Level:
        """The noise level at a time."""
        return Level(self._build.schedule, t)

    def between(self, share: float) -> Level:
        """The level whose logsnr lies this share of the way from a to b; both must be finite."""
        return self.level(self._build.schedule.time(self.a.logsnr + share * (self.b.logsnr - self.a.logsnr)))

    def at_rho(self, rho: float) -> Level:
        """The level with sigma/alpha = rho, or t = 1 when the schedule does not go so far."""
        return self.level(min(1.0, self._build.schedule.time(-2 * math.log(rho)) if rho < math.inf else 1.0))

    def point(self, x: Symbol, t: float) -> Point:
        """An extra state x at time t; it costs a call only if its x0 or eps is used.

        Where excess variance was declared by `inflate`, it holds for this state too.
        """
        build = self._build
        level = Level(build.schedule, t)
        build.rows.append(Row(t, level.alpha, level.sigma, self.k, False, x.terms, self.inflated))
        return Point(build.schedule, t, len(build.rows) - 1)

    def keep(self, value: Any) -> None:
        """Leave something for later steps: `step.past(1).kept`."""
        self.a.kept = value

    def noise(self, start: float, end: float) -> Symbol:
        """The noise of the part of this step between two times; parts that overlap are not independent."""
        noises = self._build.noises
        if (start, end) not in noises[self._build.first_noise :]:
            noises.append((start, end))
        return Symbol({("z", noises.index((start, end), self._build.first_noise)): 1.0})

    @property
    def z(self) -> Symbol:
        """The noise of this step; the same value each time it is used."""
        return self.noise(self.a.t, self.b.t)

    def inflate(self, carry: float, add: float) -> None:
        """Declare excess variance, over sigma^2, of the states made from now on: e = carry e_a + add."""
        self.inflated = (self.a.index, carry, add)

    @property
    def posterior_std(self) -> float:
        """Standard deviation of q(x_b | x_a, x0): sigma_b sqrt(1 - (alpha_a sigma_b / (alpha_b sigma_a))^2).

        Towards more noise (inversion) it is 0: nothing is drawn there.
        """
        a, b = self.a, self.b
        if b.t > a.t:
            return 0.0
        return b.sigma * math.sqrt(max(0.0, 1 - (a.alpha * b.sigma / (b.alpha * a.sigma)) ** 2))


class _Build:
    """What is gathered while a rule walks a grid."""

    def __init__(self, schedule: Schedule, times: list[float]) -> None:
        level = Level(schedule, times[0])
        self.schedule, self.times = schedule, times
        self.rows = [Row(times[0], level.alpha, level.sigma, 0, True)]
        self.a = Point(schedule, times[0], 0)
        self.partner: Point | None = None
        self.past: list[Point] = []
        self.noises: list[tuple[float, float]] = []
        self.first_noise = 0

    def go(
        self,
        k: int,
        terms: dict[Any, float] | None,
        inflated: tuple[int, float, float] | None,
        partner: dict[Any, float] | None = None,
    ) -> None:
        """Take the state at times[k + 1], and the partner beside it."""
        t = self.times[k + 1]
        level = Level(self.schedule, t)
        self.partner = None
        if partner is not None:
            self.rows.append(Row(t, level.alpha, level.sigma, k, False, partner, partner=True))
            self.partner = Point(self.schedule, t, len(self.rows) - 1)
        self.rows.append(Row(t, level.alpha, level.sigma, k, True, terms, inflated))
        self.past.append(self.a)
        self.a = Point(self.schedule, t, len(self.rows) - 1)
        self.first_noise = len(self.noises)

    def rise(self, k: int) -> None:
        """Back to more noise: x_b = (alpha_b/alpha_a) x_a + fresh noise; history is of no use any more."""
        a, b = self.a, Level(self.schedule, self.times[k + 1])
        ratio = b.alpha / a.alpha
        fresh = math.sqrt(b.sigma**2 - (ratio * a.sigma) ** 2)
        self.noises.append((a.t, b.t))
        self.go(k, {("x", a.index): ratio, ("z", len(self.noises) - 1): fresh}, (a.index, ratio**2, 0.0))
        self.past.clear()


class Rule:
    """A sampler: a rule with its options. Calling it with options returns the rule with these.

    Attributes:
        name, order, cold_order, stages: `order` with exact history, `cold_order` without any, calls a step.
    """

    def __init__(self, fn: Callable[..., Made], options: dict[str, Any], declared: dict[str, Any]) -> None:
        self.fn, self.options, self._declared = fn, options, declared
        self.name = fn.__name__
        self.__doc__ = fn.__doc__

    def rising(self) -> Rule:
        """This sampler on grids that may rise: there it noises the state again (time travel, Restart)."""
        return Rule(self.fn, self.options, self._declared | {"rises": True})

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
    def guided(self) -> bool:
        """Whether it asks for the negative, so that only `sf.guide(pos, neg, w)` can run it."""
        from suffuse.schedules import Linear

        return self.plan(Linear(), [0.9, 0.6, 0.3]).guided

    @property
    def law(self) -> str:
        """What its rows obey for data that is one point: "exact", or "consistent" in the limit of small steps."""
        return self._declared["law"]

    @property
    def paper(self) -> str:
        """Where it is from: the last line of its docstring."""
        return (self.__doc__ or "").strip().splitlines()[-1].strip().rstrip(".")

    def plan(
        self,
        schedule: Schedule,
        grid: Sequence[float] | Tensor,
        *,
        given: int = 0,
        partner: bool = False,
        backward: bool = False,
    ) -> Plan:
        """The table of this sampler on a grid.

        Args:
            schedule: gives alpha and sigma.
            grid: falling times in [0, 1].
            given: how many grid points after the first are given states with their own predictions (exact history),
                instead of being stepped to.
            partner: start from two states at the first time, [x, partner], instead of one (EDICT).
            backward: run from data to noise instead, on a rising grid (inversion).
        Raises:
            ValueError: fewer than two times, a time out of [0, 1], times that do not fall (or, backward, rise).
            PlanError: the rule breaks its law.
        """
        if partner and given:
            raise ValueError(f"a plan starts from a partner or from given={given} later states, not from both")
        times = [float(t) for t in (grid.tolist() if isinstance(grid, Tensor) else grid)]
        if len(times) < 2:
            raise ValueError(f"a grid needs at least two times (one step), got {len(times)}")
        rises = self._declared.get("rises", False)
        for a, b in itertools.pairwise(times):
            if backward and not b > a:
                raise ValueError(f"a backward grid must rise from data (t=0) to noise (t=1), but {b:g} follows {a:g}")
            if not backward and (b == a or (b > a and not rises)):
                raise ValueError(f"the grid must fall from noise (t=1) to data (t=0), but {b:g} follows {a:g}")
        build = _Build(schedule, times)
        if partner:
            build.rows.append(replace(build.rows[0], main=False, partner=True))
            build.partner = Point(schedule, times[0], 1)
        for k, t in enumerate(times[1:]):
            if t > build.a.t and not backward:
                build.rise(k)
            elif k < given:
                build.go(k, None, None)
            else:
                step = Step(build, t, k)
                made = self.fn(step, **self.options)
                x, other = made if isinstance(made, tuple) else (made, None)
                build.go(k, x.terms, step.inflated, None if other is None else other.terms)
        return Plan(
            repr(self),
            schedule,
            times,
            build.rows,
            given=given + partner,
            noises=build.noises,
            consistent=self._declared["law"] == "consistent",
            order=self.order,
            cold_order=self.cold_order,
            rebuild=None if backward else lambda times: self.plan(schedule, times),
        )


def sampler(
    order: float | Callable[..., float] = 1,
    *,
    cold_order: float | Callable[..., float] | None = None,
    stages: int | Callable[..., int] = 1,
    law: str = "exact",
) -> Callable[[Callable[..., Made]], Rule]:
    """Make a rule of a function `(step, **options) -> Symbol`, or of one that returns two: x_b and its partner.

    Args:
        order, cold_order, stages: numbers, or functions of the options.
        law: "exact" (also with declared inflation, `step.inflate`), or "consistent": it holds as steps become small.
    """
    declared: dict[str, Any] = {"order": order, "stages": stages, "law": law}
    if cold_order is not None:
        declared["cold_order"] = cold_order

    def make(fn: Callable[..., Made]) -> Rule:
        parameters = list(inspect.signature(fn).parameters.values())[1:]
        return Rule(fn, {p.name: p.default for p in parameters}, declared)

    return make
