"""Denoisers: (x, t) -> Prediction, with the schedule they live on.

Any callable `(x, t)` or `(x, t, *, to=None)` that returns a `Prediction` and has `.schedule` is a denoiser.
`Denoiser` makes one from a network; `denoiser(fn, parts=[...])` makes one from others.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from suffuse.parameterize import Number, Parameterization, Prediction, named
from suffuse.schedules import Schedule

__all__ = ["Composed", "Condition", "Denoiser", "denoiser", "evaluating", "together"]


@runtime_checkable
class Condition(Protocol):
    """What a network may be told under one name: how a user's value is checked, and what "told nothing" is."""

    def check(self, name: str, value: Any) -> Tensor:
        """The value as a tensor whose first size is rows (1 or B); raises naming the value that does not fit."""
        ...

    def null(self, name: str, x: Tensor) -> Tensor:
        """The value that means "told nothing" for every row of x; raises if the network was not made for that."""
        ...


class _Passed:
    """A condition of a network that declares names only: passed on as it is, left out when not given."""

    def check(self, name: str, value: Any) -> Tensor:
        value = torch.as_tensor(value)
        return value[None] if value.ndim == 0 else value


def check_range(x: Tensor, what: str) -> None:
    """Refuse data that was plainly not scaled: integers, or values beyond +-30 (images lie in [-1, 1]).

    Raises:
        TypeError, ValueError: say what was seen. Not looked for on an accelerator.
    """
    if not x.is_floating_point():
        raise TypeError(f"{what} is {x.dtype}: scale it to floating point in about [-1, 1], as in x / 127.5 - 1")
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and x.numel():
        low, high = x.min().item(), x.max().item()
        if max(-low, high) > 30:
            raise ValueError(f"{what} runs from {low:g} to {high:g}: scale it to about [-1, 1], as in x / 127.5 - 1")


class _Base:
    """What every denoiser made here can do."""

    schedule: Schedule

    def __call__(self, x: Tensor, t: float | Tensor, *, to: float | Tensor | None = None) -> Prediction:
        raise NotImplementedError

    def on(self, schedule: Schedule, *, clip: bool = False) -> Composed:
        """The same beliefs on another schedule: exact, by matching logsnr and rescaling x.

        Args:
            schedule: the noise schedule to live on.
            clip: where `schedule` is noisier than this one ever is, answer as at t = 1. Off: that is an error.
        Raises:
            ValueError: `schedule` reaches a logsnr at t = 1 that this denoiser's schedule never has, and not `clip`.
        """
        here, there = self.schedule.logsnr(1.0), schedule.logsnr(1.0)
        short = there < here - 1e-6 * abs(here)
        if short and not clip:
            raise ValueError(
                f"{schedule} ends at logsnr {there:.3g}, noisier than {self.schedule} ever is ({here:.3g}): "
                "pass clip=True to answer there as at t=1"
            )
        return denoiser(
            _retimed,
            parts=[self],
            schedule=schedule,
            settings={"schedule": schedule},
            extra={"schedule": schedule, "rebuild": short},
            name="on",
        )


def _retimed(x: Tensor, t: Any, to: Any, part: Any, *, schedule: Schedule, rebuild: bool) -> Prediction:
    alpha, sigma = schedule(t, like=x)
    base = part.schedule

    def match(at: Any) -> Any:
        time = base.time(schedule.logsnr(at))
        return time.clamp(0, 1) if isinstance(time, Tensor) else min(max(time, 0.0), 1.0)

    time = match(t)
    a, s = base(time, like=x)
    scale = (a * a + s * s) ** 0.5 / (alpha * alpha + sigma * sigma) ** 0.5
    inner = call(part, x * scale, time, None if to is None else match(to))
    eps = None if rebuild else lambda: inner.eps
    return Prediction(x, alpha, sigma, x0=lambda: inner.x0, eps=eps, var=inner.var)


class Denoiser(_Base):
    """A network read as a denoiser.

    Args:
        net: called as `net(x, t, **conditions)` with x (B, ...) in the network's own dtype and t (B,).
        schedule: the noise schedule it was trained on.
        predicts: what its output means: "eps", "x0", "v", "velocity", "edm", or a `Parameterization`.
        condition: name -> `Condition`, or just names; by default what `net.conditions` declares.
        variance: "range" if the network answers 2 C channels, the second half v in [-1, 1] saying where the log
            variance of a step lies between its smallest and largest value (Nichol & Dhariwal 2021, eq. 15);
            `sf.samplers.ddpm_learned` uses it, other samplers do without.
    Raises:
        TypeError: `schedule` is not a Schedule.
        ValueError: an unknown parameterization or kind of variance.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        schedule: Schedule,
        predicts: str | Parameterization = "velocity",
        condition: Mapping[str, Condition] | Sequence[str] | None = None,
        *,
        variance: str | None = None,
    ) -> None:
        if variance not in (None, "range"):
            raise ValueError(f"variance must be None or 'range', got {variance!r}")
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule must be a Schedule such as sf.schedules.Linear(), got {schedule!r}")
        declared = getattr(net, "conditions", {}) if condition is None else condition
        if not isinstance(declared, Mapping):
            declared = {name: _Passed() for name in declared}
        self.net, self.schedule, self.parameterization, self.variance = net, schedule, named(predicts), variance
        self.conditions: dict[str, Any] = dict(declared)
        self.bound: dict[str, Tensor] = {}

    def __repr__(self) -> str:
        told = "".join(f", {name}" for name in self.bound)
        learned = "" if self.variance is None else f", variance {self.variance}"
        return f"{type(self.net).__name__}({self.schedule}, predicts {self.parameterization.name}{learned}{told})"

    def given(self, **conditions: Any) -> Denoiser:
        """This denoiser, told more.

        Args:
            conditions: values by name, for one or for every row of a batch; None takes a condition back.
        Raises:
            TypeError: a name the network does not take.
            ValueError: a value it cannot take.
        """
        new = copy.copy(self)
        new.bound = dict(self.bound)
        for name, value in conditions.items():
            if name not in self.conditions:
                takes = ", ".join(self.conditions) or "none"
                raise TypeError(f"unknown condition {name!r}: {type(self.net).__name__} takes {takes}")
            if value is None:
                new.bound.pop(name, None)
            else:
                new.bound[name] = self.conditions[name].check(name, value)
        return new

    def rows(self, index: Any) -> Denoiser:
        """The denoiser of some rows of a batch, with their conditions."""
        new = copy.copy(self)
        new.bound = {k: _pick(v, index) for k, v in self.bound.items()}
        return new

    def forget(self, rows: Tensor, x: Tensor) -> Denoiser:
        """The denoiser with some rows told nothing.

        Args:
            rows: (B,) bool, true where every bound condition is replaced by its null.
            x: the batch (B, ...) it will be asked about.
        """
        new = copy.copy(self)
        new.bound = {}
        for name, value in self.bound.items():
            if isinstance(self.conditions[name], _Passed):
                raise ValueError(f"{name!r} has no null: give the Denoiser a condition with one, such as nets.Label")
            null = self.conditions[name].null(name, x).to(value.dtype)
            mask = rows.reshape(-1, *[1] * (value.ndim - 1))
            new.bound[name] = torch.where(mask, null, value)
        return new

    def told(self, x: Tensor, to: Any = None) -> dict[str, Tensor]:
        """Every condition of the network as a tensor with x's rows, on x's device."""
        rows = x.shape[0]
        values: dict[str, Tensor] = {}
        for name, spec in self.conditions.items():
            if name == "to" and to is not None:
                value = _rows_of(to, x)
            elif name in self.bound:
                value = self.bound[name].to(x.device, non_blocking=True)
            elif isinstance(spec, _Passed):
                continue
            else:
                value = spec.null(name, x)
            if value.shape[0] not in (1, rows):
                raise ValueError(f"{name} was given for {value.shape[0]} rows, the batch has {rows}")
            values[name] = value.expand(rows, *value.shape[1:])
        return values

    def output(self, x: Tensor, t: Any, to: Any = None) -> tuple[Tensor, Number, Number, tuple[Number, Number]]:
        """The network's raw output with (alpha, sigma) and the row (a, b) it is read with; no learned variance."""
        out, alpha, sigma, row = self._output(x, t, self.told(x, to))
        return out if self.variance is None else out[:, : x.shape[1]], alpha, sigma, row

    def _output(
        self, x: Tensor, t: Any, told: dict[str, Tensor]
    ) -> tuple[Tensor, Number, Number, tuple[Number, Number]]:
        p = self.parameterization
        alpha, sigma = self.schedule(t, like=x)
        time = _rows_of(t if p.tells is None else p.tells(self.schedule, t), x)
        dtype = _dtype(self.net, x)
        inside = x if p.scale is None else x * p.scale(alpha, sigma)
        if dtype != x.dtype:
            inside = inside.to(dtype)
            told = {k: v.to(dtype) if v.is_floating_point() and v.ndim > 1 else v for k, v in told.items()}
        clock = torch.float64 if dtype == torch.float64 else torch.float32
        out = self.net(inside, time if time.dtype == clock else time.to(clock), **told)
        if out.shape != (x.shape if self.variance is None else (len(x), 2 * x.shape[1], *x.shape[2:])):
            raise ValueError(self._misfit(out, x))
        return out if out.dtype == x.dtype else out.to(x.dtype), alpha, sigma, p.row(self.schedule, t, alpha, sigma)

    def _misfit(self, out: Tensor, x: Tensor) -> str:
        seen = f"the network answered shape {tuple(out.shape)} to x of shape {tuple(x.shape)}"
        if self.variance is not None:
            return f"{seen}: with variance={self.variance!r} it should answer twice the channels"
        if x.ndim > 1 and out.shape == (len(x), 2 * x.shape[1], *x.shape[2:]):
            return f"{seen}: if the second half is a learned variance, say Denoiser(..., variance='range')"
        return seen

    def _read(self, out: Tensor, x: Tensor, alpha: Number, sigma: Number, row: tuple[Number, Number]) -> Prediction:
        if self.variance is None:
            return self.parameterization.read(out, x, alpha, sigma, row)
        out, v = out.chunk(2, 1)
        p = self.parameterization.read(out, x, alpha, sigma, row)
        p.fraction = (v + 1) / 2
        return p

    def __call__(self, x: Tensor, t: float | Tensor, *, to: float | Tensor | None = None) -> Prediction:
        """What the network believes at time t.

        Args:
            x: (B, ...) noisy data. t: time in [0, 1], a float or a tensor () or (B,).
            to: the time the sampler goes to, for networks with a condition of that name.
        """
        out, alpha, sigma, row = self._output(x, t, self.told(x, to))
        return self._read(out, x, alpha, sigma, row)


def _rows_of(t: Any, x: Tensor) -> Tensor:
    if isinstance(t, Tensor) and t.ndim > 0:
        return t.to(x.device)
    if isinstance(t, Tensor):
        return t.to(x.device).expand(x.shape[0])
    return torch.full(
        (x.shape[0],), t, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, device=x.device
    )


def _dtype(net: Any, x: Tensor) -> torch.dtype:
    if isinstance(net, nn.Module):
        for p in net.parameters():
            if p.is_floating_point():
                return p.dtype
    return x.dtype


def _pick(value: Any, index: Any) -> Any:
    """The rows of a value that is kept by row; what is the same for all rows stays."""
    if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] == 1:
        return value
    return value[index.to(value.device) if isinstance(index, Tensor) else index]


class Composed(_Base):
    """A denoiser made of denoisers; prints as the tree it is. Made by `denoiser(fn, parts=[...])`."""

    def __init__(self, fn: Callable[..., Prediction], parts: Sequence[Any], **rest: Any) -> None:
        self.fn, self.parts, self._rest = fn, list(parts), rest
        self.schedule = rest["schedule"]
        self.state = rest["state"]() if rest["state"] is not None else None

    def __call__(self, x: Tensor, t: float | Tensor, *, to: float | Tensor | None = None) -> Prediction:
        extra = dict(self._rest["extra"]) | self._rest["rows"]
        if self.state is not None:
            extra["state"] = self.state
        return self.fn(x, t, to, *self.parts, **extra)

    def rows(self, index: Any) -> Composed:
        """The denoiser of some rows of a batch, with everything in it that is kept by row."""
        rows = {k: _pick(v, index) for k, v in self._rest["rows"].items()}
        parts = [p.rows(index) if hasattr(p, "rows") else p for p in self.parts]
        new = Composed(self.fn, parts, **(self._rest | {"rows": rows}))
        state: Any = self.state
        new.state = state.rows(index) if hasattr(state, "rows") else state
        return new

    def fresh(self) -> Composed:
        """The same denoiser with its per-run state made anew; every run begins with this."""
        return Composed(self.fn, [fresh(p) for p in self.parts], **self._rest)

    def __repr__(self) -> str:
        inside = [repr(p) for p in self.parts] + [f"{k}={v!r}" for k, v in self._rest["settings"].items()]
        text = f"{self._rest['name']}({', '.join(inside)})"
        if len(text) <= 100:
            return text
        lines = ",\n".join(inside).replace("\n", "\n    ")
        return f"{self._rest['name']}(\n    {lines})"


def denoiser(
    fn: Callable[..., Prediction],
    parts: Sequence[Any],
    *,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    rows: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    state: Callable[[], Any] | None = None,
    schedule: Schedule | None = None,
) -> Composed:
    """A denoiser from denoisers.

    Args:
        fn: `fn(x, t, to, *parts, **rows, **extra) -> Prediction`; also given `state=` when there is one.
        parts: the denoisers it asks; they share one schedule.
        name, settings: what is printed: the technique and its numbers.
        rows: values kept by row of the batch (a measurement, a weight per sample), indexed by `.rows(index)`.
        extra: anything else `fn` takes by name.
        state: makes the per-run state (momentum, caches), anew for every run.
        schedule: the schedule it lives on, when it is not that of its parts.
    Raises:
        ValueError: the parts live on different schedules; there are none.
    """
    if not parts:
        raise ValueError("a denoiser needs at least one part")
    schedules = [p.schedule for p in parts]
    if any(s != schedules[0] for s in schedules):
        raise ValueError(
            f"the parts live on different schedules, {', '.join(map(str, schedules))}: "
            "bring them together with .on(schedule)"
        )
    return Composed(
        fn,
        parts,
        name=name or getattr(fn, "__name__", "denoiser"),
        settings=dict(settings or {}),
        rows=dict(rows or {}),
        extra=dict(extra or {}),
        state=state,
        schedule=schedule or schedules[0],
    )


def fresh(part: Any) -> Any:
    """The denoiser with new per-run state, or itself when it holds none."""
    return part.fresh() if hasattr(part, "fresh") else part


def stateless(part: Any, why: str) -> Any:
    """A denoiser without per-run state, in any of its parts; `why` says what cannot keep it.

    Raises:
        ValueError: it holds state.
    """
    if isinstance(part, Composed):
        if part.state is not None:
            raise ValueError(f"{part._rest['name']}(...) keeps something from one evaluation to the next: {why}")
        for inner in part.parts:
            stateless(inner, why)
    return part


def call(part: Any, x: Tensor, t: Any, to: Any = None) -> Prediction:
    """Ask any denoiser, also a hand-written one that takes (x, t) only."""
    return part(x, t, to=to) if isinstance(part, _Base) or _takes_to(part) else part(x, t)


def _takes_to(part: Any) -> bool:
    fn = part.forward if isinstance(part, nn.Module) else part
    try:
        return "to" in inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return False


def together(parts: Sequence[Any], x: Tensor, t: Any, to: Any = None) -> list[Prediction]:
    """What several denoisers believe of the same x, in one batched forward when they are bindings of one network."""
    first = parts[0]
    if len(parts) == 1 or not all(_same_network(first, p) for p in parts[1:]):
        return [call(p, x, t, to) for p in parts]
    n, rows = len(parts), x.shape[0]
    told = [p.told(x, to) for p in parts]
    if any(a.keys() != told[0].keys() for a in told):
        return [call(p, x, t, to) for p in parts]
    for name, spec in first.conditions.items():
        lengths = {a[name].shape[1] for a in told if name in a and a[name].ndim > 1}
        if len(lengths) > 1:  # sequences of several lengths: "told nothing" is what fills them up
            blank = spec.null(name, x)
            for a in told:
                more = blank[:, :1].to(a[name]).expand(rows, max(lengths) - a[name].shape[1], *blank.shape[2:])
                a[name] = torch.cat([a[name], more], 1)

    def many(value: Any) -> Any:
        return value.repeat(n, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) and value.ndim else value

    joined = {k: torch.cat([a[k] for a in told]) for k in told[0]}
    out, alpha, sigma, row = first._output(many(x), many(t), joined)
    every = first._read(out, many(x), alpha, sigma, row)
    return [every.rows(slice(i * rows, (i + 1) * rows)) for i in range(n)]


def _same_network(a: Any, b: Any) -> bool:
    return (
        isinstance(a, Denoiser)
        and isinstance(b, Denoiser)
        and a.net is b.net
        and a.schedule == b.schedule
        and a.parameterization == b.parameterization
        and a.variance == b.variance
    )


def networks(part: Any) -> list[nn.Module]:
    """Every `nn.Module` inside a denoiser, parts of parts included."""
    if isinstance(part, Composed):
        return [net for p in part.parts for net in networks(p)]
    net = part.net if isinstance(part, Denoiser) else part
    return [net] if isinstance(net, nn.Module) else []


@contextlib.contextmanager
def evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """These modules in eval mode, each one's own mode restored afterwards."""
    training = [m for m in modules if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
